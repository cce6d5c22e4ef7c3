"""Figures of scans: masks over slices, side views, a walk through the neck.

In: `Scan`s. Out: `Figure`s. Example::

    from cspine_kit.show.report.run import Run

    figure = masks_over_slices(Run(config, paths, Path("submissions")).scans[0])
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.numbers import FloatArray
from cspine_kit.show.report.figure import (
    LEVEL_COLORS,
    Figure,
    animated,
    canvas,
    drawn,
    ending,
)
from cspine_kit.show.report.scan import Grey, Scan
from cspine_kit.show.views import AXIAL, CORONAL, SAGITTAL

Rgb = NDArray[np.uint8]

OPACITY = 0.45
FIELD_MM = (100.0, 100.0)
SIDE_MM = (150.0, 100.0)
"""Height and width of axial tiles, and of those seen from the side."""

PX_PER_MM = 2.4
FRONT = 0.3
"""The coronal view cuts where this share of the mask lies in front: through the bodies."""

MOST_FRAMES = 48
BEYOND = 2
"""Slices that the walk shows above C1 and below C7."""

BOX_RGB = (255, 80, 60)


def _palette() -> NDArray[np.float64]:
    """RGB of the labels 0..7."""
    codes = [LEVEL_COLORS[level].lstrip("#") for level in LEVELS]
    rgb = [[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in codes]
    return np.array([[0, 0, 0], *rgb], dtype=np.float64)


def overlay(grey: Grey, mask: Grey) -> Rgb:
    """A plane in grey with its mask in the levels' colors, (rows, columns, 3)."""
    ground = np.repeat(grey[:, :, None].astype(np.float64), 3, axis=2)
    alpha = np.where(mask > 0, OPACITY, 0.0)[:, :, None]
    return ((1.0 - alpha) * ground + alpha * _palette()[mask]).round().astype(np.uint8)


def _field(axis: int) -> tuple[float, float]:
    return FIELD_MM if axis == AXIAL else SIDE_MM


def _resampled(
    plane: Grey, middle: FloatArray, pixel_mm: FloatArray, field: tuple[float, float]
) -> Grey:
    """A field of a plane around a pixel at `PX_PER_MM`; outside is black."""
    at = [(np.arange(n := round(mm * PX_PER_MM)) - (n - 1) / 2) / PX_PER_MM for mm in field]
    y, x = (c + mm / pitch for c, mm, pitch in zip(middle, at, pixel_mm, strict=True))
    at_x, at_y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    method = cv2.INTER_NEAREST if plane.max() <= len(LEVELS) else cv2.INTER_LINEAR
    return np.asarray(cv2.remap(plane, at_x, at_y, method), dtype=np.uint8)


def tile(scan: Scan, axis: int, index: int, *, masked: bool = True) -> Rgb:
    """A field around the spine in one plane, with mask and fracture box."""
    middle = np.delete(scan.middle, axis)
    near = np.argwhere(np.take(scan.mask, index, axis=axis))
    if axis == AXIAL and len(near):
        middle = near.mean(axis=0)
    pixel = np.delete(np.array(scan.spacing_mm), axis)
    planes = [np.ascontiguousarray(np.take(v, index, axis=axis)) for v in (scan.grey, scan.mask)]
    grey, mask = (_resampled(plane, middle, pixel, _field(axis)) for plane in planes)
    picture = overlay(grey, mask if masked else np.zeros_like(mask))
    if axis == AXIAL and index in scan.boxes and masked:
        x, y, w, h = scan.boxes[index]
        corners = np.array([[x, y], [x + w, y + h]])
        half = np.array(picture.shape[1::-1]) / 2
        first, last = (
            ((corners - middle[::-1]) * pixel[::-1] * PX_PER_MM + half).round().astype(int)
        )
        cv2.rectangle(picture, first.tolist(), last.tolist(), BOX_RGB, 2)
    return picture


def _slice_of(scan: Scan, level: str) -> int | None:
    """The slice that shows a level best: of a fractured one with a box, else the largest mask."""
    label = LEVELS.index(level) + 1
    area = (scan.mask == label).sum(axis=(1, 2))
    if not area.any():
        return None
    boxed = [z for z in scan.boxes if area[z]] if level in scan.fractured else []
    return boxed[len(boxed) // 2] if boxed else int(area.argmax())


def masks_over_slices(scan: Scan) -> Figure:
    """One slice through each level, bare and with its mask."""
    sheet = canvas(height_in=2.75)
    for j, level in enumerate(LEVELS):
        z = _slice_of(scan, level)
        for i in range(2):
            axes = sheet.add_subplot(2, len(LEVELS), i * len(LEVELS) + j + 1)
            axes.set_axis_off()
            if z is not None:
                axes.imshow(tile(scan, AXIAL, z, masked=i == 1))
            if i == 0:
                broken = " fractured" if level in scan.fractured else ""
                axes.set_title(level + broken, color=LEVEL_COLORS[level], fontsize=8.5)
    boxes = " A red frame is a radiologist's fracture box." if scan.boxes else ""
    return drawn(
        sheet,
        f"Study {scan.study_uid}, {FIELD_MM[0]:.0f} mm squares, front is up. Each color must lie "
        "on bone, on its own vertebra, the right way round." + boxes,
        pixels=True,
    )


def _cuts(scan: Scan) -> dict[int, int]:
    """Where the side views cut: through the middle of the spine, and through the bodies."""
    spine = np.argwhere(scan.mask)
    return {
        SAGITTAL: round(float(spine[:, SAGITTAL].mean())),
        CORONAL: round(float(np.quantile(spine[:, CORONAL], FRONT))),
    }


def side_views(scans: Sequence[Scan]) -> Figure:
    """Sagittal and coronal planes through the spine with masks."""
    sheet = canvas(height_in=2.6)
    panels = sheet.subplots(1, 2 * len(scans), squeeze=False)[0]
    for k, scan in enumerate(scans):
        for axes, (axis, index) in zip(panels[2 * k :], _cuts(scan).items(), strict=False):
            axes.imshow(tile(scan, axis, index))
            axes.set_axis_off()
            broken = ", ".join(scan.fractured)
            named = f"…{ending(scan.study_uid)}" + (f": {broken} fractured" if broken else "")
            axes.set_title(
                named if axis == SAGITTAL else "coronal", fontsize=8, fontweight="normal"
            )
    return drawn(
        sheet,
        "Sagittal (face to the left) and coronal views. Seven colors follow each other from head "
        "to chest without a gap; a spine that leans or a color twice means a wrong geometry.",
        pixels=True,
    )


def walk(scan: Scan) -> Figure:
    """From C1 to C7 slice by slice: the axial slice, and where it lies in the sagittal view."""
    shown = np.flatnonzero(scan.mask.any(axis=(1, 2)))
    first, last = max(0, shown[0] - BEYOND), min(len(scan.mask) - 1, shown[-1] + BEYOND)
    places = np.unique(np.linspace(first, last, MOST_FRAMES).round().astype(int))
    middle = float(scan.middle[0])
    side = tile(scan, SAGITTAL, _cuts(scan)[SAGITTAL])
    frames = []
    for z in places:
        beside, axial = side.copy(), tile(scan, AXIAL, int(z))
        at = round((z - middle) * scan.spacing_mm[0] * PX_PER_MM + len(side) / 2)
        cv2.line(beside, (0, at), (beside.shape[1], at), (255, 255, 255), 1)
        below = (len(side) - len(axial)) // 2
        room = ((below, len(side) - len(axial) - below), (0, 6), (0, 0))
        frames.append(np.hstack([np.pad(axial, room, constant_values=255), beside]))
    return animated(
        frames,
        f"Study {scan.study_uid} from C1 to C7, {len(places)} slices: the mask keeps to its "
        "vertebra from slice to slice, and colors change where the white line crosses a disc.",
    )

"""What a network sees: parallel planes of a patch in mm, drawn from a volume.

In: a `Volume`, a `Patch` and HU windows. Out: uint8 images or labels. Example::

    middle = (float(volume.z_mm[30]), *volume.middle_mm)
    patch = Patch("axial", middle, (76.8, 76.8), (64, 64), parallel(3, 2.0))
    image = draw(volume, patch, [(-500, 1500)])          # (3, 64, 64)
    image = draw(volume, patch.turned("sagittal"), [(-500, 1500)])

The one function by which networks see voxels, in training as in the kernel. Drawn pixels depend on
the lattice alone, not on the box that a volume keeps of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from cspine_kit.core.errors import StudyError
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray
from cspine_kit.data.volumes.bone import thinned_bone, without_background
from cspine_kit.data.volumes.curve import Grey, HuCurve
from cspine_kit.data.volumes.lattice import Box, interpolation
from cspine_kit.data.volumes.volume import Volume, Voxels, nearest_slices

Plane = Literal["axial", "sagittal", "coronal"]
Background = Literal["keep", "zero"]
Window = Sequence[float] | Literal["minmax", "spine"]
"""(low, high) in HU; "minmax" is what each plane itself reaches from and to; "spine" is no window
but a mask, 255 where there is bone of the spine, or of the one vertebra that a patch is about."""

SPINE = "spine"

Windows = Sequence[Window]
"""One or more."""


@dataclass(frozen=True, slots=True)
class Patch:
    """Parallel planes around a place.

    Attributes:
        plane: axial rows run to the back and columns to the left; sagittal rows run down and
            columns to the back; coronal rows run down and columns to the left.
        center_mm: z, y, x of the middle, in mm of the study's own frame.
        field_mm: rows, columns.
        size_px: rows, columns of the drawn planes.
        offsets_mm: of the planes from the center, positive to the head (axial), to the patient's
            right (sagittal), to the front (coronal).
        background: kept, or "zero": air in place of what is no bone of the spine around the center
            (`bone.without_background`).
        own_mm: z of the top and the bottom of the vertebra that it is about, if of one: beyond them
            "spine" shows nothing.
    """

    plane: Plane
    center_mm: tuple[float, float, float]
    field_mm: tuple[float, float]
    size_px: tuple[int, int]
    offsets_mm: tuple[float, ...] = (0.0,)
    background: Background = "keep"
    own_mm: tuple[float, float] = (np.inf, -np.inf)

    def turned(self, plane: Plane) -> "Patch":
        """The same in another plane."""
        return replace(self, plane=plane)


def parallel(count: int, step_mm: float) -> tuple[float, ...]:
    """Offsets of planes evenly around a center: cranial, right or front first."""
    return tuple(step_mm * ((count - 1) / 2 - k) for k in range(count))


def axial_box(volume: Volume, patch: Patch) -> Box:
    """The pixels of the lattice that the planes of an axial patch show."""
    middle = volume.lattice.to_px(np.array([patch.center_mm[1:]]))[0]
    starts, spans = [], []
    for at, field, spacing in zip(middle, patch.field_mm, volume.lattice.spacing_mm, strict=True):
        start, span = _run(float(at), field / spacing)
        starts.append(start)
        spans.append(span)
    return Box(starts[0], starts[1], starts[0] + spans[0], starts[1] + spans[1])


def to_shares(volume: Volume, patch: Patch, mm: FloatArray) -> FloatArray:
    """(n, 2) y, x in mm as shares of the rows and columns that an axial patch shows: 0 and 1 are
    its outer edges."""
    box = axial_box(volume, patch)
    return (volume.lattice.to_px(mm) + 0.5 - (box.y0, box.x0)) / box.shape


def from_shares(volume: Volume, patch: Patch, shares: FloatArray) -> FloatArray:
    """The inverse of `to_shares`."""
    box = axial_box(volume, patch)
    return volume.lattice.to_mm(np.asarray(shares) * box.shape + (box.y0, box.x0) - 0.5)


def _run(middle: float, length: float) -> tuple[int, int]:
    """First pixel and number of pixels of a length around a middle."""
    span = max(1, round(length))
    return round(middle - (span - 1) / 2), span


def _taken(volume: Volume, voxels: Voxels, indices: Sequence[int], box: Box) -> Grey:
    """A box of the lattice (n, y, x) from some slices; 0 where the volume does not reach."""
    if not len(indices):
        return np.zeros((0, *box.shape), np.uint8)
    y, x = volume.corner
    y0, x0, y1, x1 = box.y0 - y, box.x0 - x, box.y1 - y, box.x1 - x
    rows, cols = slice(max(y0, 0), max(y1, 0)), slice(max(x0, 0), max(x1, 0))
    inside = voxels.slices(indices, rows, cols)
    if inside.shape[1:] == box.shape:
        return inside
    whole = np.zeros((len(indices), *box.shape), np.uint8)
    _, ny, nx = inside.shape
    down, right = max(-y0, 0), max(-x0, 0)
    whole[:, down : down + ny, right : right + nx] = inside
    return whole


def draw(volume: Volume, patch: Patch, windows: Windows) -> Grey:
    """Grey values of a patch.

    Axial planes are the slices nearest to their places (ends clamp). Other planes are linear along
    z, averaged where their rows lie further apart than the slices. In the plane areas are averaged
    above 1.5 pixels to one. Outside is air.

    Returns:
        uint8 (planes x windows, rows, cols): all windows of the first plane, then of the next.
    """
    if patch.plane == "axial":
        places = patch.center_mm[0] + np.array(patch.offsets_mm)
        indices = nearest_slices(volume.z_mm, places)
        planes = _taken(volume, volume.voxels, indices.tolist(), axial_box(volume, patch))
        shown = _shown(volume, patch, planes, windows, at=volume.z_mm[indices, None])
        return np.stack([_resized(plane, patch.size_px) for plane, _ in shown])
    each = max(1, round(patch.field_mm[0] / patch.size_px[0] / volume.spacing_mm[0]))
    below, share, inside = _along_z(volume.z_mm, _rows_mm(patch, each))
    lines, first = _lines(volume, volume.voxels, patch, below[inside])
    rows, cols = patch.size_px
    drawn = np.zeros((len(lines) * len(windows), rows, cols), np.uint8)
    start = first[0] if len(first) else 0
    upper, lower = np.maximum(below - 1, start) - start, below - start
    at = np.broadcast_to(volume.z_mm[first], (len(lines), len(first)))
    for k, (line, air) in enumerate(_shown(volume, patch, lines, windows, at=at)):
        full = np.full((len(below), line.shape[1]), float(air), np.float32)
        if len(first):
            grey, down = line.astype(np.float32), share[inside, None].astype(np.float32)
            full[inside] = grey[upper[inside]] * (1 - down) + grey[lower[inside]] * down
        even = full.reshape(rows, -1, full.shape[1]).mean(axis=1)
        drawn[k] = _resized(np.rint(even).astype(np.uint8), (rows, cols))
    return drawn


def _shown(
    volume: Volume, patch: Patch, planes: Grey, windows: Windows, *, at: FloatArray
) -> Iterator[tuple[Grey, int]]:
    """Native planes of a patch through all windows, plane by plane, and what air is in each.

    `at`: z of each plane, or of each of its rows.
    """
    for plane, z in zip(planes, at, strict=True):
        codes = plane
        if patch.background == "zero" and plane.size:
            codes = without_background(plane, volume.curve, *_place(volume, patch, plane))
        for window in windows:
            if window == SPINE:
                yield _mask(volume, patch, plane, z), 0
                continue
            table = _table(volume.curve, window, codes)
            # OpenCV is four times as fast as numpy's indexing here, and refuses empty planes.
            yield cv2.LUT(codes, table) if codes.size else codes, int(table[0])  # type: ignore[misc]


def _mask(volume: Volume, patch: Patch, plane: Grey, z: FloatArray) -> Grey:
    """Bone of the spine in a plane, 0 or 255; of the patch's own vertebra where it has one."""
    top, bottom = patch.own_mm
    own = (z <= top) & (z >= bottom)
    if not plane.size or not own.any():
        return np.zeros_like(plane)
    bone = thinned_bone(plane, volume.curve, *_place(volume, patch, plane))
    return np.where(own[:, None], 255 * bone, 0).astype(np.uint8)


def _place(
    volume: Volume, patch: Patch, plane: Grey
) -> tuple[tuple[float, float], tuple[float | None, float]]:
    """Spacing of a plane's pixels, and where the spine is: it runs through the center, or down."""
    (rows, cols), (dy, dx) = plane.shape, volume.lattice.spacing_mm
    if patch.plane == "axial":
        return (dy, dx), ((rows - 1) / 2, (cols - 1) / 2)
    return (volume.step_mm, dy if patch.plane == "sagittal" else dx), (None, (cols - 1) / 2)


def _table(curve: HuCurve, window: Window, codes: Grey) -> Grey:
    """Grey values (256,) of codes through a window."""
    if not isinstance(window, str):
        low, high = window
        return curve.window(float(low), float(high))
    low, high = curve.hu[[codes.min(initial=255), codes.max(initial=0)]]
    return curve.window(low, max(high, low + 1.0))


def draw_mask(volume: Volume, patch: Patch) -> Grey:
    """Labels of a patch, those of the nearest voxel; 0 outside.

    Returns:
        uint8 (planes, rows, cols): 0 background, 1..7 C1..C7, 8 thoracic.

    Raises:
        StudyError: the volume has no mask.
    """
    if volume.mask is None:
        raise StudyError(volume.study_uid, "its volume has no mask", "give it one and run cache")
    if patch.plane == "axial":
        indices = nearest_slices(volume.z_mm, patch.center_mm[0] + np.array(patch.offsets_mm))
        planes = _taken(volume, volume.mask, indices.tolist(), axial_box(volume, patch))
        return np.stack([_picked(plane, patch.size_px) for plane in planes])
    rows, cols = patch.size_px
    places = _rows_mm(patch, 1)
    nearest, inside = nearest_slices(volume.z_mm, places), _along_z(volume.z_mm, places)[2]
    lines, first = _lines(volume, volume.mask, patch, nearest[inside])
    drawn = np.zeros((len(lines), rows, cols), np.uint8)
    for plane, line in zip(drawn, lines, strict=True):
        if len(first):
            plane[inside] = _picked(line[nearest[inside] - first[0]], (int(inside.sum()), cols))
    return drawn


def _resized(plane: Grey, size_px: tuple[int, int]) -> Grey:
    if plane.shape == size_px:
        return plane
    zoom = max(n / m for n, m in zip(plane.shape, size_px, strict=True))
    return cv2.resize(plane, size_px[::-1], interpolation=interpolation(zoom))  # type: ignore[return-value]


def _picked(labels: Grey, size_px: tuple[int, int]) -> Grey:
    rows, cols = (
        ((np.arange(m) + 0.5) * (n / m)).astype(int)
        for n, m in zip(labels.shape, size_px, strict=True)
    )
    return labels[rows[:, None], cols]


def _rows_mm(patch: Patch, each: int) -> FloatArray:
    """z at which the rows of a standing plane are sampled, so many times each, from the top."""
    count = patch.size_px[0] * each
    share: FloatArray = (np.arange(count, dtype=np.float64) + 0.5) / count
    return patch.center_mm[0] + patch.field_mm[0] * (0.5 - share)


def _along_z(z_mm: FloatArray, at_mm: FloatArray) -> tuple[IntArray, FloatArray, BoolArray]:
    """The slice below each place, its weight against the one above, and whether the scan reaches
    there (half a slice beyond its ends)."""
    below = np.clip(np.searchsorted(-z_mm, -at_mm), 0, len(z_mm) - 1)
    above = np.maximum(below - 1, 0)
    gap = z_mm[above] - z_mm[below]
    share = np.where(gap > 0, (z_mm[above] - at_mm) / np.where(gap > 0, gap, 1.0), 1.0)
    ends = -np.diff(z_mm)[[0, -1]] / 2 if len(z_mm) > 1 else np.array([0.5, 0.5])
    inside = (at_mm <= z_mm[0] + ends[0]) & (at_mm >= z_mm[-1] - ends[1])
    return below, np.clip(share, 0.0, 1.0), inside


def _lines(volume: Volume, voxels: Voxels, patch: Patch, below: IntArray) -> tuple[Grey, IntArray]:
    """Standing planes on native slices, (planes, slices, columns), and the indices of the slices:
    those of `below` and the one above each."""
    rows, cols = volume.lattice.to_px(np.array([patch.center_mm[1:]]))[0]
    spacing_y, spacing_x = volume.lattice.spacing_mm
    first = np.arange(max(int(below.min()) - 1, 0), int(below.max()) + 1) if len(below) else below
    sagittal = patch.plane == "sagittal"
    across, along = (spacing_x, spacing_y) if sagittal else (spacing_y, spacing_x)
    middle, run = (cols, rows) if sagittal else (rows, cols)
    at = [round(float(middle) - offset / across) for offset in patch.offsets_mm]
    start, span = _run(float(run), patch.field_mm[1] / along)
    low, high = min(at), max(at) + 1
    if sagittal:
        block = _taken(volume, voxels, first.tolist(), Box(start, low, start + span, high))
        return np.ascontiguousarray(block.transpose(2, 0, 1)[[a - low for a in at]]), first
    block = _taken(volume, voxels, first.tolist(), Box(low, start, high, start + span))
    return np.ascontiguousarray(block.transpose(1, 0, 2)[[a - low for a in at]]), first

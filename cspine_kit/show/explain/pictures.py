"""Slices with heat on them, and the levels on the sagittal view, as pictures of a page.

In: an `Evidence`. Out: RGB pixels, or a `Figure`. Example::

    from cspine_kit.infer.predictor import Predictor
    from cspine_kit.show.explain.evidence import gather_evidence

    predictor = Predictor(bundle)
    evidence = gather_evidence(predictor, predictor.predict(folder))
    slice_picture(evidence.fine, 10, WINDOWS["bone"]).shape        # (rows, columns, 3)
    at = evidence.judgment.driving(evidence.suspects[0])[0]
    levels_figure(evidence.judgment).kind, suspect_figure(evidence, evidence.suspects[0]).width_px
"""

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from cspine_kit.data.volumes.patch import Patch, draw
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.infer.judgment import Judgment, Scan
from cspine_kit.show.explain.evidence import Evidence
from cspine_kit.show.report.figure import (
    ALARM_COLOR,
    LEVEL_COLORS,
    Figure,
    canvas,
    drawn,
    level_bands,
    member_colors,
)

if TYPE_CHECKING:
    import pandas as pd

Rgb = NDArray[np.uint8]

WINDOWS = {"bone": (-500.0, 1500.0), "soft tissue": (-160.0, 240.0), "wide": (-1000.0, 2000.0)}
"""Presets of the slice browser: HU shown as black and as white."""

SIDE_PX = 512
"""Longer side of a picture of a slice."""

SHOWN = 3
HOTTEST = 190
"""Of the 255 colors from black over red to white: yellow, which bone does not have."""

WARM = 0.15
"""Share of the largest heat below which a place stays grey."""


def _scaled(picture: Rgb, side_px: int = SIDE_PX) -> Rgb:
    rows, cols = picture.shape[:2]
    zoom = side_px / max(rows, cols)
    size = (max(1, round(cols * zoom)), max(1, round(rows * zoom)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def slice_picture(
    volume: Volume,
    slice_idx: int,
    window: tuple[float, float],
    evidence: Evidence | None = None,
) -> Rgb:
    """One native slice of a fine volume, its heat and boxes on it where there is evidence."""
    k = int(np.clip(slice_idx - volume.first_slice, 0, len(volume.z_mm) - 1))
    (codes,) = volume.voxels.slices([k])
    grey = _scaled(cv2.LUT(codes, volume.curve.window(*window)))  # type: ignore[arg-type]
    picture: Rgb = np.repeat(grey[..., None], 3, axis=2)
    if evidence is None or evidence.top <= 0.0:
        return picture
    heat = cv2.resize(evidence.plane(slice_idx), grey.shape[::-1], interpolation=cv2.INTER_LINEAR)
    share = np.clip(np.asarray(heat) / evidence.top, 0.0, 1.0)
    colors = cv2.applyColorMap((HOTTEST * share).astype(np.uint8), cv2.COLORMAP_HOT)[..., ::-1]
    weight = (0.55 * np.clip((share - WARM) / (1 - WARM), 0.0, 1.0) ** 0.5)[..., None]
    picture = np.clip(picture * (1 - weight) + colors * weight, 0, 255).astype(np.uint8)
    zoom = len(grey) / len(codes)
    for y0, x0, y1, x1 in evidence.boxes(slice_idx):
        corners = [round(v * zoom) for v in (x0, y0, x1, y1)]
        picture = np.ascontiguousarray(picture)
        cv2.rectangle(picture, corners[:2], corners[2:], (255, 64, 64), 1)
    return picture


def png(picture: Rgb) -> bytes:
    """RGB pixels as PNG."""
    done, encoded = cv2.imencode(".png", picture[..., ::-1])
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be encoded")
    return encoded.tobytes()


def sagittal_picture(
    scan: Scan, x_mm: float | None = None
) -> tuple[Rgb, tuple[float, float, float, float]]:
    """The sagittal plane through a scan (through `x_mm`, else its middle), millimeters to scale,
    and where it lies: left, right (y), bottom, top (z), in mm."""
    volume = scan.volumes.coarse
    z, spacing = volume.z_mm, volume.spacing_mm[1]
    top, bottom = z[0] + volume.step_mm / 2, z[-1] - volume.step_mm / 2
    height, width = float(top - bottom), volume.box.shape[0] * spacing
    y, x = volume.middle_mm
    size = (max(1, round(height / spacing)), volume.box.shape[0])
    place = (float(top + bottom) / 2, y, x if x_mm is None else x_mm)
    (plane,) = draw(volume, Patch("sagittal", place, (height, width), size), [WINDOWS["bone"]])
    picture: Rgb = np.repeat(plane[..., None], 3, axis=2)
    return picture, (y - width / 2, y + width / 2, float(bottom), float(top))


def levels_figure(judgment: Judgment) -> Figure:
    """Levels with their probabilities on the sagittal view through the spine."""
    if judgment.scan is None:
        raise ValueError(f"{judgment.study} was not read")
    rows = judgment.levels
    picture, extent = sagittal_picture(judgment.scan, float(rows["x_mm"].median()))
    height = float(np.clip(4.6 * (extent[3] - extent[2]) / (extent[1] - extent[0]), 2.6, 6.4))
    sheet = canvas(4.8, height)
    axes = sheet.subplots()
    axes.imshow(picture, extent=extent, interpolation="bilinear")
    probs = judgment.probabilities.set_index("target")["prob"]
    for row in rows.itertuples():
        if not row.in_scan:
            continue
        color = LEVEL_COLORS[str(row.level)]
        half = (row.z_top_mm - row.z_bottom_mm) / 6
        axes.plot([row.y_mm - 26] * 2, [row.z_mm + half, row.z_mm - half], color=color, lw=4)
        axes.plot(row.y_mm, row.z_mm, "o", color=color, ms=4, mec="white", mew=0.6)
        axes.annotate(
            f"{row.level}  {probs[row.level]:.2f}",
            (row.y_mm - 30, row.z_mm),
            color="white",
            ha="right",
            va="center",
            fontsize=10,
            fontweight="bold",
            bbox={"boxstyle": "round,pad=0.15", "fc": color, "ec": "none"},
        )
    axes.set_axis_off()
    absent = judgment.absent
    missing = f" Not in this scan: {', '.join(absent)}." if absent else ""
    return drawn(
        sheet, f"Levels and fracture probabilities, seen from the side.{missing}", pixels=True
    )


def suspect_figure(evidence: Evidence, level: str) -> Figure:
    """One suspected level: what each member says along z, and the slices that drove it."""
    judgment, fine = evidence.judgment, evidence.fine
    sheet = canvas(height_in=2.6)
    grid = sheet.add_gridspec(1, 1 + SHOWN, width_ratios=[1.5, *[1.0] * SHOWN])
    axes = sheet.add_subplot(grid[0, 0])
    members = [str(m) for m in judgment.slices["member"].unique()]
    for member, color in member_colors(members).items():
        own = judgment.slices[judgment.slices["member"] == member].sort_values("z_mm")
        axes.plot(own["z_mm"], own[f"fracture_{level}"], color=color, lw=1.3, label=member)
    level_bands(axes, _spans(judgment))
    axes.set(ylim=(0, 1), ylabel=f"fracture of {level}", xlabel="z, mm (head to the left)")
    axes.invert_xaxis()
    axes.legend(loc="best", fontsize=7)
    z = judgment.slices.groupby("slice")["z_mm"].first()
    strength = judgment.evidence(level)
    for i, at in enumerate(judgment.driving(level, SHOWN)):
        axes.plot(z[at], 0.03, "^", color=ALARM_COLOR, ms=6)
        panel = sheet.add_subplot(grid[0, 1 + i])
        panel.imshow(slice_picture(fine, at, WINDOWS["bone"], evidence))
        panel.set_axis_off()
        panel.set_title(f"slice {at}: {strength[at]:.2f}", fontsize=8, fontweight="normal")
    prob = judgment.probabilities.set_index("target").loc[level, "prob"]
    return drawn(
        sheet,
        f"{level}: probability {prob:.2f}. Left, what each member says of each slice; right, the "
        "slices with the strongest evidence (triangles; fracture times visibility), heat where the "
        "networks looked and a box around the hottest place.",
        pixels=True,
    )


def _spans(judgment: Judgment) -> "pd.DataFrame":
    """Each level's own part of the z axis, parted halfway between centers."""
    rows = judgment.levels[judgment.levels["in_scan"]].assign(present=True)
    z = rows["z_mm"].to_numpy()
    between = (z[:-1] + z[1:]) / 2
    rows["z_top_mm"] = [float(rows["z_top_mm"].iloc[0]), *between]
    rows["z_bottom_mm"] = [*between, float(rows["z_bottom_mm"].iloc[-1])]
    return rows

"""The truth about levels: which a scan shows, and where each lies, measured on whole voxels.

In: a patient's bones and a scan of them. Out: seven rows. Example::

    rows = level_rows(neck, scan, turned=False)
    rows[3]["present"], rows[3]["center_z_mm"]        # C4

A level that the scan cuts or misses has its true place all the same, also outside of the scan.
Millimeters are those of the study's frame: z along the slices' normal, y and x from the center of
pixel [0, 0] of its files.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.phantom.anatomy.painting import paint
from cspine_kit.phantom.anatomy.shapes import Array, Grid
from cspine_kit.phantom.anatomy.spine import Neck
from cspine_kit.phantom.scanner.scan import Scan

VOXEL_MM = (0.5, 1.0, 1.0)
MARGIN_MM = (60.0, 60.0, 60.0), (60.0, 85.0, 60.0)
"""How far a vertebra reaches at most from its center (x, y, z): to the right, front and feet, and
to the left, back and head. Spinous processes of the tallest patients: 77 mm."""
PRESENT_SHARE = 0.3
"""A level counts as present where at least this share of it lies inside the scan."""

LevelRow = dict[str, Any]


def _around(neck: Neck) -> Grid:
    """Whole voxels around the cervical spine."""
    at = np.array([neck.bones[level].position for level in LEVELS])
    (x0, y0, z0), (x1, y1, z1) = at.min(axis=0) - MARGIN_MM[0], at.max(axis=0) + MARGIN_MM[1]
    shape = [int(n) for n in np.ceil(np.array([z1 - z0, y1 - y0, x1 - x0]) / VOXEL_MM)]
    return Grid.make((shape[0], shape[1], shape[2]), VOXEL_MM, (z1, y0, x0))


def _inside(seen: Array, own: Array, step: float) -> Array:
    """Which of the places `own` lie in the stretch of the voxel centers `seen`, `step` apart."""
    return np.asarray((own > seen.min() - step / 2) & (own < seen.max() + step / 2), np.float32)


def level_rows(neck: Neck, scan: Scan, *, turned: bool) -> list[LevelRow]:
    """Rows of C1..C7: level, present, share_inside (of its volume), z_top_mm and z_bottom_mm
    (edges of its highest and lowest voxel), center_z_mm, center_y_mm, center_x_mm (middles of its
    extents).

    Args:
        neck: the patient, fractures included.
        scan: the scan.
        turned: whether the scan was turned upside down about the front-to-back axis.
    """
    from scipy.ndimage import find_objects

    grid = _around(neck)
    labels = np.zeros(grid.shape, np.uint8)
    hu, damage = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.uint8)
    for level in LEVELS:
        paint(neck.bones[level], grid, hu, labels, damage, softness_mm=1.0)
    frame_z = float(scan.axes[2] @ np.array(scan.origin_mm))
    seen = (scan.grid.z, scan.grid.y, scan.grid.x)
    rows = []
    for label, (level, box) in enumerate(zip(LEVELS, find_objects(labels), strict=True), start=1):
        own = labels[box] == label
        places = [at[part] for at, part in zip((grid.z, grid.y, grid.x), box, strict=True)]
        shown = (
            _inside(at, place, step)
            for at, place, step in zip(seen, places, scan.spacing_mm, strict=True)
        )
        share = np.einsum("zyx,z,y,x->", own, *shown) / own.sum()
        ends = np.array(
            [
                [place.min() - step / 2, place.max() + step / 2]
                for place, step in zip(places, VOXEL_MM, strict=True)
            ]
        )
        if turned:
            for axis, at in ((0, scan.grid.z), (2, scan.grid.x)):
                ends[axis] = (float(at[0] + at[-1]) - ends[axis])[::-1]
        ends += np.array([frame_z, -scan.grid.y[0], -scan.grid.x[0]])[:, None]
        middle = ends.mean(axis=1)
        rows.append(
            {
                "level": level,
                "present": bool(share >= PRESENT_SHARE),
                "share_inside": round(float(share), 4),
                "z_top_mm": round(float(ends[0, 1]), 3),
                "z_bottom_mm": round(float(ends[0, 0]), 3),
                **_rounded(dict(zip(("z", "y", "x"), middle, strict=True))),
            }
        )
    return rows


def _rounded(center: Mapping[str, float]) -> dict[str, float]:
    return {f"center_{axis}_mm": round(float(v), 3) for axis, v in center.items()}

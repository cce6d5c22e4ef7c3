"""Where the spine runs through a study, and which of its slices show it.

In: the seven rows of the `levels` table (`levels.decode_levels`). Out: centers in mm of the study's
frame, slice choices. Example::

    centers = spine_centers(own_levels, volume.z_mm)             # (nz, 2) y, x in mm
    shown = shows_spine(own_levels, volume.z_mm)                 # (nz,) bool
    inside_levels(own_levels, volume.z_mm) > 0                   # (nz, 7) bool
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.numbers import BoolArray, FloatArray

SEEN, UNSEEN = 4.0, -6.0
"""Logits of a level's visibility where a slice is sure to show it, and where not: out of its range,
beyond what looked at it, out of the scan."""


def spine_centers(levels: pd.DataFrame, z_mm: FloatArray) -> FloatArray:
    """Centers (n, 2) y, x in mm at positions `z_mm`, along the line through the seven levels."""
    ordered = levels.sort_values("center_z_mm")
    z = ordered["center_z_mm"].to_numpy()
    columns = [np.interp(z_mm, z, ordered[c]) for c in ("center_y_mm", "center_x_mm")]
    return np.column_stack(columns)


def neck_middle(levels: pd.DataFrame) -> float:
    """z half-way between the centers of the highest and the lowest of these levels."""
    return float(levels["center_z_mm"].max() + levels["center_z_mm"].min()) / 2


def shows_spine(levels: pd.DataFrame, z_mm: FloatArray) -> BoolArray:
    """True for positions between the top of the highest level and the bottom of the lowest that are
    there; nowhere where none is."""
    levels = levels[levels["present"]]
    top, bottom = levels["z_top_mm"].max(), levels["z_bottom_mm"].min()
    inside: BoolArray = (z_mm <= top) & (z_mm >= bottom)
    return inside


def inside_levels(levels: pd.DataFrame, z_mm: FloatArray) -> FloatArray:
    """How far positions lie inside each of C1..C7.

    Args:
        levels: seven rows.
        z_mm: (n,) positions.

    Returns:
        (n, 7) millimeters to the nearer end, negative beyond it, -infinity where the scan does not
        show the level.
    """
    ordered = levels.set_index("level").loc[list(LEVELS)]
    top, bottom = (ordered[name].to_numpy(np.float64) for name in ("z_top_mm", "z_bottom_mm"))
    inside = np.minimum(top - z_mm[:, None], z_mm[:, None] - bottom)
    return np.where(ordered["present"].to_numpy(bool), inside, -np.inf)

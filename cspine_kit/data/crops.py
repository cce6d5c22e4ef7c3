"""Where a crop of the spine lies on any slice, and which slices show the spine.

In: the seven rows of the `crops` table (`levels.decode_levels`). Out: centers, slice indices.
Example::

    centers = crop_centers(levels, volume.z_mm)                  # (nz, 2) native pixels
    shown = spine_slices(levels, np.arange(len(volume.z_mm)))
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.numbers import FloatArray


def crop_centers(crops: pd.DataFrame, z_mm: FloatArray) -> FloatArray:
    """Crop centers (n, 2) y, x in native pixels at positions `z_mm`, following the seven levels."""
    ordered = crops.sort_values("center_z_mm")
    z = ordered["center_z_mm"].to_numpy()
    columns = [np.interp(z_mm, z, ordered[c]) for c in ("center_y_px", "center_x_px")]
    return np.column_stack(columns)


def spine_slices(crops: pd.DataFrame, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those candidate slices that lie between the first slice of C1 and the last of C7."""
    first, last = int(crops["z0"].min()), int(crops["z1"].max())
    inside: NDArray[np.int64] = candidates[(candidates >= first) & (candidates <= last)]
    return inside

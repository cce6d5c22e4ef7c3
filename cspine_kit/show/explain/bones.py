"""The bone of each level: what is dense near the spine's line, cut between the levels' centers.

In: a `Scan` and the levels of its `Judgment`. Out: labels on the grid of its fine volume. Example::

    from cspine_kit.infer.predictor import Predictor

    judgment = Predictor(bundle).predict(folder)
    labels = bone_labels(judgment.scan.volumes.fine, judgment.levels)
    labels.shape, np.unique(labels)              # that of the voxels; 0, 1..7 for C1..C7

This is no segmentation: neighbors are parted by a plane halfway between their centers, so that a
facet or a spinous process that reaches past it is counted to the neighbor.
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.numbers import IntArray
from cspine_kit.data.volumes.curve import Grey
from cspine_kit.data.volumes.volume import Volume

BONE_HU = 220.0
REACH_MM = (42.0, 32.0)
"""Of the spine from the middle of its box: along y (the spinous processes), along x."""


def level_of_slices(z_mm: "np.ndarray", levels: pd.DataFrame) -> IntArray:
    """Which level each slice belongs to: 1..7, 0 outside of the levels that the scan holds.

    Args:
        z_mm: (n,) positions.
        levels: of a `Judgment`.
    """
    seen = levels[levels["in_scan"]]
    numbers = np.array([LEVELS.index(level) + 1 for level in seen["level"]], dtype=np.int64)
    centers = seen["z_mm"].to_numpy()
    nearest = np.abs(z_mm[:, None] - centers[None]).argmin(axis=1)
    own = numbers[nearest]
    top, bottom = seen["z_top_mm"].max(), seen["z_bottom_mm"].min()
    kept: IntArray = np.where((z_mm <= top) & (z_mm >= bottom), own, 0)
    return kept


def bone_labels(volume: Volume, levels: pd.DataFrame) -> Grey:
    """uint8 (z, y, x): 1..7 where a voxel is bone of C1..C7, else 0."""
    ordered = levels.sort_values("z_mm")
    at = {
        axis: np.interp(volume.z_mm, ordered["z_mm"], ordered[f"{axis}_mm"]) for axis in ("y", "x")
    }
    _, rows, cols = volume.voxels.shape
    y_mm = volume.to_mm(np.column_stack([np.arange(rows), np.zeros(rows)]))[:, 0]
    x_mm = volume.to_mm(np.column_stack([np.zeros(cols), np.arange(cols)]))[:, 1]
    own = level_of_slices(volume.z_mm, levels)
    dense = int(np.searchsorted(volume.curve.hu, BONE_HU))
    labels = np.zeros(volume.voxels.shape, np.uint8)
    for k in np.flatnonzero(own):
        down = ((y_mm - at["y"][k]) / REACH_MM[0]) ** 2
        across = ((x_mm - at["x"][k]) / REACH_MM[1]) ** 2
        near = down[:, None] + across[None] <= 1.0
        (plane,) = volume.voxels.slices([int(k)])
        labels[k][near & (plane >= dense)] = own[k]
    return labels

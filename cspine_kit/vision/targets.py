"""What the two stages learn from one study: its slices, and a target for each.

In: a volume and its rows of tables. Out: a `StudyView` with targets. Example::

    slices = pd.read_parquet(paths.table("slices"))
    view = vertebra_targets(volume, slices[slices["study_uid"] == uid], config.vertebra)
    view.targets["visible"].shape      # (len(view), 7)
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import ModelConfig
from cspine_kit.core.numbers import sigmoid
from cspine_kit.core.tables import MASK_COLUMNS, SPINE_BOX_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.dataset import StudyView
from cspine_kit.vision.predict import fracture_view, vertebra_view


def vertebra_targets(volume: Volume, slices: pd.DataFrame, config: ModelConfig) -> StudyView:
    """What the vertebra stage learns from a masked study."""
    view = vertebra_view(volume, config.slice_step_mm)
    shown = slices.iloc[view.slice_idx]
    box = shown[list(SPINE_BOX_COLUMNS)].to_numpy(dtype=np.float64)
    view.targets = {
        "visible": (shown[list(MASK_COLUMNS)].to_numpy() > 0).astype(np.float32),
        "box": np.hstack([volume.to_px(box[:, :2]), volume.to_px(box[:, 2:])]).astype(np.float32),
    }
    return view


def _visibility(view: StudyView, slices: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """(n, 7) visibility targets: from the mask where there is one, else the vertebra model's."""
    masks = slices.iloc[view.slice_idx][list(MASK_COLUMNS)].to_numpy(dtype=np.float64)
    if not np.isnan(masks).any():
        return (masks > 0).astype(np.float32)
    depth, scored = -view.volume.z_mm[view.slice_idx], -rows["at_mm"].to_numpy()
    at = [np.interp(depth, scored, column) for column in rows[list(VERTEBRA_COLUMNS)].to_numpy().T]
    return sigmoid(np.stack(at, axis=1), limit=np.inf).astype(np.float32)


def fracture_targets(
    volume: Volume,
    slices: pd.DataFrame,
    label: "pd.Series",
    *,
    config: ModelConfig,
    rows: pd.DataFrame,
    levels: pd.DataFrame,
) -> StudyView:
    """What a fracture stage learns from a study with levels.

    Args:
        volume: the study.
        slices: its rows of the `slices` table.
        label: its row of the `studies` table.
        config: the member.
        rows: what the vertebra model of the fold says of its slices.
        levels: its seven levels.

    Raises:
        StudyError: no slice lies inside the levels.
    """
    view = fracture_view(volume, levels, config.slice_step_mm)
    broken = label[list(LEVELS)].to_numpy(dtype=np.float32)
    view.targets = {
        "visible": _visibility(view, slices, rows),
        "fracture": np.tile(broken, (len(view), 1)),
    }
    return view

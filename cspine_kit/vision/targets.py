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
from cspine_kit.data.volumes.volume import Volume, nearest_slices
from cspine_kit.vision.dataset import StudyView
from cspine_kit.vision.predict import fracture_view, vertebra_view


def vertebra_targets(volume: Volume, slices: pd.DataFrame, config: ModelConfig) -> StudyView:
    """What the vertebra stage learns from a masked study."""
    view = vertebra_view(volume, config)
    shown = _native(view, slices)
    view.targets = {
        "visible": (shown[list(MASK_COLUMNS)].to_numpy() > 0).astype(np.float32),
        "box": shown[list(SPINE_BOX_COLUMNS)].to_numpy(np.float32),
    }
    return view


def _native(view: StudyView, slices: pd.DataFrame) -> pd.DataFrame:
    """Rows of the native slices next to the chosen ones."""
    return slices.iloc[nearest_slices(slices["z_mm"].to_numpy(np.float64), view.at_mm)]


def _visibility(view: StudyView, slices: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """(n, 7) visibility targets: from the mask where there is one, else the vertebra model's."""
    masks = _native(view, slices)[list(MASK_COLUMNS)].to_numpy(dtype=np.float64)
    if not np.isnan(masks).any():
        return (masks > 0).astype(np.float32)
    depth, scored = -view.at_mm, -rows["at_mm"].to_numpy()
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
    view = fracture_view(volume, levels, config)
    broken = label[list(LEVELS)].to_numpy(dtype=np.float32)
    view.targets = {
        "visible": _visibility(view, slices, rows),
        "fracture": np.tile(broken, (len(view), 1)),
    }
    return view

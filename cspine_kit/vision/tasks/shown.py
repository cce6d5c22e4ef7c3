"""Which of C1..C7 each patch of a training study shows: from its mask, else as far as one can tell.

In: a `StudyView`, a `Lesson`. Out: (patches, 7) shares, NaN where nobody knows. Example::

    from cspine_kit.vision.tasks.kinds import task_of
    from cspine_kit.vision.tasks.task import Lesson

    label = studies.set_index("study_uid").loc[uid]
    view = task_of(config.levels).view(fine, own_levels)
    shown_levels(view, Lesson(slices[slices["study_uid"] == uid], label)).shape
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import AXIAL, N_LEVELS
from cspine_kit.core.errors import StudyError
from cspine_kit.core.failures import NO_LEVELS
from cspine_kit.core.tables import MASK_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.levels import decode_visible
from cspine_kit.data.volumes.patch import draw_mask
from cspine_kit.data.volumes.volume import Volume, nearest_slices
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.tasks.task import Lesson

BODY_MM = 12.0
"""To this side of its center a vertebra is sure to be seen on standing planes."""


def some_levels(volume: Volume, levels: pd.DataFrame | None) -> pd.DataFrame:
    """Levels of which at least one is there.

    Raises:
        StudyError: there are none, or the scan shows none of them.
    """
    if levels is None:
        raise StudyError(volume.study_uid, "no levels: the vertebra stage said nothing")
    if not levels["present"].any():
        raise StudyError(volume.study_uid, NO_LEVELS)
    return levels


def native_rows(view: StudyView, slices: pd.DataFrame) -> pd.DataFrame:
    """Rows of the native slices next to those that a network sees."""
    return slices.iloc[nearest_slices(slices["z_mm"].to_numpy(np.float64), view.at_mm)]


def shown_levels(view: StudyView, lesson: Lesson) -> NDArray[np.float32]:
    """Of axial patches by the mask's slices, else by the ordered decode's marginals; of standing
    ones by the mask in their middle plane, else 1 close to the middle of the spine."""
    return _on_slices(view, lesson) if view.plane == AXIAL else _on_standing(view)


def _on_slices(view: StudyView, lesson: Lesson) -> NDArray[np.float32]:
    masks = native_rows(view, lesson.slices)[list(MASK_COLUMNS)].to_numpy(dtype=np.float64)
    if lesson.rows is None or not np.isnan(masks).any():
        return (masks > 0).astype(np.float32)
    at_mm = lesson.rows["at_mm"].to_numpy()
    visible = decode_visible(at_mm, lesson.rows[list(VERTEBRA_COLUMNS)].to_numpy())
    at = [np.interp(-view.at_mm, -at_mm, column) for column in visible.T]
    return np.stack(at, axis=1).astype(np.float32)


def _on_standing(view: StudyView) -> NDArray[np.float32]:
    if view.volume.mask is None:
        close = np.where(np.abs(view.offsets_mm) <= BODY_MM, 1.0, np.nan)
        return np.repeat(close[:, None], N_LEVELS, axis=1).astype(np.float32)
    shown = np.zeros((len(view.patches), N_LEVELS), np.float32)
    for row, patch in zip(shown, view.patches, strict=True):
        planes = draw_mask(view.volume, patch)
        row[:] = np.isin(np.arange(1, N_LEVELS + 1), planes[len(planes) // 2])
    return shown

"""Labels of single slices of a training study: what the study's labels and boxes say of each.

In: a `StudyView` of axial patches, a `Lesson`. Out: (patches, 7) in 0..1, NaN where nobody knows.
Example::

    from cspine_kit.vision.tasks.kinds import task_of
    from cspine_kit.vision.tasks.task import Lesson

    label = studies.set_index("study_uid").loc[uid]
    lesson = Lesson(slices[slices["study_uid"] == uid], label)
    view = task_of(config.levels).view(fine, own_levels)
    visible = np.ones((len(view.patches), 7), np.float32)
    soft_labels(view, lesson, visible, config.levels).max()     # 0.0 in a study without a fracture

A fracture of a vertebra is on some of its slices. Those that show little of it learn a small label:
the study's, times the share of its largest section (source document A gives all slices the same).
In rounds (document A's semi-supervision) a label also counts as far as networks that have not seen
the study find the fracture there.
"""

from typing import TypeGuard

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import ClassifierConfig, ModelConfig
from cspine_kit.core.numbers import sigmoid
from cspine_kit.core.tables import FRACTURE_COLUMNS, MASK_COLUMNS
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.tasks.lesions import known_boxes
from cspine_kit.vision.tasks.shown import native_rows
from cspine_kit.vision.tasks.task import Lesson

LABEL = "label"
"""Name of the target of single slices."""

SHOWS = 0.5
"""A slice that shows a broken vertebra this far has its fracture in its box."""


def asks_soft_labels(config: ModelConfig) -> TypeGuard[ClassifierConfig]:
    """True where slices have labels of their own."""
    return isinstance(config, ClassifierConfig) and config.labels_slices


def soft_labels(
    view: StudyView, lesson: Lesson, visible: NDArray[np.float32], config: ClassifierConfig
) -> NDArray[np.float32]:
    """Of each patch and level the study's label times how far the patch shows the level, and times
    how surely the round before finds the fracture there beside where it does so most.

    Args:
        view: axial patches.
        lesson: labels, masks and boxes of the study.
        visible: (patches, 7) of `shown_levels`: taken where the study has no mask.
        config: says what labels hang on. With `boxes` a broken level of which some patch has a box
            is 1 there, and NaN on its others, since annotators left gaps; on those that do not
            show it, it stays 0.
    """
    labels = lesson.label[list(LEVELS)].to_numpy(dtype=np.float32)
    shares = native_rows(view, lesson.slices)[list(MASK_COLUMNS)].to_numpy(dtype=np.float32)
    shown = np.where(np.isnan(shares), visible, shares)
    soft = np.broadcast_to(labels, shown.shape)
    if config.slice_labels != "study":
        soft = labels * shown
    if lesson.said is not None:
        soft = soft * _found(view, lesson.said, visible)
    if config.slice_labels == "boxes":
        boxed = np.asarray(np.isfinite(known_boxes(view, lesson, visible)[0]).all(axis=1))
        hit = boxed[:, None] & (visible > SHOWS) & (labels > 0)
        unsure = hit.any(axis=0) & (shown > 0)
        soft = np.where(hit, 1.0, np.where(unsure, np.nan, soft))
    return soft.astype(np.float32)


def _found(
    view: StudyView, said: pd.DataFrame, visible: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(patches, 7) probability of a fracture, as a share of the highest among the patches that show
    the level: somewhere in a broken vertebra the fracture is."""
    said = said.sort_values("at_mm")
    probs = sigmoid(said[list(FRACTURE_COLUMNS)].to_numpy(np.float64))
    at = [np.interp(view.at_mm, said["at_mm"].to_numpy(), column) for column in probs.T]
    found = np.stack(at, axis=1)
    highest = np.where(visible > SHOWS, found, 0.0).max(axis=0)
    share = np.divide(found, highest, out=np.ones_like(found), where=highest > 0)
    return np.minimum(share, 1.0).astype(np.float32)

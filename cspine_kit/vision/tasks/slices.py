"""A member that scores axial slices as a task: fracture of C1..C7 where a slice shows them.

In: its section of the config. Out: what is seen, learned and said. Example::

    member, *_ = config.members.values()
    task = SlicesTask(member)
    view = task.view(fine, own_levels)
    task.heads["fracture"], len(view)                 # 7, ...
"""

from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch.nn import functional as F

from cspine_kit.core.anatomy import AXIAL, LEVELS, TARGETS
from cspine_kit.core.config import SlicesConfig
from cspine_kit.core.errors import StudyError
from cspine_kit.core.metric import auc, metric
from cspine_kit.core.numbers import FloatArray, noisy_or, sigmoid
from cspine_kit.core.tables import FRACTURE_COLUMNS, MASK_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.spine import shows_spine, spine_centers
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.tasks.task import Batch, Grid, Lesson, Outputs, Targets, Task, Term
from cspine_kit.vision.tasks.vertebra import native_rows, visible_term
from cspine_kit.vision.views import StudyView, spaced_slices, study_view


class SlicesTask(Task):
    """Fracture: binary cross-entropy weighted by visibility, sum(v * bce) / sum(v), so that a slice
    is judged only on the vertebrae it shows (source document A). Visibility beside it.

    Fracture of a level is what all levels share plus what is its own (`any_fracture`).
    """

    rows_version: ClassVar[int] = 2
    grid: ClassVar[Grid] = "fine"
    heads: ClassVar[dict[str, int]] = {"visible": 7, "fracture": 7, "any_fracture": 1}
    sided: ClassVar[bool] = False
    config: SlicesConfig

    def view(self, volume: Volume, levels: pd.DataFrame | None, stride: int = 1) -> StudyView:
        """The slices of C1..C7, along the spine.

        Raises:
            StudyError: there are no levels, or no slice lies inside them.
        """
        if levels is None:
            raise StudyError(volume.study_uid, "no levels: the vertebra stage said nothing")
        rows = spaced_slices(volume.z_mm, self.config.slice_step_mm * stride)
        rows = rows[shows_spine(levels, volume.z_mm[rows])]
        if len(rows) == 0:
            raise StudyError(volume.study_uid, "no slice lies inside the decoded levels")
        return study_view(volume, rows, spine_centers(levels, volume.z_mm[rows]), self.config)

    def targets(self, view: StudyView, lesson: Lesson) -> Targets:
        """ "visible" (n, 7), from the mask where there is one, else the vertebra model's; and
        "fracture" (n, 7), the study's labels."""
        broken = lesson.label[list(LEVELS)].to_numpy(dtype=np.float32)
        return {
            "visible": _visibility(view, lesson),
            "fracture": np.tile(broken, (len(view), 1)),
        }

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Term]:
        """See `Task`."""
        visible, target = batch["visible"], batch["fracture"]
        loss = F.binary_cross_entropy_with_logits(
            outputs["fracture"],
            target,
            pos_weight=target.new_tensor(self.config.positive_weight),
            reduction="none",
        )
        return {
            "fracture": ((loss * visible).sum(), visible.sum()),
            "visible": visible_term(outputs, batch, self.config.visible_loss),
        }

    def figures(
        self, outputs: Outputs, targets: Outputs, study: NDArray[np.int64]
    ) -> dict[str, float]:
        """AUC of each target and metric A of the visibility-weighted mean of a study's slices."""
        _, first, group = np.unique(study, return_index=True, return_inverse=True)
        probs = _with_overall(_weighted_mean(outputs, group, len(first)), noisy=True)
        labels = _with_overall(targets["fracture"][first], noisy=False)
        found = {f"auc_{t}": auc(labels[:, k], probs[:, k]) for k, t in enumerate(TARGETS)}
        return {**found, "metric_A": metric(labels, probs)}

    def rows(self, view: StudyView, outputs: Outputs) -> pd.DataFrame:
        """Table `oof_slices`: visibility and fracture logits."""
        rows = pd.DataFrame(
            np.column_stack([outputs["visible"], outputs["fracture"]]),
            columns=[*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS],
        )
        place = {"plane": AXIAL, "position": view.slice_idx, "slice_idx": view.slice_idx}
        place |= {"at_mm": view.at_mm}
        return pd.concat([pd.DataFrame(place), rows], axis=1)


def _visibility(view: StudyView, lesson: Lesson) -> NDArray[np.float32]:
    masks = native_rows(view, lesson.slices)[list(MASK_COLUMNS)].to_numpy(dtype=np.float64)
    if lesson.rows is None or not np.isnan(masks).any():
        return (masks > 0).astype(np.float32)
    depth, scored = -view.at_mm, -lesson.rows["at_mm"].to_numpy()
    logits = lesson.rows[list(VERTEBRA_COLUMNS)].to_numpy()
    at = [np.interp(depth, scored, column) for column in logits.T]
    return sigmoid(np.stack(at, axis=1), limit=np.inf).astype(np.float32)


def _weighted_mean(outputs: Outputs, group: NDArray[np.int64], studies: int) -> FloatArray:
    """(studies, 7): sum(v p) / sum(v) over the slices of each study."""
    visible, prob = sigmoid(outputs["visible"]), sigmoid(outputs["fracture"])
    sums = np.zeros((2, studies, visible.shape[1]))
    np.add.at(sums[0], group, visible * prob)
    np.add.at(sums[1], group, visible)
    mean: FloatArray = sums[0] / sums[1]
    return mean


def _with_overall(levels: FloatArray, *, noisy: bool) -> FloatArray:
    """The eight targets from the seven levels."""
    overall = noisy_or(levels) if noisy else levels.max(axis=1)
    return np.column_stack([levels, overall])

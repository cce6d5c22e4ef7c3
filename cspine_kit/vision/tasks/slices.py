"""A member that scores slices of one plane as a task: fracture of C1..C7 where a slice shows them.

In: its section of the config. Out: what is seen, learned and said. Example::

    member, *_ = config.members.values()
    task = SlicesTask(member)
    view = task.view(fine, own_levels)
    task.heads["fracture"], len(view)                 # 7, ...
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from cspine_kit.core.anatomy import AXIAL, LEVELS, TARGETS
from cspine_kit.core.config import SlicesConfig
from cspine_kit.core.errors import StudyError
from cspine_kit.core.metric import auc, metric
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray, noisy_or, sigmoid
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.spine import shows_spine, spine_centers
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.inputs.views import (
    StudyView,
    level_facts,
    present_levels,
    spaced_slices,
    standing_view,
    study_view,
)
from cspine_kit.vision.nets.heads import LESIONS, asks_levels, learned_maps
from cspine_kit.vision.tasks.lesions import lesion_targets
from cspine_kit.vision.tasks.shown import shown_levels, some_levels
from cspine_kit.vision.tasks.soft import LABEL, asks_soft_labels, soft_labels
from cspine_kit.vision.tasks.task import (
    Batch,
    Grid,
    Lesson,
    Outputs,
    Targets,
    Task,
    Term,
    map_terms,
)


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
        """The slices along the spine; standing ones from right to left, or front to back.

        Raises:
            StudyError: there are no levels, or no slice lies inside them.
        """
        levels = some_levels(volume, levels)
        view = self._view(volume, levels, stride)
        view.present = present_levels(levels)
        return view

    def _view(self, volume: Volume, levels: pd.DataFrame, stride: int) -> StudyView:
        if self.config.plane != AXIAL:
            return standing_view(volume, levels, self.config, stride=stride)
        rows = spaced_slices(volume.z_mm, self.config.slice_step_mm * stride)
        rows = rows[shows_spine(levels, volume.z_mm[rows])]
        if len(rows) == 0:
            raise StudyError(volume.study_uid, "no slice lies inside the decoded levels")
        view = study_view(volume, rows, spine_centers(levels, volume.z_mm[rows]), self.config)
        if asks_levels(self.config):
            view.facts = level_facts(levels, volume.z_mm[rows])
        return view

    def targets(self, view: StudyView, lesson: Lesson) -> Targets:
        """ "visible" (n, 7), NaN where nobody knows; and "fracture" (n, 7), the study's labels, NaN
        for levels of which the scan shows too little to learn from them. Where the config asks for
        them, "label" (n, 7) of each slice itself (`soft_labels`), and boxes (`lesion_targets`)."""
        labels = lesson.label[list(LEVELS)].to_numpy(dtype=np.float32)
        broken = np.where(view.present, labels, np.float32(np.nan))
        visible = shown_levels(view, lesson)
        found = {"visible": visible, "fracture": np.tile(broken, (len(view), 1))}
        if asks_soft_labels(self.config):
            own = soft_labels(view, lesson, visible, self.config)
            found[LABEL] = np.where(view.present, own, np.float32(np.nan))
        if LESIONS in learned_maps(self.config):
            found |= lesion_targets(view, lesson, visible)
        return found

    def draw(self, views: Sequence[StudyView], generator: np.random.Generator) -> list[IntArray]:
        """Up to `slices_per_study` slices of every study.

        Of a fractured study, `fractured_share` of them are first taken from slices that show a
        fractured level (`wanted`).
        """
        chosen = []
        for view in views:
            order = generator.permutation(len(view))
            shown = self.wanted(view)[order]
            reserved = round(self.config.slices_per_study * self.config.fractured_share)
            first = np.flatnonzero(shown)[:reserved]
            order = np.concatenate([order[first], np.delete(order, first)])
            chosen.append(order[: self.config.slices_per_study])
        return chosen

    def wanted(self, view: StudyView) -> BoolArray:
        """(n,) the slices of a fractured study of which an epoch shows enough."""
        broken = view.targets.get(LABEL, view.targets["fracture"])
        seen = np.nan_to_num(view.targets["visible"] * broken)
        return np.asarray(seen.max(axis=1) > 0.5)

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Term]:
        """See `Task`."""
        known = torch.isfinite(batch["visible"])
        broken = batch.get(LABEL, batch["fracture"])
        visible, target = batch["visible"].nan_to_num(), broken.nan_to_num()
        weight = visible * torch.isfinite(broken)
        loss = F.binary_cross_entropy_with_logits(
            outputs["fracture"],
            target,
            pos_weight=target.new_tensor(self.config.positive_weight),
            reduction="none",
        )
        seen = F.binary_cross_entropy_with_logits(outputs["visible"], visible, reduction="none")
        return {
            "fracture": ((loss * weight).sum(), weight.sum()),
            "visible": (self.config.visible_loss * (seen * known).sum(), known.sum()),
            **map_terms(outputs, batch, self.config),
        }

    def figures(
        self, outputs: Outputs, targets: Outputs, study: NDArray[np.int64]
    ) -> dict[str, float]:
        """AUC of each target and metric A of the visibility-weighted mean of a study's slices."""
        _, first, group = np.unique(study, return_index=True, return_inverse=True)
        probs = _with_overall(_weighted_mean(outputs, group, len(first)), noisy=True)
        labels = _with_overall(np.nan_to_num(targets["fracture"][first]), noisy=False)
        found = {f"auc_{t}": auc(labels[:, k], probs[:, k]) for k, t in enumerate(TARGETS)}
        return {**found, "metric_A": metric(labels, probs)}

    def rows(self, view: StudyView, outputs: Outputs) -> pd.DataFrame:
        """Table `oof_slices`: visibility and fracture logits."""
        rows = pd.DataFrame(
            np.column_stack([outputs["visible"], outputs["fracture"]]),
            columns=[*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS],
        )
        place: dict[str, object] = {"plane": view.plane}
        if view.plane == AXIAL:
            place |= {"position": view.slice_idx, "slice_idx": view.slice_idx, "at_mm": view.at_mm}
        else:
            nothing = pd.array([pd.NA] * len(view), dtype="Int64")
            place |= {"position": np.arange(len(view)), "slice_idx": nothing}
            place |= {"at_mm": view.offsets_mm}
        return pd.concat([pd.DataFrame(place), rows], axis=1)


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

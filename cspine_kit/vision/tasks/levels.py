"""Members that score vertebrae as tasks: one by its stacks or as a volume, or all seven jointly.

In: a section of the config. Out: what is seen, learned and said. Example::

    task = LevelsTask(config.levels)
    view = task.view(fine, own_levels)
    len(view), view.per_unit                          # 7, stacks of each vertebra

Both also say what each stack shows: rows of `oof_slices`, of which the stack takes its statistics,
beside the vertebra's own logit in `oof_levels`.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from cspine_kit.core.anatomy import (
    AXIAL,
    LEVEL_WEIGHT,
    LEVELS,
    N_LEVELS,
    OVERALL,
    OVERALL_WEIGHT,
    POSITIVE_FACTOR,
    TARGETS,
)
from cspine_kit.core.config import LevelsConfig, StudyConfig
from cspine_kit.core.metric import auc, metric
from cspine_kit.core.numbers import FloatArray, IntArray, sigmoid
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.spine import UNSEEN
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.inputs.views import StudyView, level_view
from cspine_kit.vision.nets.heads import LESIONS, learned_maps
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


class LevelsTask(Task):
    """Fracture of a vertebra: binary cross-entropy. Beside it fracture of each stack, weighted by
    how far it shows the vertebra, and that visibility itself."""

    rows_version: ClassVar[int] = 1
    grid: ClassVar[Grid] = "fine"
    heads: ClassVar[dict[str, int]] = {"level": 1, "slice": 1, "visible": 1}
    sided: ClassVar[bool] = False
    tables: ClassVar[tuple[str, ...]] = ("oof_levels",)
    vertebrae: ClassVar[int] = 1
    config: LevelsConfig

    def view(self, volume: Volume, levels: pd.DataFrame | None, stride: int = 1) -> StudyView:
        """Stacks of C1, of C2, ...; fewer of each where time runs short.

        Raises:
            StudyError: there are no levels, or the scan shows none of them.
        """
        levels = some_levels(volume, levels)
        return level_view(volume, levels, self.config, stride=stride, vertebrae=self.vertebrae)

    def targets(self, view: StudyView, lesson: Lesson) -> Targets:
        """ "fracture" (n, vertebrae), "overall" (n, 1), "visible" (n, patches), NaN where nobody
        knows, "level" (n, vertebrae), which of C1..C7 they are, and "present" (n, vertebrae). Where
        the config asks for them, "label" (n, patches) of each stack itself (`soft_labels`), and
        boxes (`lesion_targets`)."""
        n = len(view)
        broken = lesson.label[list(LEVELS)].to_numpy(dtype=np.float32)
        overall = np.full((n, 1), lesson.label[OVERALL], np.float32)
        own = np.repeat(np.arange(N_LEVELS), len(view.patches) // N_LEVELS)
        visible, each = shown_levels(view, lesson), np.arange(len(own))
        shown = visible[each, own] * view.present[own]
        found: Targets = {}
        if asks_soft_labels(self.config):
            labels = soft_labels(view, lesson, visible, self.config)
            found[LABEL] = labels[each, own].reshape(n, -1)
        if LESIONS in learned_maps(self.config):
            found |= lesion_targets(view, lesson, visible)
        return {
            **found,
            "fracture": broken.reshape(n, -1),
            "overall": overall,
            "visible": shown.reshape(n, -1),
            "level": np.arange(N_LEVELS, dtype=np.float32).reshape(n, -1),
            "present": view.present.astype(np.float32).reshape(n, -1),
        }

    def draw(self, views: Sequence[StudyView], generator: np.random.Generator) -> list[IntArray]:
        """Every fractured unit, and `others_share` of the others of all studies together; none of
        vertebrae that a scan does not hold."""
        unit = np.concatenate([np.arange(len(view)) for view in views])
        study = np.repeat(np.arange(len(views)), [len(view) for view in views])
        there = np.concatenate([view.targets["present"].max(axis=1) > 0 for view in views])
        hurt = np.concatenate([self._hurt(view.targets) for view in views]) & there
        others = np.flatnonzero(~hurt & there)
        count = round(len(others) * self.config.others_share)
        shown = hurt.copy()
        shown[generator.permutation(others)[:count]] = True
        return [unit[shown & (study == v)] for v in range(len(views))]

    def _hurt(self, targets: Targets) -> NDArray[np.bool_]:
        return np.asarray(targets["fracture"].max(axis=1) > 0.5)

    def blank(self, batch: Batch) -> Batch:
        """See `Task`."""
        level, shown = torch.zeros_like(batch["fracture"]), torch.zeros_like(batch["visible"])
        return {"level": level, "slice": shown, "visible": shown, **self.blank_maps(batch)}

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Term]:
        """See `Task`."""
        config, target = self.config, batch["fracture"]
        known = torch.isfinite(batch["visible"])
        visible = batch["visible"].nan_to_num()
        factor = target.new_tensor(config.positive_weight)
        each = target.repeat_interleave(visible.shape[1] // target.shape[1], dim=1)
        each = batch.get(LABEL, each)
        weight = visible * torch.isfinite(each)
        level = F.binary_cross_entropy_with_logits(
            outputs["level"], target, pos_weight=factor, reduction="none"
        )
        stack = F.binary_cross_entropy_with_logits(
            outputs["slice"], each.nan_to_num(), pos_weight=factor, reduction="none"
        )
        seen = F.binary_cross_entropy_with_logits(outputs["visible"], visible, reduction="none")
        return {
            "level": ((level * batch["present"]).sum(), batch["present"].sum()),
            "slice": (config.slice_loss * (stack * weight).sum(), weight.sum()),
            "visible": (config.visible_loss * (seen * known).sum(), known.sum()),
            **map_terms(outputs, batch, config),
        }

    def figures(
        self, outputs: Outputs, targets: Outputs, study: NDArray[np.int64]
    ) -> dict[str, float]:
        """AUC of each level, and of all together."""
        logits, broken = self._judged(outputs).ravel(), targets["fracture"].ravel() > 0.5
        level = targets["level"].ravel()
        found = {
            f"auc_{name}": auc(broken[level == k], logits[level == k])
            for k, name in enumerate(LEVELS)
            if (level == k).any()
        }
        return {**found, "auc_level": auc(broken, logits)}

    def _judged(self, outputs: Outputs) -> FloatArray:
        """Logits of the vertebrae, (n, vertebrae)."""
        return outputs["level"]

    def rows(self, view: StudyView, outputs: Outputs) -> pd.DataFrame:
        """Table `oof_slices`: off the axial plane a row for each place across the vertebrae; in it
        one for each slice that a stack is centered on, in between linear in z."""
        shown, broken = (outputs[name].reshape(N_LEVELS, -1) for name in ("visible", "slice"))
        shown = np.where(view.present[:, None], shown, np.minimum(shown, UNSEEN))
        if view.plane != AXIAL:
            n = shown.shape[1]
            place: dict[str, object] = {"plane": view.plane, "position": np.arange(n)}
            place |= {"slice_idx": pd.array([pd.NA] * n, dtype="Int64")}
            place |= {"at_mm": view.offsets_mm[:n]}
            return _slice_rows(place, shown.T, broken.T)
        used, first = np.unique(view.indices, return_index=True)
        idx, at_mm = view.slice_idx[first], view.volume.z_mm[used]
        own = np.array([patch.center_mm[0] for patch in view.patches]).reshape(N_LEVELS, -1)
        half = (self.config.slice_step_mm + self.config.stack_step_mm) / 2
        found = np.empty((2, len(used), N_LEVELS))
        for k in range(N_LEVELS):
            for values, logits in zip(found, (shown, broken), strict=True):
                values[:, k] = np.interp(-at_mm, -own[k], logits[k])
            beyond = (at_mm > own[k].max() + half) | (at_mm < own[k].min() - half)
            found[0, beyond, k] = np.minimum(found[0, beyond, k], UNSEEN)
        place = {"plane": AXIAL, "position": idx, "slice_idx": idx, "at_mm": at_mm}
        return _slice_rows(place, *found)

    def scores(self, view: StudyView, outputs: Outputs) -> dict[str, pd.DataFrame]:
        """Table `oof_levels`; a vertebra out of the scan is as sound as the soundest in it."""
        logits = self._judged(outputs).ravel()
        logits = np.where(view.present, logits, logits[view.present].min())
        return {"oof_levels": pd.DataFrame({"level": LEVELS, "fracture": logits})}


class StudyTask(LevelsTask):
    """Seven vertebrae jointly: the losses of single ones, and the competition's own on the seven
    and the overall."""

    tables: ClassVar[tuple[str, ...]] = ("oof_levels", "oof_studies")
    vertebrae: ClassVar[int] = N_LEVELS
    config: StudyConfig

    def _hurt(self, targets: Targets) -> NDArray[np.bool_]:
        return np.asarray(targets["overall"][:, 0] > 0.5)

    def blank(self, batch: Batch) -> Batch:
        """See `Task`."""
        eight = batch["fracture"].new_zeros(len(batch["fracture"]), len(TARGETS))
        return {**super().blank(batch), "study": eight}

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Term]:
        """See `Task`."""
        labels = torch.cat([batch["fracture"], batch["overall"]], dim=1)
        usual = labels.new_tensor([LEVEL_WEIGHT] * N_LEVELS + [OVERALL_WEIGHT])
        weights = usual * torch.where(labels > 0.5, POSITIVE_FACTOR, 1.0)
        if self.config.form == "per_exam":
            weights = weights / weights.sum(dim=1, keepdim=True)
        loss = F.binary_cross_entropy_with_logits(outputs["study"], labels, reduction="none")
        study = (self.config.study_loss * (loss * weights).sum(), weights.sum())
        return {**super().losses(outputs, batch), "study": study}

    def figures(
        self, outputs: Outputs, targets: Outputs, study: NDArray[np.int64]
    ) -> dict[str, float]:
        """AUC of each target and the metric."""
        probs = sigmoid(outputs["study"])
        labels = np.column_stack([targets["fracture"], targets["overall"]])
        found = super().figures(outputs, targets, study)
        found[f"auc_{OVERALL}"] = auc(labels[:, -1], probs[:, -1])
        return {**found, "metric_A": metric(labels, probs)}

    def _judged(self, outputs: Outputs) -> FloatArray:
        return outputs["study"][:, :N_LEVELS]

    def scores(self, view: StudyView, outputs: Outputs) -> dict[str, pd.DataFrame]:
        """Tables `oof_levels` and `oof_studies`."""
        overall = pd.DataFrame({"overall": outputs["study"][:, N_LEVELS]})
        return {**super().scores(view, outputs), "oof_studies": overall}


def _slice_rows(place: dict[str, object], shown: FloatArray, broken: FloatArray) -> pd.DataFrame:
    logits = pd.DataFrame(
        np.column_stack([shown, broken]), columns=[*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS]
    )
    return pd.concat([pd.DataFrame(place), logits], axis=1)

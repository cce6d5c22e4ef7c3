"""The vertebra stage by segmentation: the level of every pixel, and from it slices and spine boxes.

In: a section of the config. Out: what is seen, learned and said. Example::

    task = SegmentTask(config.segment)
    view = task.view(volume, None)
    outputs = {"visible": rng.normal(size=(len(view), 7)), "labels": np.ones((len(view), 8, 8))}
    task.rows(view, outputs)[["at_mm", "vertebra_C1"]]
    task.scores(view, outputs)["vertebra_dice"]["level"].tolist()[:2]         # ["C1", "C2"]
"""

from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.config import SegmentConfig
from cspine_kit.core.errors import StudyError
from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.volumes.patch import draw_mask
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.nets.unet import LABELS, MAP, N_LABELS
from cspine_kit.vision.tasks.shown import shown_levels
from cspine_kit.vision.tasks.task import Batch, Lesson, Outputs, Targets, Term
from cspine_kit.vision.tasks.vertebra import StageTask, stage_rows, visible_term

EDGE = 0.02
"""Share of a slice's labelled pixels that its spine box leaves out at every side."""


class SegmentTask(StageTask):
    """Labels: cross-entropy and Dice. Presence on the slice: binary cross-entropy."""

    rows_version: ClassVar[int] = 1
    heads: ClassVar[dict[str, int]] = {"visible": 7}
    tables: ClassVar[tuple[str, ...]] = ("vertebra_dice",)
    config: SegmentConfig

    def targets(self, view: StudyView, lesson: Lesson) -> Targets:
        """From the mask: "visible" (n, 7); the labels themselves are drawn with their patch.

        Raises:
            StudyError: its volume has no mask.
        """
        if view.volume.mask is None:
            raise StudyError(view.volume.study_uid, "its coarse volume has no mask", "run cache")
        return {"visible": shown_levels(view, lesson)}

    def blank(self, batch: Batch) -> Batch:
        """See `Task`."""
        said = {"visible": torch.zeros_like(batch["visible"])}
        if LABELS in batch:
            n, *size = batch[LABELS].shape
            said[MAP] = batch["visible"].new_zeros(()).expand(n, N_LABELS, *size)
        return said

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Term]:
        """See `Task`."""
        return {
            "visible": visible_term(outputs, batch, self.config.visible_loss),
            **map_terms(outputs, batch),
        }

    def rows(self, view: StudyView, outputs: Outputs) -> pd.DataFrame:
        """Table `vertebra`: visibility logits and the spine's box in mm."""
        return stage_rows(view, outputs["visible"], _boxes(outputs[LABELS]))

    def scores(self, view: StudyView, outputs: Outputs) -> dict[str, pd.DataFrame]:
        """Table `vertebra_dice`: of each level how many pixels were said, are true, and are both;
        none true where the study has no mask."""
        said = outputs[LABELS].astype(np.uint8)
        truth = np.zeros_like(said)
        if view.volume.mask is not None:
            truth[:] = [draw_mask(view.volume, p)[len(p.offsets_mm) // 2] for p in view.patches]
        level = np.arange(1, N_LEVELS + 1)
        counts = [
            np.bincount(labels.ravel(), minlength=N_LABELS)[level]
            for labels in (said, truth, np.where(said == truth, said, 0))
        ]
        columns = dict(zip(("said_px", "true_px", "both_px"), counts, strict=True))
        return {"vertebra_dice": pd.DataFrame({"level": LEVELS, **columns})}


def map_terms(outputs: Batch, batch: Batch) -> dict[str, Term]:
    """Cross-entropy of all labels and Dice of the levels that a patch shows; nothing where labels
    are not asked for, as in validation."""
    if MAP not in outputs or LABELS not in batch:
        return {}
    logits, target = outputs[MAP], batch[LABELS].long()
    cross = F.cross_entropy(logits, target, reduction="none").mean(dim=(1, 2))
    probs = logits.softmax(dim=1)[:, 1 : N_LEVELS + 1]
    true = torch.stack([target == k for k in range(1, N_LEVELS + 1)], dim=1).float()
    size = true.sum(dim=(2, 3))
    dice = (2.0 * (probs * true).sum(dim=(2, 3)) + 1.0) / (probs.sum(dim=(2, 3)) + size + 1.0)
    shown = (size > 0).float()
    away = ((1.0 - dice) * shown).sum(dim=1) / shown.sum(dim=1).clamp_min(1.0)
    return {MAP: ((cross + away).sum(), logits.new_tensor(len(logits)))}


def _boxes(labels: FloatArray) -> FloatArray:
    """(n, 4) x0, y0, x1, y1 of the cervical pixels, as shares of the patch; a slice without any
    takes the box of the nearest one with some, a study without any the whole patch."""
    cervical = (labels >= 1) & (labels <= N_LEVELS)
    seen = np.flatnonzero(cervical.any(axis=(1, 2)))
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (len(labels), 1))
    if not len(seen):
        return boxes
    size = np.array(labels.shape[2:0:-1])
    for k in seen:
        x_y = np.argwhere(cervical[k])[:, ::-1]
        low, high = np.quantile(x_y, (EDGE, 1.0 - EDGE), axis=0)
        boxes[k] = np.concatenate([low / size, (high + 1.0) / size])
    nearest = np.abs(np.arange(len(labels))[:, None] - seen).argmin(axis=1)
    return boxes[seen[nearest]]

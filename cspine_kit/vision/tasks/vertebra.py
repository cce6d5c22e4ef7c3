"""The vertebra stage by slices: which of C1..C7 each shows, and where the spine is.

In: its section of the config. Out: what is seen, learned and said; and the seven levels. Example::

    task = VertebraTask(config.vertebra)
    view = task.view(volume, None)
    outputs = {name: rng.normal(size=(len(view), n)) for name, n in task.heads.items()}
    levels = decode_study(task.rows(view, outputs))
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import SegmentConfig, VertebraConfig
from cspine_kit.core.metric import auc
from cspine_kit.core.numbers import FloatArray, IntArray
from cspine_kit.core.tables import SPINE_BOX_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.levels import decode_levels
from cspine_kit.data.volumes.patch import from_shares
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.inputs.views import StudyView, header_facts, spaced_slices, study_view
from cspine_kit.vision.nets.heads import asks_headers
from cspine_kit.vision.tasks.pseudo import pseudo_labels
from cspine_kit.vision.tasks.shown import native_rows, shown_levels
from cspine_kit.vision.tasks.task import (
    Batch,
    Grid,
    Lesson,
    Outputs,
    Targets,
    Task,
    Term,
    some_of_each,
)

THORACIC = "thoracic"

BOX_LOSS = 2.0
"""Weight of the smooth-L1 box loss beside the visibility loss."""


def visible_term(outputs: Batch, batch: Batch, share: float = 1.0) -> Term:
    """Binary cross-entropy of visibility over the seven levels; targets may be soft, and weighted
    where they are not from a mask."""
    target = batch["visible"]
    weight = batch.get("weight", torch.ones_like(target))
    loss = F.binary_cross_entropy_with_logits(outputs["visible"], target, reduction="none")
    return share * (loss * weight).sum(), weight.sum()


class StageTask(Task):
    """What the networks of the vertebra stage have in common: slices of the whole scan."""

    grid: ClassVar[Grid] = "coarse"
    sided: ClassVar[bool] = True
    config: VertebraConfig | SegmentConfig

    def view(
        self, volume: Volume, levels: pd.DataFrame | None = None, stride: int = 1
    ) -> StudyView:
        """The middle of a coarse volume, slices a step apart."""
        rows = spaced_slices(volume.z_mm, self.config.slice_step_mm * stride)
        return study_view(volume, rows, np.tile(volume.middle_mm, (len(rows), 1)), self.config)

    def draw(self, views: Sequence[StudyView], generator: np.random.Generator) -> list[IntArray]:
        """See `Task`."""
        return some_of_each(views, self.config.slices_per_study, generator)

    def figures(
        self, outputs: Outputs, targets: Outputs, study: NDArray[np.int64]
    ) -> dict[str, float]:
        """AUC of visibility, slice by slice."""
        shown = targets["visible"] > 0.5
        return {
            f"auc_{level}": auc(shown[:, k], outputs["visible"][:, k])
            for k, level in enumerate(LEVELS)
        }


class VertebraTask(StageTask):
    """Visibility: binary cross-entropy. Box: smooth L1 where a box is known. Thoracic spine: binary
    cross-entropy, where the config asks for it."""

    rows_version: ClassVar[int] = 2
    heads: ClassVar[dict[str, int]] = {"visible": 7, "box": 4}
    config: VertebraConfig

    def view(
        self, volume: Volume, levels: pd.DataFrame | None = None, stride: int = 1
    ) -> StudyView:
        """The middle of a coarse volume, slices a step apart, and what headers say of them."""
        view = super().view(volume, levels, stride)
        if asks_headers(self.config):
            view.facts = header_facts(volume, view.indices)
        return view

    @property
    def outputs(self) -> dict[str, int]:
        """See `Task`."""
        return {**self.heads, THORACIC: 1} if self.config.thoracic_loss else self.heads

    def targets(self, view: StudyView, lesson: Lesson) -> Targets:
        """From the mask: "visible" (n, 7) and "box" (n, 4) in mm, NaN where there is no spine; from
        the round before where there is no mask. "weight" (n, 7), and where it is learned "thoracic"
        (n, 1), NaN where nobody knows."""
        boxes = native_rows(view, lesson.slices)[list(SPINE_BOX_COLUMNS)]
        found = {"box": boxes.to_numpy(np.float32)}
        if lesson.rows is not None:
            found["visible"], found["weight"] = pseudo_labels(view, lesson.rows)
        else:
            found["visible"] = self.shown(view, lesson)
            found["weight"] = np.full_like(found["visible"], lesson.weight)
        if self.config.thoracic_loss:
            found[THORACIC] = _thoracic(view)
        return found

    def shown(self, view: StudyView, lesson: Lesson) -> NDArray[np.float32]:
        """(n, 7) what is learned of each level, from the mask."""
        return shown_levels(view, lesson)

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Term]:
        """See `Task`."""
        gap = F.smooth_l1_loss(outputs["box"], batch["box"], reduction="none", beta=0.05)
        known = batch["box_weight"][:, None]
        box = (BOX_LOSS * (gap * known).sum(), 4 * known.sum())
        terms = {"visible": visible_term(outputs, batch), "box": box}
        if THORACIC in outputs:
            shown = batch[THORACIC]
            seen = torch.isfinite(shown)
            loss = F.binary_cross_entropy_with_logits(
                outputs[THORACIC], shown.nan_to_num(), reduction="none"
            )
            terms[THORACIC] = (self.config.thoracic_loss * (loss * seen).sum(), seen.sum())
        return terms

    def rows(self, view: StudyView, outputs: Outputs) -> pd.DataFrame:
        """Table `vertebra`: visibility logits and the spine's box in mm."""
        return stage_rows(view, outputs["visible"], outputs["box"])


def _thoracic(view: StudyView) -> NDArray[np.float32]:
    """(n, 1) whether the mask shows the thoracic spine on each slice."""
    if view.volume.mask is None:
        return np.full((len(view), 1), np.nan, np.float32)
    labels = view.volume.mask.slices(view.indices.tolist())
    return (labels == len(LEVELS) + 1).any(axis=(1, 2))[:, None].astype(np.float32)


def stage_rows(view: StudyView, visible: FloatArray, boxes: FloatArray) -> pd.DataFrame:
    """Rows of table `vertebra`.

    Args:
        view: n slices.
        visible: (n, 7) logits.
        boxes: (n, 4) x0, y0, x1, y1 of the spine as shares of each patch.
    """
    in_mm = [
        from_shares(view.volume, patch, shares.reshape(2, 2)[:, ::-1]).reshape(4)
        for patch, shares in zip(view.patches, boxes, strict=True)
    ]
    rows = pd.DataFrame(visible, columns=list(VERTEBRA_COLUMNS))
    rows[list(SPINE_BOX_COLUMNS)] = np.array(in_mm)
    rows.insert(0, "position", view.slice_idx)
    rows.insert(1, "at_mm", view.at_mm)
    return rows


def combined(parts: Sequence[pd.DataFrame], on: pd.DataFrame | None = None) -> pd.DataFrame:
    """What several networks say of one study as if it were one: the mean of their log-odds and of
    their boxes, linear in z between a network's own slices.

    Args:
        parts: rows of table `vertebra` by each network, from the head down; at least one.
        on: rows whose slices are spoken of; the first network's by default.
    """
    on = parts[0] if on is None else on
    if len(parts) == 1 and parts[0] is on:
        return on
    columns = [*VERTEBRA_COLUMNS, *SPINE_BOX_COLUMNS]
    at, total = -on["at_mm"].to_numpy(), np.zeros((len(on), len(columns)))
    for part in parts:
        own = -part["at_mm"].to_numpy()
        for k, column in enumerate(columns):
            total[:, k] += np.interp(at, own, part[column].to_numpy(np.float64))
    return on.assign(**pd.DataFrame(total / len(parts), columns=columns, index=on.index))


def decode_study(rows: pd.DataFrame) -> pd.DataFrame:
    """Seven ordered levels from the vertebra rows of one study (`data.levels.decode_levels`)."""
    columns = (["at_mm"], VERTEBRA_COLUMNS, SPINE_BOX_COLUMNS)
    at, logits, boxes = (rows[list(names)].to_numpy() for names in columns)
    return decode_levels(at[:, 0], logits, boxes)

"""The vertebra stage as a task: which of C1..C7 each slice shows, and where the spine is.

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
from numpy.typing import NDArray
from torch.nn import functional as F

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import VertebraConfig
from cspine_kit.core.metric import auc
from cspine_kit.core.numbers import IntArray
from cspine_kit.core.tables import MASK_COLUMNS, SPINE_BOX_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.levels import decode_levels
from cspine_kit.data.volumes.patch import from_shares
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.tasks.shown import native_rows
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
from cspine_kit.vision.views import StudyView, spaced_slices, study_view

BOX_LOSS = 2.0
"""Weight of the smooth-L1 box loss beside the visibility loss."""


def visible_term(outputs: Batch, batch: Batch, share: float = 1.0) -> Term:
    """Binary cross-entropy of visibility over the seven levels; targets may be soft."""
    target = batch["visible"]
    loss = F.binary_cross_entropy_with_logits(outputs["visible"], target, reduction="sum")
    return share * loss, target.new_tensor(target.numel())


class VertebraTask(Task):
    """Visibility: binary cross-entropy. Box: smooth L1 where a box is known."""

    rows_version: ClassVar[int] = 2
    grid: ClassVar[Grid] = "coarse"
    heads: ClassVar[dict[str, int]] = {"visible": 7, "box": 4}
    sided: ClassVar[bool] = True
    config: VertebraConfig

    def view(
        self, volume: Volume, levels: pd.DataFrame | None = None, stride: int = 1
    ) -> StudyView:
        """The middle of a coarse volume, slices a step apart."""
        rows = spaced_slices(volume.z_mm, self.config.slice_step_mm * stride)
        return study_view(volume, rows, np.tile(volume.middle_mm, (len(rows), 1)), self.config)

    def targets(self, view: StudyView, lesson: Lesson) -> Targets:
        """From the mask: "visible" (n, 7) and "box" (n, 4) in mm, NaN where there is no spine."""
        shown = native_rows(view, lesson.slices)
        return {
            "visible": (shown[list(MASK_COLUMNS)].to_numpy() > 0).astype(np.float32),
            "box": shown[list(SPINE_BOX_COLUMNS)].to_numpy(np.float32),
        }

    def draw(self, views: Sequence[StudyView], generator: np.random.Generator) -> list[IntArray]:
        """See `Task`."""
        return some_of_each(views, self.config.slices_per_study, generator)

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Term]:
        """See `Task`."""
        gap = F.smooth_l1_loss(outputs["box"], batch["box"], reduction="none", beta=0.05)
        known = batch["box_weight"][:, None]
        box = (BOX_LOSS * (gap * known).sum(), 4 * known.sum())
        return {"visible": visible_term(outputs, batch), "box": box}

    def figures(
        self, outputs: Outputs, targets: Outputs, study: NDArray[np.int64]
    ) -> dict[str, float]:
        """AUC of visibility, slice by slice."""
        shown = targets["visible"] > 0.5
        return {
            f"auc_{level}": auc(shown[:, k], outputs["visible"][:, k])
            for k, level in enumerate(LEVELS)
        }

    def rows(self, view: StudyView, outputs: Outputs) -> pd.DataFrame:
        """Table `vertebra`: visibility logits and the spine's box in mm."""
        boxes = [
            from_shares(view.volume, patch, shares.reshape(2, 2)[:, ::-1]).reshape(4)
            for patch, shares in zip(view.patches, outputs["box"], strict=True)
        ]
        rows = pd.DataFrame(outputs["visible"], columns=list(VERTEBRA_COLUMNS))
        rows[list(SPINE_BOX_COLUMNS)] = np.array(boxes)
        rows.insert(0, "position", view.slice_idx)
        rows.insert(1, "at_mm", view.at_mm)
        return rows


def decode_study(rows: pd.DataFrame) -> pd.DataFrame:
    """Seven ordered levels from the vertebra rows of one study (`data.levels.decode_levels`)."""
    columns = (["at_mm"], VERTEBRA_COLUMNS, SPINE_BOX_COLUMNS)
    at, logits, boxes = (rows[list(names)].to_numpy() for names in columns)
    return decode_levels(at[:, 0], logits, boxes)

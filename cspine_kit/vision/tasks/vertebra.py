"""The vertebra stage as a task: visibility of C1..C7, and the spine's box.

In: its section of the config. Out: heads, loss, figures. Example::

    VertebraTask(config.vertebra).heads["box"]        # 4
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.nn import functional as F

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import VertebraConfig
from cspine_kit.core.metric import auc
from cspine_kit.vision.tasks.task import Batch, Outputs, Term

BOX_LOSS = 2.0
"""Weight of the smooth-L1 box loss beside the visibility loss."""


def visible_term(outputs: Batch, batch: Batch, share: float = 1.0) -> Term:
    """Binary cross-entropy of visibility over the seven levels; targets may be soft."""
    target = batch["visible"]
    loss = F.binary_cross_entropy_with_logits(outputs["visible"], target, reduction="sum")
    return share * loss, target.new_tensor(target.numel())


@dataclass(frozen=True)
class VertebraTask:
    """Visibility: binary cross-entropy. Box: smooth L1 where a box is known."""

    config: VertebraConfig
    heads: ClassVar[dict[str, int]] = {"visible": 7, "box": 4}

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

"""A member that scores axial slices as a task: fracture of C1..C7 where a slice shows them.

In: its section of the config. Out: heads, loss, figures. Example::

    member, *_ = config.members.values()
    SlicesTask(member).heads["fracture"]              # 7
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.nn import functional as F

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import SlicesConfig
from cspine_kit.core.metric import auc, metric
from cspine_kit.core.numbers import FloatArray, noisy_or, sigmoid
from cspine_kit.vision.tasks.task import Batch, Outputs, Term
from cspine_kit.vision.tasks.vertebra import visible_term


@dataclass(frozen=True)
class SlicesTask:
    """Fracture: binary cross-entropy weighted by visibility, sum(v * bce) / sum(v), so that a slice
    is judged only on the vertebrae it shows (source document A). Visibility beside it.

    Fracture of a level is what all levels share plus what is its own (`any_fracture`).
    """

    config: SlicesConfig
    heads: ClassVar[dict[str, int]] = {"visible": 7, "fracture": 7, "any_fracture": 1}

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

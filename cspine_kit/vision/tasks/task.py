"""What the training loop asks of a kind of network.

In: a network's section of the config. Out: an object as below. Example::

    from cspine_kit.vision.tasks.kinds import task_of

    task = task_of(config.vertebra)
    task.heads                            # {"visible": 7, "box": 4}
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cspine_kit.core.numbers import FloatArray

Batch = dict[str, torch.Tensor]
Term = tuple[torch.Tensor, torch.Tensor]
"""A part of a loss: a sum over a batch, and what it is to be divided by."""

Outputs = dict[str, FloatArray]


class Task(Protocol):
    """One kind of network."""

    @property
    def heads(self) -> dict[str, int]:
        """Widths of the network's heads."""

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Term]:
        """Parts of the loss, each as (sum, weight); the loss is the sum of sum / weight.

        Sums and weights add up over parts of a batch: whoever trains on several of them divides by
        the weight of all. A weight depends on the batch alone, not on the outputs.
        """

    def figures(
        self, outputs: Outputs, targets: Outputs, study: NDArray[np.int64]
    ) -> dict[str, float]:
        """What the network is worth on studies it has not learned from.

        Args:
            outputs: of every head, (n, width).
            targets: of the same rows.
            study: (n,) which study a row belongs to.
        """

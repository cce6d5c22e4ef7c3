"""From a task's (sum, weight) parts to one loss over however many pieces a batch comes in.

In: a task, a batch. Out: weights of the whole batch, the loss of a piece. Example::

    from cspine_kit.vision.tasks.kinds import task_of

    task, batch = task_of(config.vertebra), {"visible": torch.ones(2, 7)}
    batch |= {"box": torch.ones(2, 4), "box_weight": torch.ones(2)}
    outputs = {"visible": torch.zeros(2, 7), "box": torch.zeros(2, 4)}
    loss_of(task.losses(outputs, batch), batch_weights(task, batch))
"""

import torch

from cspine_kit.vision.tasks.task import Batch, Task, Term

Weights = dict[str, torch.Tensor]


def batch_weights(task: Task, batch: Batch) -> Weights:
    """Weight of each part of the loss on this process's stacks, before any output is known."""
    said = task.blank(batch)
    return {name: weight.float() for name, (_, weight) in task.losses(said, batch).items()}


def loss_of(terms: dict[str, Term], weights: Weights) -> torch.Tensor:
    """The share of a piece in the loss of the batch whose weights are given; shares add up.

    A part that the whole batch says nothing of counts 0.
    """
    parts = [sum_ / weights[name].clamp_min(1.0) for name, (sum_, _) in terms.items()]
    return torch.stack(parts).sum()

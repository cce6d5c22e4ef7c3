"""One step of the optimizer, in as many pieces and processes as it takes, with one result.

In: this process's part of a batch. Out: changed weights, the loss of the whole batch. Example::

    from cspine_kit.vision.nets.kinds import build_net
    from cspine_kit.vision.tasks.kinds import task_of

    accelerator, task = Accelerator(cpu=True), task_of(dataset.config)
    model = build_net(dataset.config, task.heads, pretrained=False)
    optimizer = accelerator.prepare(torch.optim.AdamW(model.parameters()))
    stepper = Stepper(accelerator, model, optimizer, task, dataset.config, parts=2)
    loss = stepper(torch.utils.data.default_collate([dataset[0], dataset[1]]), seed=1)

Gradients of pieces and processes are added up before the optimizer sees them, every piece divided
by the weight of the whole batch: accumulation, halved batches and several processes give what one
process with the whole batch gives, but for rounding and a BatchNorm's statistics.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from cspine_kit.core.config import ModelConfig
from cspine_kit.vision.inputs.augment import augment_batch
from cspine_kit.vision.nets.heads import inputs_of
from cspine_kit.vision.passes import is_out_of_memory
from cspine_kit.vision.tasks.task import Batch, Task
from cspine_kit.vision.training.losses import Weights, batch_weights, loss_of
from cspine_kit.vision.training.processes import add_up

log = logging.getLogger(__name__)


@dataclass
class Stepper:
    """What a step needs.

    `parts`: pieces that this process's part of a batch is computed in; doubled where the memory of
    any process does not suffice.
    """

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: Any
    task: Task
    config: ModelConfig
    parts: int

    def __call__(self, batch: Batch, seed: int) -> torch.Tensor:
        """One step; returns the loss of the whole batch, still on the device.

        Args:
            batch: this process's stacks and targets, on the device.
            seed: of all random draws of this step.

        Raises:
            RuntimeError: not even single stacks fit the memory.
        """
        here = self.accelerator.process_index
        n = len(batch["stack"])
        generator = torch.Generator(self.accelerator.device).manual_seed(seed)
        total = n * self.accelerator.num_processes
        batch = augment_batch(batch, self.config, generator, first=here * n, total=total)
        weights = batch_weights(self.task, batch)
        add_up(list(weights.values()))
        kept = [buffer.clone() for buffer in self.model.buffers()]
        while True:
            torch.manual_seed(seed + here)  # dropout draws from the global generator
            loss, failed = self._gradients(batch, weights)
            if not self._share(loss, failed is not None):
                break
            if self.parts >= n:
                raise failed or RuntimeError("another process has no memory for a single stack")
            self._halve(n, kept)
        if self.config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _gradients(
        self, batch: Batch, weights: Weights
    ) -> tuple[torch.Tensor, RuntimeError | MemoryError | None]:
        """Gradients of this process's stacks and their share in the loss, or what went wrong."""
        n = len(batch["stack"])
        size = -(-n // self.parts)
        loss = torch.zeros((), device=self.accelerator.device)
        try:
            for start in range(0, n, size):
                piece = {name: value[start : start + size] for name, value in batch.items()}
                with self.accelerator.autocast():
                    outputs = self.model(*inputs_of(piece))
                exact = {name: value.float() for name, value in outputs.items()}
                share = loss_of(self.task.losses(exact, piece), weights)
                self.accelerator.backward(share)
                loss += share.detach()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return loss, error.with_traceback(None)  # its frames hold the piece's tensors
        return loss, None

    def _share(self, loss: torch.Tensor, short: bool) -> bool:
        """Add up gradients and loss over processes, average statistics; True where memory was too
        short in any of them."""
        if self.accelerator.num_processes == 1:
            return short
        trained = [p for p in self.model.parameters() if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        statistics = [b for b in self.model.buffers() if b.is_floating_point()]
        anywhere = loss.new_tensor(float(short))
        add_up([*grads, *statistics, loss, anywhere])
        for value in statistics:
            value.div_(self.accelerator.num_processes)
        return bool(anywhere)

    def _halve(self, n: int, kept: list[torch.Tensor]) -> None:
        """Begin the step anew in twice as many pieces."""
        for buffer, old in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(old)
        self.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.parts = min(2 * self.parts, n)
        log.warning(
            "no memory for %d stacks at once: the batch is computed in %d parts from here on, with "
            "the same result",
            n,
            self.parts,
        )

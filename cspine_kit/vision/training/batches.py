"""Which stacks each step of a training sees, and the loader that brings them.

In: a dataset, a seed. Out: batches, on the device, this process's part of each. Example::

    steps = Steps(dataset, dataset.config.model_copy(update={"epochs": 1}), seed=1)
    len(steps.items(0)), steps.total

The order follows from (seed, epoch) alone: a training that goes on from any step meets the batches
it would have met.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import DataLoader

from cspine_kit.core.config import MemberConfig, ModelConfig
from cspine_kit.core.errors import DataError
from cspine_kit.core.runs import derive_seed
from cspine_kit.vision.inputs.dataset import Sample, StackDataset

_HALVES = {"all": None, "same_half": (0, 0), "other_half": (0, 1)}
"""By `head_studies`, of which half the backbone's epochs and those of the heads show studies."""


class Steps:
    """The batches of a training.

    Attributes:
        batch_size: stacks of one step, over all processes.
        per_epoch: steps of one epoch. What is left over at its end is not shown: a last batch of
            one stack has no batch statistics. Where halves are shown (`head_studies`), as many as
            the smaller one has.
        total: steps of the training.
        heads_from: the first one that leaves the backbone as it is (`head_epochs`).
    """

    drop_last = True

    def __init__(
        self, dataset: StackDataset, config: ModelConfig, *, seed: int, processes: int = 1
    ) -> None:
        self.dataset, self.seed, self.first = dataset, seed, 0
        self._epoch = lru_cache(maxsize=2)(self._drawn)
        rest = config.head_epochs if isinstance(config, MemberConfig) else 0
        self._halves = _HALVES[config.head_studies] if isinstance(config, MemberConfig) else None
        self._plain_epochs = config.epochs - rest
        if config.batch_size % processes:
            raise DataError(
                f"batch_size {config.batch_size} does not divide among {processes} processes"
            )
        items = min(len(self._epoch(0)), len(self._epoch(config.epochs - 1)))
        size = min(config.batch_size, items)
        self.batch_size = size - size % processes
        if self.batch_size == 0:
            raise DataError(f"{items} stacks in an epoch are too few for {processes} processes")
        self.per_epoch = items // self.batch_size
        self.total = config.epochs * self.per_epoch
        self.heads_from = self.total - rest * self.per_epoch

    def _drawn(self, epoch: int) -> list[int]:
        generator = np.random.default_rng(derive_seed(self.seed, "epoch", epoch))
        if self._halves is None:
            return self.dataset.draw(generator)
        return self.dataset.draw(generator, self._halves[epoch >= self._plain_epochs])

    def items(self, step: int) -> list[int]:
        """Items of the dataset that one step sees."""
        epoch, batch = divmod(step, self.per_epoch)
        return self._epoch(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]

    def studies(self, step: int) -> list[str]:
        """Studies that one step sees."""
        views = {self.dataset.rows[item][0] for item in self.items(step)}
        return sorted(self.dataset.views[view].volume.study_uid for view in views)

    def __len__(self) -> int:
        return self.total - self.first

    def __iter__(self) -> Iterator[list[int]]:
        """Items of every step from `first` on."""
        return (self.items(step) for step in range(self.first, self.total))

    def loader(self, workers: int, *, pin: bool) -> DataLoader[Sample]:
        """One loader over all steps from `first` on: workers start once, and work ahead."""
        return DataLoader(
            self.dataset,
            batch_sampler=self,
            num_workers=workers,
            pin_memory=pin,
        )

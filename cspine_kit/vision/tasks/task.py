"""What training, out-of-fold run and kernel ask of a kind of network.

In: a network's section of the config. Out: a `Task`. Example::

    from cspine_kit.vision.tasks.kinds import task_of

    task = task_of(config.vertebra)
    view = task.view(volume, None)
    task.heads, len(view)                 # {"visible": 7, "box": 4}, ...

To add a kind: its class here, its section in `core.config`, its line in `tasks.kinds`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from cspine_kit.core.config import ClassifierConfig, ModelConfig
from cspine_kit.core.numbers import FloatArray, IntArray
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.nets.heads import LESIONS, learned_maps

Batch = dict[str, torch.Tensor]
Term = tuple[torch.Tensor, torch.Tensor]
"""A part of a loss: a sum over a batch, and what it is to be divided by."""

Outputs = dict[str, FloatArray]
"""Of every head, a row for each unit."""

Targets = dict[str, NDArray[np.float32]]

Grid = Literal["coarse", "fine"]


@dataclass(frozen=True)
class Lesson:
    """What is known of a training study.

    Attributes:
        slices: its rows of the `slices` table.
        label: its row of the `studies` table.
        rows: what vertebra model k says of its slices; in the vertebra stage itself, what the round
            before says of a study without a mask, else None.
        weight: of its mask, where another tool made it.
        said: its rows of `oof_slices` by a network of the same member's round before, which has not
            learned from the study.
    """

    slices: pd.DataFrame
    label: "pd.Series"
    rows: pd.DataFrame | None = None
    weight: float = 1.0
    said: pd.DataFrame | None = None


class Task(ABC):
    """One kind of network.

    Attributes:
        grid: which volume of a study it looks at.
        heads: widths of the network's heads.
        sided: True where a head speaks of left and right, so that a mirrored image is another one.
        tables: further tables that it fills, where it judges more than slices (`SCORES`).
        rows_version: raised when the same network would give other rows of the same volume: another
            choice or cut of patches, other means over views.
        config: the network.
    """

    rows_version: ClassVar[int]
    grid: ClassVar[Grid]
    heads: ClassVar[dict[str, int]]
    sided: ClassVar[bool]
    tables: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    @property
    def outputs(self) -> dict[str, int]:
        """Widths of the heads that this config asks for."""
        return self.heads

    @property
    def reads_boxes(self) -> bool:
        """True where fracture boxes are learned from."""
        config = self.config
        softened = isinstance(config, ClassifierConfig) and config.slice_labels == "boxes"
        return softened or LESIONS in learned_maps(config)

    @property
    def sight(self) -> str:
        """Equal for networks that see the same of every study."""
        seen = {"in_chans", "stack_step_mm", "slice_step_mm", "field_mm", "size_px", "windows"}
        seen |= {"plane", "across_mm", "slices_per_level", "header", "levels_input", "background"}
        return f"{type(self).__name__} {self.config.model_dump_json(include=seen)}"

    @abstractmethod
    def view(self, volume: Volume, levels: pd.DataFrame | None, stride: int = 1) -> StudyView:
        """What the network looks at in a study.

        Args:
            volume: of this task's grid.
            levels: the study's seven levels; the vertebra stage has none yet.
            stride: steps between slices; above 1 only where the kernel's time runs short.

        Raises:
            StudyError: there is nothing to look at.
        """

    @abstractmethod
    def targets(self, view: StudyView, lesson: Lesson) -> Targets:
        """What is to be learned, an array for each target with a row for each unit."""

    @abstractmethod
    def draw(self, views: Sequence[StudyView], generator: np.random.Generator) -> list[IntArray]:
        """Units of each study that an epoch of a training shows; as many in every epoch."""

    def blank(self, batch: Batch) -> Batch:
        """Outputs that say nothing: from them the weights of the losses are known."""
        some = next(iter(batch.values()))
        said = {n: torch.zeros(len(some), w, device=some.device) for n, w in self.outputs.items()}
        return said | self.blank_maps(batch)

    def blank_maps(self, batch: Batch) -> Batch:
        """The same of maps of pixels, where the batch has them."""
        return {name: batch[name].float() for name in learned_maps(self.config) if name in batch}

    @abstractmethod
    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Term]:
        """Parts of the loss, each as (sum, weight); the loss is the sum of sum / weight.

        Sums and weights add up over parts of a batch: whoever trains on several of them divides by
        the weight of all. A weight depends on the batch alone, not on the outputs.
        """

    @abstractmethod
    def figures(
        self, outputs: Outputs, targets: Outputs, study: NDArray[np.int64]
    ) -> dict[str, float]:
        """What the network is worth on studies it has not learned from.

        Args:
            outputs: of every head, a row for each unit.
            targets: of the same rows.
            study: (n,) which study a row belongs to.
        """

    @abstractmethod
    def rows(self, view: StudyView, outputs: Outputs) -> pd.DataFrame:
        """A study's rows of the table that this kind fills, without its name and folds."""

    def scores(self, view: StudyView, outputs: Outputs) -> dict[str, pd.DataFrame]:
        """A study's rows of each of `tables`."""
        return {}


def map_terms(outputs: Batch, batch: Batch, config: ModelConfig) -> dict[str, Term]:
    """Losses of the maps that are learned; of none that is not asked for, as in validation."""
    return {
        name: _map_term(outputs[name], batch[name], batch[f"{name}_weight"], share)
        for name, share in learned_maps(config).items()
        if name in outputs and name in batch
    }


def _map_term(logits: torch.Tensor, drawn: torch.Tensor, known: torch.Tensor, share: float) -> Term:
    """Cross-entropy and Dice of each patch's map at the resolution of the feature map.

    Args:
        logits: (b, patches, h', w').
        drawn: (b, patches, h, w) in 0..1.
        known: (b,) or (b, patches) how far it is known.
        share: weight of the loss.
    """
    target = F.adaptive_avg_pool2d(drawn.float(), (logits.shape[2], logits.shape[3]))
    both = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(2, 3))
    probs = torch.sigmoid(logits)
    overlap = 2.0 * (probs * target).sum(dim=(2, 3)) + 1.0
    both = both + 1.0 - overlap / ((probs + target).sum(dim=(2, 3)) + 1.0)
    each = both if known.ndim == both.ndim else both.mean(dim=1)
    return share * (each * known).sum(), known.sum()


SCORES = ("oof_levels", "oof_studies", "oof_boxes")
"""Tables in which members speak of more than slices."""


def some_of_each(
    views: Sequence[StudyView], count: int, generator: np.random.Generator
) -> list[IntArray]:
    """Up to `count` units of every study, at random."""
    return [generator.permutation(len(view))[:count] for view in views]

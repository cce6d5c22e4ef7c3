"""What networks see of studies: a patch of parallel planes for each chosen slice.

In: a `Volume`, the slices to look at, centers in mm and targets. Out: tensors. Example::

    rows = spaced_slices(volume.z_mm, 4.0)
    centers = np.tile(volume.middle_mm, (len(rows), 1))
    view = study_view(volume, rows, centers, config.vertebra)
    stack = draw(volume, view.patches[0], config.vertebra.windows)  # (planes, size_px, size_px)

Training, out-of-fold prediction and the kernel draw the same patches with the same `draw`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cspine_kit.core.config import ModelConfig, SlicesConfig
from cspine_kit.core.numbers import FloatArray, IntArray
from cspine_kit.data.volumes.patch import Patch, draw, parallel, to_shares
from cspine_kit.data.volumes.volume import Volume, nearest_slices

Sample = dict[str, torch.Tensor]


def spaced_slices(z_mm: FloatArray, step_mm: float) -> IntArray:
    """Slices about `step_mm` apart (all of them where they lie further apart than that).

    Args:
        z_mm: (nz,) descending positions.
        step_mm: of a grid of whole multiples of it, so that the choice depends on the scan alone
            and not on which of its slices a volume keeps.

    Returns:
        Ascending slice indices; the nearest slice to each point of the grid.
    """
    first, last = np.floor(z_mm[0] / step_mm), np.ceil(z_mm[-1] / step_mm)
    grid = step_mm * np.arange(first, last - 0.5, -1.0)
    return np.unique(nearest_slices(z_mm, grid if len(grid) else z_mm[:1]))


@dataclass
class StudyView:
    """What a network sees of one study: chosen slices, and a patch for each.

    `indices` are those of the volume. `targets` holds per-slice arrays for training.
    """

    volume: Volume
    indices: IntArray
    patches: list[Patch]
    targets: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def at_mm(self) -> FloatArray:
        """z of the chosen slices, descending."""
        return self.volume.z_mm[self.indices]

    @property
    def slice_idx(self) -> IntArray:
        """Native index of the chosen slices (of the first one where several were averaged)."""
        return self.volume.first_slice + self.volume.group * self.indices


def study_view(
    volume: Volume, indices: IntArray, centers_mm: FloatArray, config: ModelConfig
) -> StudyView:
    """Axial patches of a network around chosen slices.

    Args:
        volume: the study.
        indices: (n,) of its slices.
        centers_mm: (n, 2) y, x of their middles.
        config: of the network.
    """
    field_mm, size_px = (config.field_mm,) * 2, (config.size_px,) * 2
    offsets = parallel(config.in_chans, config.stack_step_mm)
    patches = [
        Patch("axial", (float(z), float(y), float(x)), field_mm, size_px, offsets)
        for z, (y, x) in zip(volume.z_mm[indices], centers_mm, strict=True)
    ]
    return StudyView(volume, indices, patches)


class StackDataset(Dataset[Sample]):
    """Every chosen slice of several studies as a network sees it; the trainer augments.

    A sample holds "stack" uint8 (in_chans x windows, size, size) and the view's targets. A target
    "box" (y0, x0, y1, x1 in mm, NaN where there is none) becomes x0, y0, x1, y1 as shares of the
    patch, and "box_weight" 0 or 1.
    """

    def __init__(self, views: Sequence[StudyView], config: ModelConfig) -> None:
        self.views = list(views)
        self.config = config
        self.rows = [(v, r) for v, view in enumerate(self.views) for r in range(len(view))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> Sample:
        study, row = self.rows[item]
        view = self.views[study]
        sample = {
            name: torch.from_numpy(value[row : row + 1])[0] for name, value in view.targets.items()
        }
        stack = draw(view.volume, view.patches[row], self.config.windows)
        sample["stack"] = torch.from_numpy(stack)
        if "box" in view.targets:
            box = self._box(view, row)
            known = torch.isfinite(box).all()
            sample["box"] = torch.where(known, box, torch.tensor([0.0, 0.0, 1.0, 1.0]))
            sample["box_weight"] = known.float()
        return sample

    def _box(self, view: StudyView, row: int) -> torch.Tensor:
        corners = view.targets["box"][row].reshape(2, 2)
        shares = to_shares(view.volume, view.patches[row], corners)
        return torch.from_numpy(shares[:, ::-1].reshape(4).astype(np.float32))

    def draw(self, generator: np.random.Generator) -> list[int]:
        """Items of one epoch, shuffled: up to `slices_per_study` slices of every study.

        Of a fractured study, `fractured_share` of them are first taken from slices that show a
        fractured level.
        """
        chosen: list[int] = []
        start = 0
        for view in self.views:
            order = generator.permutation(len(view))
            if "fracture" in view.targets and isinstance(self.config, SlicesConfig):
                shown = (view.targets["visible"] * view.targets["fracture"]).max(axis=1)[
                    order
                ] > 0.5
                reserved = round(self.config.slices_per_study * self.config.fractured_share)
                first = np.flatnonzero(shown)[:reserved]
                order = np.concatenate([order[first], np.delete(order, first)])
            chosen.extend(start + order[: self.config.slices_per_study])
            start += len(view)
        return [int(i) for i in generator.permutation(chosen)]

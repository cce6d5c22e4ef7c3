"""Every patch of several studies as a network sees it, for a training.

In: `StudyView`s with targets. Out: tensors. Example::

    dataset[0]["stack"].shape, dataset.draw(np.random.default_rng(1))[:3]
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from cspine_kit.core.config import ModelConfig, SlicesConfig
from cspine_kit.data.volumes.patch import to_shares
from cspine_kit.vision.views import StudyView

Sample = dict[str, torch.Tensor]


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
        sample["stack"] = torch.from_numpy(view.drawn(row, self.config.windows))
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

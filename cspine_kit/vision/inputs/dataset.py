"""Every unit of several studies as a network sees it, for a training.

In: `StudyView`s with targets. Out: tensors. Example::

    dataset[0]["stack"].shape, dataset.draw(np.random.default_rng(1))[:3]
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.config import ModelConfig, SegmentConfig
from cspine_kit.core.errors import DataError
from cspine_kit.data.volumes.patch import draw_mask, to_shares
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.nets.heads import FACTS, LESIONS, MASK, learned_maps
from cspine_kit.vision.nets.unet import LABELS
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.lesions import BOXES, drawn_boxes

Sample = dict[str, torch.Tensor]


class StackDataset(Dataset[Sample]):
    """Every unit of several studies as a network sees it; the trainer augments.

    A sample holds "stack" uint8 (patches, in_chans x windows, size, size) and the view's targets. A
    target
    "box" (y0, x0, y1, x1 in mm, NaN where there is none) becomes x0, y0, x1, y1 as shares of the
    patch, and "box_weight" 0 or 1. Where masks are learned, "mask" (patches, size, size) and
    "mask_weight" stand beside them; where boxes are, "lesions" (patches, size, size) in place of
    boxes in mm; where a U-Net learns, "labels" (size, size);
    where headers or levels are read, "facts".
    """

    def __init__(self, views: Sequence[StudyView], config: ModelConfig) -> None:
        self.views = list(views)
        self.config = config
        self.task = task_of(config)
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
        maps = learned_maps(self.config)
        if MASK in maps:
            sample |= self._mask(view, row)
        if LESIONS in maps:
            del sample[BOXES]
            sample[LESIONS] = torch.from_numpy(drawn_boxes(view, row))
        if view.facts is not None:
            sample[FACTS] = torch.from_numpy(view.facts[row])
        if isinstance(self.config, SegmentConfig):
            labels = draw_mask(view.volume, view.patches[row])
            sample[LABELS] = torch.from_numpy(labels[len(labels) // 2].copy())
        if "box" in view.targets:
            box = self._box(view, row)
            known = torch.isfinite(box).all()
            sample["box"] = torch.where(known, box, torch.tensor([0.0, 0.0, 1.0, 1.0]))
            sample["box_weight"] = known.float()
        return sample

    def _mask(self, view: StudyView, unit: int) -> Sample:
        """Where C1 to C7 lie in the middle plane of each patch, and 0 or 1: is there a mask."""
        shape = (view.per_unit, self.config.size_px, self.config.size_px)
        shown = np.zeros(shape, np.uint8)
        if view.volume.mask is not None:
            for plane, patch in zip(shown, view.of_unit(unit), strict=True):
                labels = draw_mask(view.volume, patch)[len(patch.offsets_mm) // 2]
                plane[:] = (labels > 0) & (labels <= N_LEVELS)
        known = torch.tensor(float(view.volume.mask is not None))
        return {MASK: torch.from_numpy(shown), f"{MASK}_weight": known}

    def _box(self, view: StudyView, row: int) -> torch.Tensor:
        corners = view.targets["box"][row].reshape(2, 2)
        shares = to_shares(view.volume, view.patches[row], corners)
        return torch.from_numpy(shares[:, ::-1].reshape(4).astype(np.float32))

    def draw(self, generator: np.random.Generator, half: int | None = None) -> list[int]:
        """Items of one epoch, shuffled; the kind of network chooses them, of the studies of one
        half where that is asked for."""
        starts = np.cumsum([0, *(len(view) for view in self.views)])
        asked = [v for v, view in enumerate(self.views) if half is None or view.half == half]
        if not asked:
            raise DataError(f"no study of half {half} to learn from; use more folds (folds.n)")
        drawn = self.task.draw([self.views[v] for v in asked], generator)
        chosen = [starts[v] + rows for v, rows in zip(asked, drawn, strict=True)]
        return [int(i) for i in generator.permutation(np.concatenate(chosen))]

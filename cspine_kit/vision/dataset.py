"""2.5D stacks: neighboring slices chosen in millimeters, cropped around the spine.

In: a `Volume` (data room), the slices to look at, crop centers and targets. Out: tensors. Example::

    rows = spaced_slices(volume.z_mm, 4.0)
    view = StudyView(volume, rows, centers_px=np.full((len(rows), 2), 32.0))
    stack = view.stack(0, config.model)      # (in_chans, size_px, size_px) uint8

The same `StudyView.stack` feeds training, out-of-fold prediction and the kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cspine_kit.core.config import ModelConfig, SlicesConfig
from cspine_kit.data.volumes.volume import Volume, interpolation

Sample = dict[str, torch.Tensor]


def spaced_slices(z_mm: NDArray[np.float64], step_mm: float) -> NDArray[np.int64]:
    """Native slices about `step_mm` apart (all of them where the study is coarser than that).

    Args:
        z_mm: (nz,) descending positions.

    Returns:
        Ascending slice indices; the nearest slice to each point of a `step_mm` grid.
    """
    grid = np.arange(z_mm[0], z_mm[-1] - 1e-6, -step_mm)
    return np.unique(nearest_slices(z_mm, grid))


def nearest_slices(z_mm: NDArray[np.float64], at_mm: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the slice nearest to each position; ends clamp. `z_mm` descends."""
    below = np.clip(np.searchsorted(-z_mm, -at_mm), 0, len(z_mm) - 1)
    above = np.maximum(below - 1, 0)
    nearer_above = np.abs(z_mm[above] - at_mm) <= np.abs(z_mm[below] - at_mm)
    chosen: NDArray[np.int64] = np.where(nearer_above, above, below).astype(np.int64)
    return chosen


@dataclass
class StudyView:
    """What a network sees of one study: chosen slices and a crop center for each.

    `centers_px` is (n, 2) y, x in cached pixels. `targets` holds per-slice arrays for training.
    """

    volume: Volume
    slice_idx: NDArray[np.int64]
    centers_px: NDArray[np.float64]
    targets: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    _neighbors: dict[tuple[int, float], NDArray[np.int64]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.slice_idx)

    def corner_px(self, row: int, side_px: int) -> NDArray[np.int64]:
        """First row and column of the crop of one chosen slice, in cached pixels."""
        return np.round(self.centers_px[row] - (side_px - 1) / 2).astype(np.int64)

    def neighbors(self, config: ModelConfig) -> NDArray[np.int64]:
        """Slices around every chosen one, (n, in_chans), the most cranial first."""
        key = (config.in_chans, config.stack_step_mm)
        if key not in self._neighbors:
            z_mm, reach = self.volume.z_mm, config.in_chans // 2
            offsets = config.stack_step_mm * np.arange(reach, -reach - 1, -1)
            self._neighbors[key] = nearest_slices(z_mm, z_mm[self.slice_idx, None] + offsets)
        return self._neighbors[key]

    def stack(self, row: int, config: ModelConfig) -> NDArray[np.uint8]:
        """The stack around one chosen slice, (in_chans, size_px, size_px) uint8."""
        wanted = self.neighbors(config)[row]
        side = crop_side_px(self.volume, config)
        y, x = (int(v) for v in self.corner_px(row, side))
        crop = self.volume.voxels[
            wanted, max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)
        ]
        if crop.shape[1:] != (side, side):  # over an edge: outside is air
            inside, crop = crop, np.zeros((len(wanted), side, side), dtype=np.uint8)
            down, right = max(-y, 0), max(-x, 0)
            _, rows, cols = inside.shape
            crop[:, down : down + rows, right : right + cols] = inside
        if side == config.size_px:
            return crop
        method = interpolation(side / config.size_px)
        size = (config.size_px, config.size_px)
        return np.stack([cv2.resize(plane, size, interpolation=method) for plane in crop])


def crop_side_px(volume: Volume, config: ModelConfig) -> int:
    """Side of the model's field in cached pixels."""
    return round(config.field_mm / float(volume.spacing_mm[1]))


class StackDataset(Dataset[Sample]):
    """Every chosen slice of several studies as a network sees it; the trainer augments.

    A sample holds "stack" uint8 (in_chans, size, size) and the view's targets. A target "box"
    (y0, x0, y1, x1 in cached pixels, NaN where there is none) becomes x0, y0, x1, y1 as shares of
    the crop, and "box_weight" 0 or 1.
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
        sample["stack"] = torch.from_numpy(view.stack(row, self.config))
        if "box" in view.targets:
            box = self._box(view, row)
            known = torch.isfinite(box).all()
            sample["box"] = torch.where(known, box, torch.tensor([0.0, 0.0, 1.0, 1.0]))
            sample["box_weight"] = known.float()
        return sample

    def _box(self, view: StudyView, row: int) -> torch.Tensor:
        side = crop_side_px(view.volume, self.config)
        corner = view.corner_px(row, side)
        y0, x0, y1, x1 = view.targets["box"][row]
        box = np.array([x0 - corner[1], y0 - corner[0], x1 - corner[1], y1 - corner[0]])
        return torch.from_numpy((box / side).astype(np.float32))

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

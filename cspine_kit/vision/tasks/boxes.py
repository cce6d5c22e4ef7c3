"""A member that finds fractures on slices as boxes, beside judging the slices.

In: its section of the config. Out: what is seen, learned and said. Example::

    task = BoxesTask(config.boxes)
    view = task.view(fine, own_levels)
    n = len(view)
    outputs = {"center": np.full((n, 8, 8), -3.0), "extent": np.full((n, 4, 8, 8), 0.1)}
    task.scores(view, outputs)["oof_boxes"][["slice_idx", "x", "width", "score"]]

Which slices surely show no fracture says `known_boxes`.
"""

from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from torch.nn import functional as F

from cspine_kit.core.config import BoxesConfig
from cspine_kit.core.numbers import BoolArray, FloatArray, sigmoid
from cspine_kit.data.volumes.patch import from_shares
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.tasks.lesions import known_boxes
from cspine_kit.vision.tasks.slices import SlicesTask
from cspine_kit.vision.tasks.task import Batch, Lesson, Outputs, Targets, Term

EXTENT_LOSS = 5.0
"""Weight of how far boxes reach beside where they are."""

MOST, LEAST = 3, 0.05
"""Boxes of a slice, and their scores; the best one is always told."""


class BoxesTask(SlicesTask):
    """Slices as `SlicesTask` learns them; centers by the focal loss of points, extents by L1."""

    rows_version: ClassVar[int] = 1
    tables: ClassVar[tuple[str, ...]] = ("oof_boxes",)
    config: BoxesConfig  # type: ignore[assignment]

    @property
    def reads_boxes(self) -> bool:
        """See `Task`."""
        return True

    def targets(self, view: StudyView, lesson: Lesson) -> Targets:
        """Those of slices, "box" (n, 4) y0, x0, y1, x1 in mm, NaN where there is none, and "sound"
        (n,): 1 where there is surely none."""
        usual = super().targets(view, lesson)
        box, sound = known_boxes(view, lesson, usual["visible"])
        return {**usual, "box": box, "sound": sound.astype(np.float32)}

    def wanted(self, view: StudyView) -> BoolArray:
        """Slices with a box, where a study has any."""
        boxed = np.asarray(np.isfinite(view.targets["box"]).all(axis=1))
        return boxed if boxed.any() else super().wanted(view)

    def blank(self, batch: Batch) -> Batch:
        """See `Task`."""
        n = len(batch["box"])
        nothing = {"center": batch["box"].new_zeros(n, 1, 1)}
        return {**super().blank(batch), **nothing, "extent": batch["box"].new_zeros(n, 4, 1, 1)}

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Term]:
        """See `Task`."""
        center, extent = outputs["center"], outputs["extent"]
        x0, y0, x1, y1 = batch["box"][:, :, None, None].unbind(dim=1)
        # A box that augmentation has moved out of the patch says nothing.
        inside = (x1 - x0 > 0.0) & (y1 - y0 > 0.0)
        boxed = (batch["box_weight"] * inside[:, 0, 0])[:, None, None]
        rows, cols = center.shape[1:]
        y = ((torch.arange(rows, device=center.device) + 0.5) / rows)[None, :, None]
        x = ((torch.arange(cols, device=center.device) + 0.5) / cols)[None, None, :]
        middle_y, middle_x = (y0 + y1) / 2, (x0 + x1) / 2
        off_y = (y - middle_y) / ((y1 - y0) / 6).clamp_min(0.5 / rows)
        off_x = (x - middle_x) / ((x1 - x0) / 6).clamp_min(0.5 / cols)
        heat = torch.exp(-(off_y**2 + off_x**2) / 2) * boxed
        here = ((y - middle_y).abs() <= 0.5 / rows) & ((x - middle_x).abs() <= 0.5 / cols)
        here = here * boxed
        prob = torch.sigmoid(center)
        found = here * (1 - prob) ** 2 * F.softplus(-center)
        false = (1 - here) * (1 - heat) ** 4 * prob**2 * F.softplus(center)
        known = boxed + batch["sound"][:, None, None]
        count = boxed.sum()
        reach = torch.stack([x - x0 + 0 * y, y - y0 + 0 * x, x1 - x + 0 * y, y1 - y + 0 * x], 1)
        near = torch.maximum(heat * (heat > 0.5), here)
        share = near / near.sum(dim=(1, 2), keepdim=True).clamp_min(1e-6)
        gap = ((extent - reach.clamp(0.0, 1.0)).abs().sum(dim=1) * share).sum()
        weight = self.config.lesion_loss
        return {
            **super().losses(outputs, batch),
            "center": (weight * ((found + false) * known).sum(), count),
            "extent": (weight * EXTENT_LOSS * gap, count),
        }

    def figures(
        self, outputs: Outputs, targets: Outputs, study: NDArray[np.int64]
    ) -> dict[str, float]:
        """Those of slices, and how far the best box of a boxed slice overlaps with the right one,
        area of both over that of either."""
        usual, boxed = super().figures(outputs, targets, study), targets["box_weight"] > 0.5
        if not boxed.any():
            return usual
        found = _peaks(outputs["center"][boxed], outputs["extent"][boxed])
        best = np.array([boxes[0, :4] for boxes in found])
        return {**usual, "iou": float(overlaps(best, targets["box"][boxed]).mean())}

    def scores(self, view: StudyView, outputs: Outputs) -> dict[str, pd.DataFrame]:
        """Table `oof_boxes`, in pixels of the study's own frame: the best box of every slice, and
        up to two others that are likely."""
        rows = []
        frame, pitch = view.volume.lattice.frame_px[::-1], view.volume.lattice.pitch_mm
        found = _peaks(outputs["center"], outputs["extent"])
        places = zip(view.patches, view.slice_idx, view.at_mm, found, strict=True)
        for patch, slice_idx, at_mm, boxes in places:
            corners = boxes[:, :4].reshape(-1, 2)[:, ::-1]
            px = from_shares(view.volume, patch, corners) / pitch + 0.5
            edges = np.clip(px[:, ::-1], 0.0, frame).reshape(-1, 4)
            for n, ((x0, y0, x1, y1), score) in enumerate(zip(edges, boxes[:, 4], strict=True)):
                place = {"slice_idx": slice_idx, "n": n, "at_mm": at_mm}
                box = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "score": score}
                rows.append({**place, **box})
        return {"oof_boxes": pd.DataFrame(rows)}


def _peaks(center: FloatArray, extent: FloatArray) -> list[FloatArray]:
    """Boxes of every slice, the best first: (boxes, 5) x0, y0, x1, y1 as shares, and the score."""
    score = sigmoid(center)
    rows, cols = score.shape[1:]
    peak = score == maximum_filter(score, size=(1, 3, 3))
    found = []
    for scores, reach, top in zip(score, extent, peak, strict=True):
        at = np.flatnonzero(top)
        at = at[np.argsort(-scores.ravel()[at], kind="stable")][:MOST]
        at = at[: max(1, int((scores.ravel()[at] >= LEAST).sum()))]
        y, x = (at // cols + 0.5) / rows, (at % cols + 0.5) / cols
        left, above, right, below = reach.reshape(4, -1)[:, at]
        sides = (x - left, y - above, x + right, y + below, scores.ravel()[at])
        found.append(np.column_stack(sides))
    return found


def overlaps(one: FloatArray, other: FloatArray) -> FloatArray:
    """(n,) area of both over that of either, of boxes (n, 4) x0, y0, x1, y1."""
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    both = np.clip(high - low, 0.0, None).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    share: FloatArray = both / np.maximum(areas[0] + areas[1] - both, 1e-12)
    return share

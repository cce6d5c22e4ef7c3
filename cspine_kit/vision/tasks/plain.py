"""A member that says of a slice only whether anything on it is broken, from the image alone.

In: a section of kind `slices` with `one_output`. Out: what is seen, learned and said. Example::

    task = PlainTask(config.model.model_copy(update={"one_output": True}))
    view = task.view(fine, own_levels)
    rows = task.rows(view, {"fracture": np.zeros((len(view), 1))})
    rows[["fracture_C1", "fracture_C7"]].nunique().tolist()        # one logit for all: [1, 1]

The first of source document B's three heads. Which vertebra a slice shows follows from the levels
of the vertebra stage.
"""

from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from cspine_kit.core.anatomy import AXIAL, N_LEVELS
from cspine_kit.core.metric import auc
from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.spine import SEEN, UNSEEN, inside_levels
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.tasks.slices import SlicesTask
from cspine_kit.vision.tasks.task import Batch, Outputs, Term, map_terms


class PlainTask(SlicesTask):
    """Fracture of anything that a slice shows: binary cross-entropy."""

    rows_version: ClassVar[int] = 1
    heads: ClassVar[dict[str, int]] = {"fracture": 1}

    def view(self, volume: Volume, levels: pd.DataFrame | None, stride: int = 1) -> StudyView:
        """As `SlicesTask`, and which levels each patch shows by their ranges."""
        view = super().view(volume, levels, stride)
        view.shown = _shown(view, levels)
        return view

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Term]:
        """See `Task`."""
        broken, known = _any_broken(batch["visible"], batch["fracture"])
        factor = broken.new_tensor(self.config.positive_weight)
        loss = F.binary_cross_entropy_with_logits(
            outputs["fracture"][:, 0], broken, pos_weight=factor, reduction="none"
        )
        return {
            "fracture": ((loss * known).sum(), known.sum()),
            **map_terms(outputs, batch, self.config),
        }

    def figures(
        self, outputs: Outputs, targets: Outputs, study: NDArray[np.int64]
    ) -> dict[str, float]:
        """AUC of slices."""
        both = (torch.from_numpy(targets[name]) for name in ("visible", "fracture"))
        broken, known = (value.numpy() for value in _any_broken(*both))
        if not known.any():
            return {}
        return {"auc_slice": auc(broken[known] > 0.5, outputs["fracture"][known, 0])}

    def rows(self, view: StudyView, outputs: Outputs) -> pd.DataFrame:
        """Table `oof_slices`: the same fracture logit for every level."""
        fracture = np.repeat(outputs["fracture"], N_LEVELS, axis=1)
        return super().rows(view, {"visible": view.shown, "fracture": fracture})


def _any_broken(visible: torch.Tensor, fracture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) how far slices show a broken level, and of which that is known."""
    broken = (visible.nan_to_num() * fracture.nan_to_num()).amax(dim=1)
    return broken, torch.isfinite(visible).all(dim=1)


def _shown(view: StudyView, levels: pd.DataFrame | None) -> FloatArray:
    """(n, 7) logits; standing planes show every level that is there."""
    if levels is None:  # `SlicesTask.view` has refused it
        return np.zeros((len(view), N_LEVELS))
    if view.plane == AXIAL:
        inside = inside_levels(levels, view.at_mm) >= 0
    else:
        inside = np.tile(view.present, (len(view), 1))
    return np.where(inside, SEEN, UNSEEN)

"""Axial rows of a study that only standing planes have seen.

In: one study's rows of a sagittal or coronal member, and where its axial slices lie. Out: rows as
an axial member would give them: a slice shows the levels whose range it lies in, and every level is
as broken on its slices as the standing planes that show it say. Example::

    _, seven = next(iter(levels.groupby(["study_uid", "model_fold"])))
    lying = Lying(np.arange(60), seven["z_top_mm"].max() - 2.0 * np.arange(60), seven)
    sagittal = oof_slices.head(15).assign(plane="sagittal")
    lay_down(sagittal, lying)[["plane", "position", "at_mm"]]

The stack reads a scan's protocol from axial rows: without these, a study that lost its last axial
member would lose the stack, too.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import AXIAL
from cspine_kit.core.numbers import FloatArray, IntArray, sigmoid
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.spine import SEEN, UNSEEN, inside_levels, neck_middle

MOST = 30.0
"""Larger logits say no more, and an infinite one would spoil a mean."""


@dataclass(frozen=True)
class Lying:
    """Axial slices of one study, and its levels.

    Attributes:
        slice_idx: (n,) native indices, rising.
        z_mm: (n,) their positions, descending.
        levels: rows of contract `levels` of one unit, C1..C7.
    """

    slice_idx: IntArray
    z_mm: FloatArray
    levels: pd.DataFrame


def lay_down(rows: pd.DataFrame, lying: Lying) -> pd.DataFrame:
    """Axial rows for the slices of `lying` that show a level, at least one.

    Args:
        rows: of one standing member and one unit.
        lying: where its axial slices are.
    """
    inside = inside_levels(lying.levels, lying.z_mm) >= 0
    used = np.asarray(inside.any(axis=1))
    if not used.any():
        used[np.argmin(np.abs(lying.z_mm - neck_middle(lying.levels)))] = True
    seen = sigmoid(rows[list(VERTEBRA_COLUMNS)].to_numpy(np.float64))
    broken = rows[list(FRACTURE_COLUMNS)].to_numpy(np.float64).clip(-MOST, MOST)
    shown = np.where(inside[used], SEEN, UNSEEN)
    each = np.tile((seen * broken).sum(axis=0) / seen.sum(axis=0), (len(shown), 1))
    made = pd.DataFrame(np.hstack([shown, each]), columns=[*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS])
    idx = lying.slice_idx[used]
    place = {"plane": AXIAL, "position": idx, "slice_idx": idx, "at_mm": lying.z_mm[used]}
    same = {c: rows[c].iloc[0] for c in rows if c not in place and c not in made}
    return made.assign(**same, **place)[list(rows)]

"""Which study and fold model each row belongs to, and where its seven levels lie, as plain arrays.

In: slice and level tables. Out: `Units` and `Levels`, both in the order study_uid, model_fold (then
C1..C7). Example::

    units = find_units(oof_slices)
    ranges = find_levels(levels, units)

Arrays instead of frames: the kernel aggregates one study at a time, and merging two small frames
costs more than all statistics together.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.errors import TableError
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray

KEY = ("study_uid", "level", "model_fold")
SHOWN = 5
"""Rows named in an error."""


@dataclass(frozen=True)
class Units:
    """The (study_uid, model_fold) pairs of a slice table, sorted; `of_row` is each row's pair."""

    of_row: IntArray
    uids: NDArray[np.object_]
    study: IntArray
    model_fold: IntArray
    fold: IntArray

    def __len__(self) -> int:
        return len(self.study)

    def describe(self, units: IntArray) -> list[dict[str, object]]:
        """The first few of some units, for messages."""
        return [
            {"study_uid": self.uids[self.study[i]], "model_fold": int(self.model_fold[i])}
            for i in units[:SHOWN].tolist()
        ]

    def find(self, study_uid: pd.Series, model_fold: IntArray) -> IntArray:
        """Unit of each (study_uid, model_fold), -1 where there is none."""
        low, span = int(self.model_fold.min()), int(np.ptp(self.model_fold)) + 1
        study = pd.Index(self.uids).get_indexer(pd.Index(study_uid.to_numpy(dtype=object)))
        keys = self.study * span + self.model_fold - low
        wanted = study * span + model_fold - low
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        known = (study >= 0) & (model_fold >= low) & (model_fold < low + span)
        found: IntArray = np.where(known & (keys[at] == wanted), at, -1)
        return found


def factorize(column: pd.Series) -> tuple[IntArray, NDArray[np.object_]]:
    """Code of each row and the sorted names; only the first row of each run of equals is looked at,
    because a table in the order of its contract has few runs."""
    values = column.array
    heads = np.append(0, np.flatnonzero(np.asarray(values[1:] != values[:-1], dtype=bool)) + 1)
    code, names = pd.factorize(column.iloc[heads], sort=True)
    runs = np.diff(np.append(heads, len(column)))
    return np.repeat(code, runs).astype(np.int64), np.asarray(names, dtype=object)


def find_units(slices: pd.DataFrame) -> Units:
    """Units of a slice table with study_uid, model_fold and fold.

    Raises:
        TableError: a study with two values of `fold`.
    """
    study, uids = factorize(slices["study_uid"])
    model_fold, fold = (slices[name].to_numpy(np.int64) for name in ("model_fold", "fold"))
    low, span = int(model_fold.min()), int(np.ptp(model_fold)) + 1
    # Few whole numbers: counting them is ten times faster than sorting the rows.
    joint = study * span + (model_fold - low)
    present = np.flatnonzero(np.bincount(joint))
    place = np.zeros(len(uids) * span, dtype=np.int64)
    place[present] = np.arange(len(present))
    of_row, of_unit = place[joint], np.empty(len(present), dtype=np.int64)
    of_unit[of_row] = fold
    torn = np.flatnonzero(fold != of_unit[of_row])
    if len(torn):
        rows = slices.iloc[torn[:SHOWN]][["study_uid", "fold"]].to_dict("records")
        raise TableError(f"table slices: studies with more than one fold: {rows}")
    return Units(of_row, uids, present // span, present % span + low, of_unit)


@dataclass(frozen=True)
class Levels:
    """Levels as arrays (units x 7,) in mm: unit by unit, C1..C7 inside each."""

    present: BoolArray
    z_top_mm: FloatArray
    z_bottom_mm: FloatArray
    center_z_mm: FloatArray
    confidence: FloatArray

    def take(self, units: slice) -> "Levels":
        """The levels of some units."""
        own = slice(units.start * N_LEVELS, units.stop * N_LEVELS)
        return Levels(**{name: values[own] for name, values in vars(self).items()})


def find_levels(levels: pd.DataFrame, units: Units) -> Levels:
    """The levels of all units; rows of other studies and fold models are ignored.

    Raises:
        TableError: a unit with a missing or doubled level, or a value that is not finite.
    """
    level = pd.Index(LEVELS).get_indexer(pd.Index(levels["level"].to_numpy(dtype=object)))
    unit = units.find(levels["study_uid"], levels["model_fold"].to_numpy(np.int64))
    rows = np.flatnonzero((unit >= 0) & (level >= 0))
    place = unit[rows] * N_LEVELS + level[rows]
    count = np.bincount(place, minlength=len(units) * N_LEVELS)
    if (count > 1).any():
        doubled = levels.iloc[rows[count[place] > 1][:SHOWN]][list(KEY)].to_dict("records")
        raise TableError(f"table levels: duplicate keys {doubled}")
    if (count == 0).any():
        bare = np.flatnonzero(count == 0)
        pairs = units.describe(bare // N_LEVELS)
        shown = [p | {"level": LEVELS[i % N_LEVELS]} for p, i in zip(pairs, bare, strict=False)]
        raise TableError(
            f"table levels: {len(bare)} levels of the slice table are missing: {shown}"
        )
    source = np.empty(len(count), dtype=np.int64)
    source[place] = rows
    values = {
        name: levels[name].to_numpy(np.float64)[source]
        for name in ("z_top_mm", "z_bottom_mm", "center_z_mm", "confidence")
    }
    for name, column in values.items():
        if not np.isfinite(column).all():
            at = levels.iloc[source[~np.isfinite(column)][:SHOWN]][list(KEY)].to_dict("records")
            raise TableError(f"table levels: {name} is not finite at {at}")
    return Levels(levels["present"].to_numpy(bool)[source], **values)

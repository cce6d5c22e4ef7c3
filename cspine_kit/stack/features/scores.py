"""Level, study and box scores of members that judge more than a slice, as feature columns.

In: tables `oof_levels`, `oof_studies`, `oof_boxes` (for test studies the same with fold -1). Out:
one value per (study, model_fold, level). Example::

    from cspine_kit.stack.features.units import find_levels, find_units

    units = find_units(oof_slices)
    said = features[["study_uid", "model_fold"]].drop_duplicates().assign(member="a", overall=0.5)
    columns = score_columns(MemberScores(studies=said), units, find_levels(levels, units))
    columns["a__study__logit"]               # seven times 0.5 for every unit

A unit that a member says nothing of is NaN; `stack.fallback.scores` imputes it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.errors import TableError
from cspine_kit.core.numbers import FloatArray, IntArray
from cspine_kit.stack.features.names import BOX_SCORE, LEVEL_LOGIT, STUDY_LOGIT
from cspine_kit.stack.features.units import SHOWN, Levels, Units


@dataclass(frozen=True)
class MemberScores:
    """The tables that are there: contracts `oof_levels`, `oof_studies`, `oof_boxes`."""

    levels: pd.DataFrame | None = None
    studies: pd.DataFrame | None = None
    boxes: pd.DataFrame | None = None

    @classmethod
    def of(cls, tables: Mapping[str, list[pd.DataFrame]]) -> "MemberScores":
        """From parts of tables by the names of their contracts."""
        joined = {
            name.removeprefix("oof_"): pd.concat(parts, ignore_index=True)
            for name, parts in tables.items()
        }
        return cls(**joined)

    def without(self, members: Iterable[str]) -> "MemberScores":
        """The same as if some members did not exist."""
        dropped = list(members)
        tables = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {k: t[~t["member"].isin(dropped)] for k, t in tables.items() if t is not None}
        return replace(self, **kept)


def score_columns(scores: MemberScores, units: Units, levels: Levels) -> dict[str, FloatArray]:
    """Columns `<member>__level__logit`, `__study__logit` and `__boxes__score`, each (units x 7,).

    A box counts for each level whose range holds its slice: the best score is taken, 0 where a
    study has boxes but this level none.

    Raises:
        TableError: a row twice, or a score that is not finite.
    """
    columns: dict[str, FloatArray] = {}
    for table, ends, fill in (
        (scores.levels, LEVEL_LOGIT, _levels),
        (scores.studies, STUDY_LOGIT, _studies),
        (scores.boxes, BOX_SCORE, _boxes(levels)),
    ):
        if table is not None:
            for member, rows in table.groupby("member", sort=True):
                unit = units.find(rows["study_uid"], rows["model_fold"].to_numpy(np.int64))
                known = rows[unit >= 0]
                columns[f"{member}__{ends}"] = fill(known, unit[unit >= 0], len(units)).ravel()
    return columns


Fill = Callable[[pd.DataFrame, IntArray, int], FloatArray]


def _values(rows: pd.DataFrame, name: str, place: IntArray | None = None) -> FloatArray:
    values = rows[name].to_numpy(np.float64)
    faults = {f"{name} is not finite": ~np.isfinite(values)}
    if place is not None:
        faults["duplicate keys"] = pd.Series(place).duplicated().to_numpy()
    for what, faulty in faults.items():
        if faulty.any():
            at = rows[faulty][["member", "study_uid"]].head(SHOWN).to_dict("records")
            raise TableError(f"out-of-fold scores: {what} at {at}")
    return values


def _levels(rows: pd.DataFrame, unit: IntArray, n: int) -> FloatArray:
    """(n, 7) logits; a member says all seven levels of a unit or is missing there."""
    level = pd.Index(LEVELS).get_indexer(pd.Index(rows["level"].to_numpy(dtype=object)))
    found = np.full(n * N_LEVELS, np.nan)
    place = unit * N_LEVELS + level
    found[place] = _values(rows, "fracture", place)
    wide = found.reshape(n, N_LEVELS)
    torn = np.isnan(wide).any(axis=1) & ~np.isnan(wide).all(axis=1)
    if torn.any():
        at = rows[np.isin(unit, np.flatnonzero(torn))][["member", "study_uid"]].drop_duplicates()
        shown = at.head(SHOWN).to_dict("records")
        raise TableError(f"out-of-fold scores: not all of C1..C7 at {shown}")
    return wide


def _studies(rows: pd.DataFrame, unit: IntArray, n: int) -> FloatArray:
    """(n, 7): the study's logit beside each of its levels."""
    found = np.full(n, np.nan)
    found[unit] = _values(rows, "overall", unit)
    return np.repeat(found[:, None], N_LEVELS, axis=1)


def _boxes(levels: Levels) -> Fill:
    def fill(rows: pd.DataFrame, unit: IntArray, n: int) -> FloatArray:
        """(n, 7) best scores."""
        score, z_mm = _values(rows, "score"), rows["at_mm"].to_numpy(np.float64)
        found = np.full((n, N_LEVELS), np.nan)
        found[unit] = 0.0
        top, bottom = (v.reshape(n, N_LEVELS)[unit] for v in (levels.z_top_mm, levels.z_bottom_mm))
        inside = (bottom <= z_mm[:, None]) & (z_mm[:, None] <= top)
        np.maximum.at(found, unit, np.where(inside, score[:, None], 0.0))
        return found

    return fill

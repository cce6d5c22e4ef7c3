"""From a feature frame to what the two heads of the stack read.

In: features (`aggregate`). Out: `FeatureTable`, and a `Design` for the levels (seven rows per
study) and for the overall (one row per study, on level probabilities). Example::

    table, heads = FeatureTable.of(features, stack.columns), stack.folds[0]
    design = level_design(table, heads.header.lifts(table.site))
    heads.level.predict(design)                   # seven rows per study
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.errors import TableError
from cspine_kit.core.numbers import FloatArray, IntArray, logit, noisy_or, sigmoid
from cspine_kit.stack.features.aggregate import ALL, SITE
from cspine_kit.stack.features.statistics import RISING
from cspine_kit.stack.features.units import KEY, SHOWN
from cspine_kit.stack.model.head import Design

LENGTHS = ("run30", "run50", "extent30", "extent50", "noisyor", "slices")
"""Statistics that a line reads as log(1 + x): their effect saturates."""

CORE = tuple(f"{ALL}__{name}" for name in ("fracture__odds", "smooth__odds"))
DOUBT_RISING, DOUBT = 3.0, 10.0

NATIVE = tuple(f"{ALL}__study__{name}" for name in ("slices", "step"))

LIFT = f"{ALL}__header__lift"
"""What headers alone add to a target's log-odds, by the header heads: the last level feature."""

NOT_PROBABILITIES = ("std", "logsumexp", "entropy", "place", "asymmetry")


@dataclass(frozen=True)
class FeatureTable:
    """Features as arrays: n units (study, model_fold) of seven levels each."""

    study_uid: Any
    model_fold: IntArray
    fold: IntArray
    values: FloatArray  # (n, 7, columns)
    columns: tuple[str, ...]
    site: FloatArray  # (n, features): slice count and distance, and the signal `SITE`

    @property
    def n(self) -> int:
        """Number of units (study, fold model)."""
        return len(self.model_fold)

    @classmethod
    def of(cls, features: pd.DataFrame, columns: tuple[str, ...]) -> "FeatureTable":
        """Check and order a feature frame.

        Raises:
            TableError: a missing column, a value that is not finite, or a study without C1..C7.
        """
        missing = [c for c in (*KEY, "fold", *columns) if c not in features]
        if missing:
            raise TableError(
                f"features: {len(missing)} columns are missing: {missing[:SHOWN]}; "
                "the slice table must hold the members that the stack was fitted on"
            )
        ordered = features.sort_values(["study_uid", "model_fold", "level"])
        level = ordered["level"].to_numpy(dtype=object)
        complete = len(level) % N_LEVELS == 0 and len(level) > 0
        if not complete or (level.reshape(-1, N_LEVELS) != np.array(LEVELS, dtype=object)).any():
            counts = features.groupby(["study_uid", "model_fold"])["level"].nunique()
            rows = counts[counts != N_LEVELS].head(SHOWN).to_dict()
            raise TableError(
                f"features: each study needs C1..C7 exactly once; got {rows or 'none'}"
            )
        of_site = np.array([c in NATIVE or c.split("__")[1] == SITE for c in columns])
        own = np.array([c.split("__")[1] != SITE for c in columns])
        values = ordered[list(columns)].to_numpy(np.float64)
        finite = np.isfinite(values)
        if not finite.all():
            row, column = (int(i[0]) for i in np.nonzero(~finite))
            at = ordered.iloc[row][list(KEY)].to_dict()
            raise TableError(f"features: {columns[column]} is {values[row, column]} at {at}")
        first = ordered.iloc[::N_LEVELS]
        return cls(
            first["study_uid"].to_numpy(dtype=object),
            first["model_fold"].to_numpy(np.int64),
            first["fold"].to_numpy(np.int64),
            values[:, own].reshape(-1, N_LEVELS, int(own.sum())),
            tuple(c for c, kept in zip(columns, own, strict=True) if kept),
            values[::N_LEVELS, of_site],
        )

    def take(self, rows: Any) -> "FeatureTable":
        """The same columns for some units."""
        return replace(
            self,
            study_uid=self.study_uid[rows],
            model_fold=self.model_fold[rows],
            fold=self.fold[rows],
            values=self.values[rows],
            site=self.site[rows],
        )

    def column(self, name: str) -> FloatArray:
        """One feature as (n, 7)."""
        picked: FloatArray = self.values[:, :, self.columns.index(name)]
        return picked


def _is_rising(column: str) -> bool:
    member, _, rest = column.partition("__")
    return rest in RISING or (member == ALL and rest in ("fracture__odds", "smooth__odds"))


def _line_values(values: FloatArray, columns: tuple[str, ...]) -> FloatArray:
    """Features as a line in log-odds reads them: probabilities as log-odds, lengths as logs."""
    line = values.copy()
    for i, column in enumerate(columns):
        member, signal, statistic = column.split("__")
        if statistic in LENGTHS:
            line[..., i] = np.log1p(values[..., i])
            continue
        of_model = member != ALL and signal in ("fracture", "study")
        if of_model and statistic not in NOT_PROBABILITIES:
            line[..., i] = logit(values[..., i])
    return line


def _doubt(columns: tuple[str, ...]) -> FloatArray:
    """Penalty factors: 1 for what members agree on, `DOUBT_RISING` for a member's own evidence of a
    fracture, `DOUBT` for all else (a line needs many rows to be trusted with contrasts)."""
    return np.array(
        [1.0 if c in CORE else DOUBT_RISING if _is_rising(c) else DOUBT for c in columns]
    )


def level_design(table: FeatureTable, lifts: FloatArray) -> Design:
    """Every feature of every level, then `LIFT`; the level itself is the category.

    Args:
        table: n units.
        lifts: (n, 8) of `HeaderHeads.lifts`.
    """
    flat = table.values.reshape(-1, len(table.columns))
    lift = lifts[:, :N_LEVELS].reshape(-1, 1)
    rising = (*(_is_rising(c) for c in table.columns), True)
    return Design(
        line=np.hstack([_line_values(flat, table.columns), lift]),
        tree=np.hstack([flat, lift]).astype(np.float32),
        category=np.tile(np.arange(N_LEVELS), table.n),
        n_categories=N_LEVELS,
        rising=rising,
        doubt=np.append(_doubt(table.columns), DOUBT_RISING),
        line_rising=np.array(rising),
    )


def overall_design(table: FeatureTable, level_probs: FloatArray, lifts: FloatArray) -> Design:
    """Level log-odds in three views (noisy-or, ranked, named) and what the study looks like.

    The members' own odds stand beside the level head's: on few studies they are the better ones.
    """
    odds = logit(level_probs)
    ranked = np.sort(odds, axis=1)[:, ::-1]
    seen = [table.column(f"{ALL}__{name}__odds") for name in ("fracture", "smooth")]
    summary = np.column_stack(
        [
            logit(noisy_or(level_probs)),
            *(logit(noisy_or(sigmoid(member_odds))) for member_odds in seen),
            ranked[:, :3],
            seen[1].max(axis=1),
            lifts[:, N_LEVELS],
        ]
    )
    context = [
        table.column(f"{ALL}__{name}")[:, 0]
        for name in ("patient__max", "patient__mean", "study__step", "study__extent")
    ]
    named = np.column_stack([odds, *seen])
    rising = np.column_stack([summary, named])
    line = np.column_stack([summary, odds.mean(axis=1), named])
    return Design(
        line=line,
        tree=np.column_stack([rising, *context]).astype(np.float32),
        category=np.zeros(table.n, dtype=np.int64),
        n_categories=1,
        rising=(True,) * rising.shape[1] + (False,) * len(context),
        doubt=np.append(np.ones(line.shape[1] - named.shape[1]), np.full(named.shape[1], DOUBT)),
        line_rising=np.ones(line.shape[1], dtype=bool),
    )

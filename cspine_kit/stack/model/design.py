"""From a feature frame to what the two heads of the stack read.

In: features (`aggregate`, `external`). Out: `FeatureTable`, and a `Design` for the levels (seven
rows per study) and for the overall (one row per study, on level probabilities). Example::

    from cspine_kit.stack.features.names import feature_columns

    table = FeatureTable.of(features, tuple(feature_columns(features.columns)))
    level_design(table).line                                        # seven rows per study
    overall_design(table, np.full((table.n, N_LEVELS), 0.1)).line   # one row per study

What says something about a scanner (`site`) or a patient (`column`) is read by the trees alone,
unless there is nothing else.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, N_LEVELS, TARGETS
from cspine_kit.core.errors import TableError
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray, logit, noisy_or, sigmoid
from cspine_kit.stack.features.names import (
    ALL,
    BOX_SCORE,
    COLUMN,
    EXTERNAL,
    LEVEL_LOGIT,
    SITE,
    STUDY_LOGIT,
    signal_of,
)
from cspine_kit.stack.features.statistics import RISING
from cspine_kit.stack.features.units import KEY, SHOWN
from cspine_kit.stack.model.head import Design

LENGTHS = ("run30", "run50", "extent30", "extent50", "noisyor", "slices", "length")
"""Statistics that a line reads as log(1 + x): their effect saturates."""

SEEN = tuple(f"{ALL}__{name}__odds" for name in ("fracture", "smooth"))
"""Log-odds that the members' slices agree on."""

GIVEN = tuple(f"{ALL}__{EXTERNAL}__{target}" for target in TARGETS)
"""Mean log-odds of external members, of every target: the same in all seven rows of a study."""

CORE = (*SEEN, f"{ALL}__{EXTERNAL}__own", f"{ALL}__{EXTERNAL}__others")
SCORES = (LEVEL_LOGIT, STUDY_LOGIT, BOX_SCORE)
DOUBT_RISING, DOUBT = 3.0, 10.0
CROSS_DOUBT = 1.0
"""Penalty of what one level's external log-odds say about another level."""

NOT_PROBABILITIES = ("std", "logsumexp", "entropy", "place", "asymmetry", "logit")


@dataclass(frozen=True)
class FeatureTable:
    """Features as arrays: n units (study, model_fold) of seven levels each."""

    study_uid: Any
    model_fold: IntArray
    fold: IntArray
    values: FloatArray  # (n, 7, columns)
    columns: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of units (study, fold model)."""
        return len(self.model_fold)

    @classmethod
    def of(cls, features: pd.DataFrame, columns: tuple[str, ...]) -> "FeatureTable":
        """Check and order a feature frame.

        Raises:
            TableError: a missing column, a value that is not finite (raw columns may hold NaN: not
                known), or a study without C1..C7.
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
        values = ordered[list(columns)].to_numpy(np.float64)
        may_lack = np.array([signal_of(c) == COLUMN for c in columns], dtype=bool)
        faulty = ~np.isfinite(values) & ~(may_lack & np.isnan(values))
        if faulty.any():
            row, column = (int(i[0]) for i in np.nonzero(faulty))
            at = ordered.iloc[row][list(KEY)].to_dict()
            raise TableError(f"features: {columns[column]} is {values[row, column]} at {at}")
        first = ordered.iloc[::N_LEVELS]
        return cls(
            first["study_uid"].to_numpy(dtype=object),
            first["model_fold"].to_numpy(np.int64),
            first["fold"].to_numpy(np.int64),
            values.reshape(-1, N_LEVELS, len(columns)),
            columns,
        )

    def take(self, rows: Any) -> "FeatureTable":
        """The same columns for some units."""
        own = {name: getattr(self, name)[rows] for name in vars(self) if name != "columns"}
        return replace(self, **own)

    def only(self, columns: tuple[str, ...]) -> "FeatureTable":
        """Some columns of all units."""
        at = [self.columns.index(c) for c in columns]
        return replace(self, values=self.values[..., at], columns=columns)

    def column(self, name: str) -> FloatArray:
        """One feature as (n, 7)."""
        picked: FloatArray = self.values[:, :, self.columns.index(name)]
        return picked

    def without(self, signal: str, rows: BoolArray) -> "FeatureTable":
        """The features of one signal blanked (NaN) in some units."""
        values = self.values.copy()
        blank = np.array([signal_of(c) == signal for c in self.columns], dtype=bool)
        values[np.ix_(rows, np.ones(N_LEVELS, dtype=bool), blank)] = np.nan
        return replace(self, values=values)


def _is_rising(column: str) -> bool:
    member, _, rest = column.partition("__")
    return (
        rest in (*RISING, *SCORES)
        or column in CORE
        or (member != ALL and signal_of(column) == EXTERNAL)
    )


def _line_values(values: FloatArray, columns: tuple[str, ...]) -> FloatArray:
    """Features as a line in log-odds reads them: probabilities as log-odds, lengths as logs."""
    line = values.copy()
    for i, column in enumerate(columns):
        member, signal, statistic = column.split("__")
        if statistic in LENGTHS:
            line[..., i] = np.log1p(values[..., i])
            continue
        of_model = member != ALL and signal in ("fracture", "study", "boxes")
        if of_model and statistic not in NOT_PROBABILITIES:
            line[..., i] = logit(values[..., i])
    return line


def _doubt(columns: tuple[str, ...]) -> FloatArray:
    """Penalty factors: 1 for what members agree on, `DOUBT_RISING` for a member's own evidence of a
    fracture, `DOUBT` for all else (a line needs many rows to be trusted with contrasts)."""
    return np.array(
        [1.0 if c in CORE else DOUBT_RISING if _is_rising(c) else DOUBT for c in columns]
    )


def line_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Features of a level that its line reads, in order."""
    return tuple(c for c in columns if signal_of(c) not in (SITE, COLUMN) and c not in GIVEN)


def _header_design(table: FeatureTable, values: FloatArray, kinds: int) -> Design:
    """Rows of a table that holds nothing but headers: then the line reads them too."""
    site = [i for i, c in enumerate(table.columns) if signal_of(c) == SITE]
    return Design(
        line=values[:, site],
        tree=values.astype(np.float32),
        category=np.arange(len(values)) % kinds,
        n_categories=kinds,
        rising=(False,) * len(table.columns),
        doubt=np.ones(len(site)),
        line_rising=np.zeros(len(site), dtype=bool),
    )


def level_design(table: FeatureTable) -> Design:
    """Every feature of every level; the level itself is the category.

    External log-odds of all targets enter the line once for each level: a level's line may read the
    others.
    """
    flat = table.values.reshape(table.n * N_LEVELS, -1)
    names = line_columns(table.columns)
    if not names:
        return _header_design(table, flat, N_LEVELS)
    own = [table.columns.index(c) for c in names]
    line, doubt = _line_values(flat[:, own], names), _doubt(names)
    rising = np.array([_is_rising(c) for c in names], dtype=bool)
    category = np.tile(np.arange(N_LEVELS), table.n)
    if GIVEN[0] in table.columns:
        given = flat[:, [table.columns.index(c) for c in GIVEN]]
        crossed = np.zeros((len(flat), N_LEVELS, len(GIVEN)))
        crossed[np.arange(len(flat)), category] = given - given.mean(axis=0)
        line = np.hstack([line, crossed.reshape(len(flat), -1)])
        extra = line.shape[1] - len(doubt)
        doubt = np.append(doubt, np.full(extra, CROSS_DOUBT))
        rising = np.append(rising, np.zeros(extra, dtype=bool))
    return Design(
        line=line,
        tree=flat.astype(np.float32),
        category=category,
        n_categories=N_LEVELS,
        rising=tuple(_is_rising(c) for c in table.columns),
        doubt=doubt,
        line_rising=rising,
    )


def overall_design(table: FeatureTable, level_probs: FloatArray) -> Design:
    """Level log-odds in three views (noisy-or, ranked, named) and what the study looks like.

    The members' own odds stand beside the level head's: on few studies they are the better ones.
    """
    if not line_columns(table.columns):
        return _header_design(table, table.values[:, 0], 1)
    odds = logit(level_probs)
    ranked = np.sort(odds, axis=1)[:, ::-1]
    seen = [table.column(name) for name in SEEN if name in table.columns]
    given = [table.column(name)[:, 0] for name in GIVEN if name in table.columns]
    overall = [
        table.column(c)[:, 0]
        for c in table.columns
        if signal_of(c) == EXTERNAL and c.endswith("__overall")
    ]
    summary = np.column_stack(
        [
            logit(noisy_or(level_probs)),
            *(logit(noisy_or(sigmoid(member_odds))) for member_odds in seen),
            ranked[:, :3],
            *(member_odds.max(axis=1) for member_odds in seen[1:]),
            *overall,
        ]
    )
    named = np.column_stack([odds, *seen, *given])
    rising = np.column_stack([summary, named])
    line = np.column_stack([summary, odds.mean(axis=1), named])
    context = [
        table.column(c)[:, 0]
        for c in table.columns
        if signal_of(c) in (SITE, COLUMN) or c in CONTEXT
    ]
    return Design(
        line=line,
        tree=np.column_stack([rising, *context]).astype(np.float32),
        category=np.zeros(table.n, dtype=np.int64),
        n_categories=1,
        rising=(True,) * rising.shape[1] + (False,) * len(context),
        doubt=np.append(np.ones(line.shape[1] - named.shape[1]), np.full(named.shape[1], DOUBT)),
        line_rising=np.ones(line.shape[1], dtype=bool),
    )


CONTEXT = tuple(
    f"{ALL}__{name}" for name in ("patient__max", "patient__mean", "study__step", "study__extent")
)
"""What the overall's trees read of a study beside its levels."""

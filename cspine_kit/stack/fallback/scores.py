"""Scores that a member did not give, imputed from what others say.

In: features with holes (NaN) in score columns (`aggregate`, `external.features`). Out: the same
features without holes. Example::

    imputer = fit_score_imputer(features)        # on out-of-fold rows
    filled, counts = imputer.fill(features)

The score of a level, a study or a box of one's own network, and the log-odds of an external member,
follow by a line per level from another external member, else from what the slices of all members
agree on; where there is neither, the mean speaks.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.numbers import FloatArray, logit, noisy_or, sigmoid
from cspine_kit.stack.features.names import (
    ALL,
    BOX_SCORE,
    OVERALL_ODDS,
    STUDY_LOGIT,
    external_columns,
    score_columns_of,
)

AGREED, AGREED_OVERALL, NOTHING = f"{ALL}__fracture__odds", "overall of slices", "nothing"
"""Sources beside external members: log-odds that slices give to levels, to a study; no source."""

FEWEST = 10
"""Studies that a score and a source must share for a line between them."""

Line = list[list[float]]
"""Starts and slopes by level: score = start + slope * what the source says."""


def _sources(ordered: pd.DataFrame) -> dict[str, FloatArray]:
    """What scores may follow from, and the scores themselves, as (units, 7)."""
    columns = [*external_columns(ordered.columns), *score_columns_of(ordered.columns)]
    found = {c: ordered[c].to_numpy(np.float64).reshape(-1, N_LEVELS) for c in columns}
    if AGREED in ordered:
        levels = ordered[AGREED].to_numpy(np.float64).reshape(-1, N_LEVELS)
        overall = logit(noisy_or(sigmoid(levels)))
        found |= {AGREED: levels, AGREED_OVERALL: np.repeat(overall[:, None], N_LEVELS, axis=1)}
    return found | {NOTHING: np.zeros((len(ordered) // N_LEVELS, N_LEVELS))}


def _sources_of(column: str, known: dict[str, FloatArray]) -> list[str]:
    """Sources of a score in the order in which they are asked."""
    alike = external_columns(known)
    ends = column.split("__", 1)[1]
    others = [c for c in alike if column in alike and c != column and c.endswith(f"__{ends}")]
    overall = column.endswith((STUDY_LOGIT, OVERALL_ODDS))
    return [*others, *({AGREED_OVERALL if overall else AGREED} & set(known)), NOTHING]


def _ordered(features: pd.DataFrame) -> pd.DataFrame:
    return features.sort_values(["study_uid", "model_fold", "level"], ignore_index=True)


@dataclass(frozen=True)
class ScoreImputer:
    """`lines[column][source]` gives a score from a source; plain values for JSON."""

    lines: dict[str, dict[str, Line]] = field(default_factory=dict)

    def fill(self, features: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
        """Features without holes, ordered by unit and level, and imputed studies by member."""
        ordered = _ordered(features)
        known, uid = _sources(ordered), ordered["study_uid"].to_numpy(object)[::N_LEVELS]
        filled, counts = {}, dict[str, int]()
        for column, lines in self.lines.items():
            # A member of which nothing is known has no column.
            values = known.get(column, np.full((len(uid), N_LEVELS), np.nan))
            lost = np.isnan(values).any(axis=1)
            if not lost.any():
                continue
            for source, (start, slope) in lines.items():
                if source in known:
                    guess = np.array(start) + np.array(slope) * known[source]
                    values = np.where(np.isnan(values), guess, values)
            values = np.clip(values, 0.0, 1.0) if column.endswith(BOX_SCORE) else values
            kind = ordered[column].dtype if column in ordered else np.float32
            filled[column] = values.ravel().astype(kind)
            member = column.split("__")[0]
            counts[member] = max(counts.get(member, 0), len(set(uid[lost])))
        return ordered.assign(**filled), counts


def _fit_line(x: FloatArray, y: FloatArray) -> Line | None:
    """Least squares per level over the units that both know; None where they are too few."""
    both = ~np.isnan(x).any(axis=1) & ~np.isnan(y).any(axis=1)
    if both.sum() < FEWEST:
        return None
    x, y = x[both], y[both]
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    slope = (dx * dy).sum(axis=0) / np.maximum((dx * dx).sum(axis=0), 1e-9)
    return [(y.mean(axis=0) - slope * x.mean(axis=0)).tolist(), slope.tolist()]


def fit_score_imputer(features: pd.DataFrame) -> ScoreImputer:
    """Lines from every source, on the out-of-fold rows where a member spoke."""
    known = _sources(_ordered(features))
    lines: dict[str, dict[str, Line]] = {}
    for column in [*score_columns_of(known), *external_columns(known)]:
        mean = pd.DataFrame(known[column]).mean().fillna(0.0)
        found = {s: _fit_line(known[s], known[column]) for s in _sources_of(column, known)}
        lines[column] = {source: line for source, line in found.items() if line is not None}
        lines[column][NOTHING] = [mean.tolist(), [0.0] * N_LEVELS]
    return ScoreImputer(lines)

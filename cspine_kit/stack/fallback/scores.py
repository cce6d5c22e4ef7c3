"""Stand-ins for what a member did not say of a level, a study or its boxes.

In: features (`aggregate`). Out: the same features without holes. Example::

    stand_ins = fit_stand_ins(features)          # on out-of-fold rows
    filled, counts = stand_ins.fill(features)

A member that did not run is spoken for by what the slices of all members agree on, on its own
scale; where there are no slices, by its mean.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.numbers import FloatArray, logit, sigmoid
from cspine_kit.stack.features.names import ALL, BOX_SCORE, STUDY_LOGIT, score_columns_of

AGREED = f"{ALL}__fracture__odds"
FEWEST_ROWS = 50
"""Fewer rows say too little for a line: the mean speaks."""


@dataclass(frozen=True)
class StandIns:
    """Start and slope by score column: score = start + slope * log-odds that slices agree on."""

    lines: dict[str, list[float]] = field(default_factory=dict)

    def fill(self, features: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
        """Features without holes, and the number of units stood in for, by member."""
        filled, counts = {}, dict[str, int]()
        for column, (start, slope) in self.lines.items():
            # A member of which nothing is known has no column.
            values = features.get(column, pd.Series(np.nan, features.index)).to_numpy(np.float64)
            lost = np.isnan(values)
            if lost.any():
                guess = start + slope * _agreed(features, column)
                guess = np.clip(guess, 0.0, 1.0) if column.endswith(BOX_SCORE) else guess
                filled[column] = np.where(lost, guess, values).astype(np.float32)
                member = column.split("__")[0]
                counts[member] = max(counts.get(member, 0), int(lost.sum()) // N_LEVELS)
        return features.assign(**filled), counts


def _agreed(features: pd.DataFrame, column: str) -> FloatArray:
    """Log-odds that slices give to what a score column speaks of; zeros without slices."""
    if AGREED not in features:
        return np.zeros(len(features))
    odds = features[AGREED].to_numpy(np.float64)
    if not column.endswith(STUDY_LOGIT):
        return odds
    unit = features.groupby(["study_uid", "model_fold"], sort=False).ngroup().to_numpy()
    doubt = np.bincount(unit, np.log1p(-sigmoid(odds)))
    return logit(-np.expm1(doubt))[unit]


def fit_stand_ins(features: pd.DataFrame) -> StandIns:
    """Least squares on the rows where a member spoke."""
    lines = {}
    for column in score_columns_of(features.columns):
        y = features[column].to_numpy(np.float64)
        known = ~np.isnan(y)
        x, y = _agreed(features, column)[known], y[known]
        mean = float(y.mean()) if len(y) else 0.0
        slope = 0.0
        if len(y) >= FEWEST_ROWS and x.std() > 0:
            slope = float(np.cov(x, y, bias=True)[0, 1] / x.var())
            mean -= slope * float(x.mean())
        lines[column] = [mean, slope]
    return StandIns(lines)

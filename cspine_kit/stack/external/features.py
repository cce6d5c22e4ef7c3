"""External members and raw columns as features beside the kit's own, with or without their files.

In: features (`aggregate`), scores and columns (`external.read`). Out: more feature columns per
(study, level, model_fold). Example::

    model = fit_external(features, [scores])
    features, imputed = model.add(features, {"theirs": scores.probs})
    features, imputed = model.add(test_features, {})         # no such file in this kernel

A score becomes its log-odds. A study that a file lacks is imputed from the other files, else from
the kit's own slices, and counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import N_LEVELS, TARGETS
from cspine_kit.core.numbers import FloatArray, logit, noisy_or, sigmoid
from cspine_kit.stack.external.read import STUDY, Scores
from cspine_kit.stack.features.names import ALL, COLUMN, EXTERNAL, RAW

SLICES = f"{ALL}__fracture__odds"
"""What the kit's own slices say of a level: from it an absent file is imputed."""

FEWEST = 5
"""Studies that two sources must share for a line between them."""


@dataclass(frozen=True)
class Line:
    """log-odds = start + slope * what another source says, per target."""

    start: tuple[float, ...]
    slope: tuple[float, ...]


@dataclass(frozen=True)
class ExternalModel:
    """How external members become features, with or without their files.

    `names`: in order. `from_slices`, `alone`: lines from the kit's own slices, and mean log-odds
    (8,) for where there are none. `pairs[a][b]`: the line that gives a from b.
    """

    names: tuple[str, ...]
    alone: dict[str, tuple[float, ...]]
    from_slices: dict[str, Line]
    pairs: dict[str, dict[str, Line]]

    def odds(
        self, features: pd.DataFrame, given: Mapping[str, pd.DataFrame]
    ) -> tuple[dict[str, FloatArray], dict[str, int]]:
        """Log-odds (units, 8) of every member, imputed where its file says nothing.

        Args:
            features: rows sorted by study, model_fold and level.
            given: probabilities by study_uid, of the members whose file is there.

        Returns:
            Log-odds by member, and the number of imputed studies by member.
        """
        uid = features["study_uid"].to_numpy(dtype=object)[::N_LEVELS]
        slices = _slice_odds(features)
        known = {
            name: logit(given[name].reindex(uid)[list(TARGETS)].to_numpy(np.float64))
            for name in self.names
            if name in given
        }
        found, counts = {}, {}
        for name in self.names:
            own = known.get(name, np.full((len(uid), len(TARGETS)), np.nan)).copy()
            counts[name] = int(pd.Series(uid[np.isnan(own[:, 0])]).nunique())
            for other, line in self.pairs[name].items():
                _fill(own, known.get(other), line)
            _fill(own, slices, self.from_slices.get(name))
            lost = np.isnan(own[:, 0])
            own[lost] = self.alone[name]
            found[name] = own
        return found, counts

    def add(
        self, features: pd.DataFrame, given: Mapping[str, pd.DataFrame]
    ) -> tuple[pd.DataFrame, dict[str, int]]:
        """A feature frame with the columns of all members, and the imputed studies by member."""
        ordered = features.sort_values(["study_uid", "model_fold", "level"], ignore_index=True)
        if not self.names:
            return ordered, {}
        odds, counts = self.odds(ordered, given)
        columns: dict[str, FloatArray] = {}
        wide = np.ones((1, N_LEVELS))
        for name, own in odds.items():
            columns[f"{name}__{EXTERNAL}__own"] = own[:, :N_LEVELS]
            columns[f"{name}__{EXTERNAL}__overall"] = own[:, N_LEVELS:] * wide
        mean = np.mean(list(odds.values()), axis=0)
        levels = mean[:, :N_LEVELS]
        doubt = np.log1p(-sigmoid(levels))
        columns[f"{ALL}__{EXTERNAL}__own"] = levels
        columns[f"{ALL}__{EXTERNAL}__others"] = logit(
            -np.expm1(doubt.sum(axis=1, keepdims=True) - doubt)
        )
        for j, target in enumerate(TARGETS):
            columns[f"{ALL}__{EXTERNAL}__{target}"] = mean[:, j : j + 1] * wide
        flat = {name: values.ravel() for name, values in columns.items()}
        return pd.concat([ordered, pd.DataFrame(flat, dtype=np.float64)], axis=1), counts

    def to_json(self) -> dict[str, Any]:
        """Plain values; `ExternalModel.from_json` reads them back."""
        lines = {n: vars(line) for n, line in self.from_slices.items()}
        pairs = {n: {o: vars(line) for o, line in ls.items()} for n, ls in self.pairs.items()}
        return {
            "names": list(self.names),
            "alone": self.alone,
            "from_slices": lines,
            "pairs": pairs,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "ExternalModel":
        """Inverse of `to_json`."""

        def line(value: Mapping[str, Any]) -> Line:
            return Line(tuple(value["start"]), tuple(value["slope"]))

        return cls(
            tuple(raw["names"]),
            {n: tuple(v) for n, v in raw["alone"].items()},
            {n: line(v) for n, v in raw["from_slices"].items()},
            {n: {o: line(v) for o, v in ls.items()} for n, ls in raw["pairs"].items()},
        )


def _slice_odds(features: pd.DataFrame) -> FloatArray | None:
    """Log-odds (units, 8) of the kit's own slices: levels, and their noisy-or."""
    if SLICES not in features:
        return None
    levels = features[SLICES].to_numpy(np.float64).reshape(-1, N_LEVELS)
    return np.column_stack([levels, logit(noisy_or(sigmoid(levels)))])


def _fill(own: FloatArray, other: FloatArray | None, line: Line | None) -> None:
    """Fill the rows of `own` that are NaN, where another source has them."""
    if other is None or line is None:
        return
    lost = np.isnan(own[:, 0]) & ~np.isnan(other[:, 0])
    own[lost] = np.array(line.start) + np.array(line.slope) * other[lost]


def _fit_line(x: FloatArray, y: FloatArray) -> Line:
    """Least squares per target over the rows that both know."""
    both = ~np.isnan(x[:, 0]) & ~np.isnan(y[:, 0])
    x, y = x[both], y[both]
    if len(x) < FEWEST:
        center = y.mean(axis=0) if len(y) else np.zeros(len(TARGETS))
        return Line(tuple(center.tolist()), (0.0,) * len(TARGETS))
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    slope = (dx * dy).sum(axis=0) / np.maximum((dx * dx).sum(axis=0), 1e-9)
    return Line(tuple((y.mean(axis=0) - slope * x.mean(axis=0)).tolist()), tuple(slope.tolist()))


def fit_external(features: pd.DataFrame, scores: Sequence[Scores]) -> ExternalModel:
    """Lines between the files, and from the kit's own slices where there are some.

    Args:
        features: out-of-fold rows of the studies (one fold model each).
        scores: of `read_scores`.
    """
    ordered = features.sort_values(["study_uid", "model_fold", "level"])
    uid = ordered["study_uid"].to_numpy(dtype=object)[::N_LEVELS]
    known = {s.name: logit(s.probs.reindex(uid).to_numpy(np.float64)) for s in scores}
    slices = _slice_odds(ordered)
    return ExternalModel(
        tuple(known),
        {n: tuple(np.nanmean(own, axis=0).tolist()) for n, own in known.items()},
        {} if slices is None else {n: _fit_line(slices, own) for n, own in known.items()},
        {
            n: {o: _fit_line(other, own) for o, other in known.items() if o != n}
            for n, own in known.items()
        },
    )


def add_columns(
    features: pd.DataFrame, columns: pd.DataFrame | None, names: Sequence[str]
) -> pd.DataFrame:
    """A feature frame with raw columns; NaN where nothing is known.

    Args:
        features: rows of `aggregate`.
        columns: of `read_columns`, or None: nothing is known.
        names: columns wanted, as they were in training.
    """
    wanted = [f"{RAW}__{COLUMN}__{name}" for name in names]
    if columns is None:
        return features.assign(**dict.fromkeys(wanted, np.nan))
    key = [c for c in (STUDY[0], "level") if c in columns]
    present = columns.set_index(key).reindex(columns=list(names))
    at = pd.MultiIndex.from_frame(features[key]) if len(key) > 1 else features[key[0]]
    values = present.reindex(at).to_numpy(np.float64)
    return features.assign(**dict(zip(wanted, values.T, strict=True)))

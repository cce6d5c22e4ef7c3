"""External members and raw columns as features beside the kit's own, with or without their files.

In: features (`aggregate`), scores and columns (`external.read`). Out: more feature columns per
(study, level, model_fold). Example::

    from cspine_kit.stack.scores.baselines import wide_predictions

    theirs = Scores("theirs", wide_predictions(predictions, "mean_of_members"))
    model = fit_external(features, [theirs])
    joined, imputed = model.add(features, {"theirs": theirs.probs})
    blind, imputed = model.add(test_features, {})            # no such file in this kernel

A score becomes its log-odds. A study that a file lacks is imputed from the other files, else from
the kit's own slices, and counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


Line = list[list[float]]
"""Starts and slopes by target: log-odds = start + slope * what another source says."""


@dataclass(frozen=True)
class ExternalModel:
    """How external members become features, with or without their files; plain values for JSON.

    `names`: the members, in order. `alone`: their mean log-odds (8,). `lines[a][b]`: the line that
    gives member a from source b, another member or `SLICES`.
    """

    names: list[str]
    alone: dict[str, list[float]]
    lines: dict[str, dict[str, Line]]

    def add(
        self, features: pd.DataFrame, given: Mapping[str, pd.DataFrame]
    ) -> tuple[pd.DataFrame, dict[str, int]]:
        """A feature frame with the columns of all members, and the imputed studies by member.

        Args:
            features: rows of `aggregate`.
            given: probabilities by study_uid, of the members whose file is there.
        """
        ordered = features.sort_values(["study_uid", "model_fold", "level"], ignore_index=True)
        if not self.names:
            return ordered, {}
        odds, counts = self._odds(ordered, given)
        wide = np.ones((1, N_LEVELS))
        mean = np.mean(list(odds.values()), axis=0)
        doubt = np.log1p(-sigmoid(mean[:, :N_LEVELS]))
        others = logit(-np.expm1(doubt.sum(axis=1, keepdims=True) - doubt))
        columns: dict[str, FloatArray] = {}
        for name, own in odds.items():
            columns[f"{name}__{EXTERNAL}__own"] = own[:, :N_LEVELS]
            columns[f"{name}__{EXTERNAL}__overall"] = own[:, N_LEVELS:] * wide
        columns |= {f"{ALL}__{EXTERNAL}__own": mean[:, :N_LEVELS]}
        columns |= {f"{ALL}__{EXTERNAL}__others": others}
        for j, target in enumerate(TARGETS):
            columns[f"{ALL}__{EXTERNAL}__{target}"] = mean[:, j : j + 1] * wide
        flat = {name: values.ravel() for name, values in columns.items()}
        return pd.concat([ordered, pd.DataFrame(flat, dtype=np.float64)], axis=1), counts

    def _odds(
        self, ordered: pd.DataFrame, given: Mapping[str, pd.DataFrame]
    ) -> tuple[dict[str, FloatArray], dict[str, int]]:
        """Log-odds (units, 8) of every member, imputed where its file says nothing."""
        uid = ordered["study_uid"].to_numpy(dtype=object)[::N_LEVELS]
        known = _sources(ordered, {name: given[name] for name in self.names if name in given})
        found, counts = {}, {}
        for name in self.names:
            own = known.get(name, np.full((len(uid), len(TARGETS)), np.nan)).copy()
            counts[name] = int(pd.Series(uid[np.isnan(own[:, 0])]).nunique())
            for source, (start, slope) in self.lines[name].items():
                if source in known:
                    lost = np.isnan(own[:, 0])
                    own[lost] = np.array(start) + np.array(slope) * known[source][lost]
            own[np.isnan(own[:, 0])] = self.alone[name]
            found[name] = own
        return found, counts


def _sources(ordered: pd.DataFrame, given: Mapping[str, pd.DataFrame]) -> dict[str, FloatArray]:
    """Log-odds (units, 8) of the files that are there, NaN for their gaps, and of the kit's own
    slices: their levels, and the noisy-or of these."""
    uid = ordered["study_uid"].to_numpy(dtype=object)[::N_LEVELS]
    found = {
        name: logit(probs.reindex(uid)[list(TARGETS)].to_numpy(np.float64))
        for name, probs in given.items()
    }
    if SLICES in ordered:
        levels = ordered[SLICES].to_numpy(np.float64).reshape(-1, N_LEVELS)
        found[SLICES] = np.column_stack([levels, logit(noisy_or(sigmoid(levels)))])
    return found


def _fit_line(x: FloatArray, y: FloatArray) -> Line:
    """Least squares per target over the rows that both know."""
    both = ~np.isnan(x[:, 0]) & ~np.isnan(y[:, 0])
    x, y = x[both], y[both]
    if len(x) < FEWEST:
        return [[np.nan] * len(TARGETS)] * 2
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    slope = (dx * dy).sum(axis=0) / np.maximum((dx * dx).sum(axis=0), 1e-9)
    return [(y.mean(axis=0) - slope * x.mean(axis=0)).tolist(), slope.tolist()]


def fit_external(features: pd.DataFrame, scores: Sequence[Scores]) -> ExternalModel:
    """Lines between the files, and from the kit's own slices where there are some.

    Args:
        features: out-of-fold rows of the studies (one fold model each).
        scores: of `read_scores`.
    """
    ordered = features.sort_values(["study_uid", "model_fold", "level"])
    known = _sources(ordered, {s.name: s.probs for s in scores})
    names = [s.name for s in scores]
    lines = {n: {o: _fit_line(x, known[n]) for o, x in known.items() if o != n} for n in names}
    return ExternalModel(names, {n: np.nanmean(known[n], axis=0).tolist() for n in names}, lines)


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

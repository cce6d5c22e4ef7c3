"""What the stack has to beat: fixed formulas on slices and on other people's scores, and the best
constant.

In: features, labels for the constant. Out: probabilities (units, 8) by name, rows of contract
`predictions`. Example::

    from cspine_kit.core.anatomy import TARGETS

    units = features.drop_duplicates(["study_uid", "model_fold"])
    order = units.sort_values(["study_uid", "model_fold"])["study_uid"].to_numpy(object)
    rows = all_predictions(order, formulas(features), fold_of)     # members, means, maxima
    fold = labels["fold"].to_numpy()
    constant = held_out_constant(labels[list(TARGETS)].to_numpy(float), fold, "per_exam")

Formulas are computed per fold model, and log-odds are averaged over `model_fold` last, so that
out-of-fold rows and the kernel's test rows go through the same code.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import N_LEVELS, TARGETS
from cspine_kit.core.errors import TableError
from cspine_kit.core.metric import Form, best_constant
from cspine_kit.core.numbers import FloatArray, IntArray, logit, noisy_or, sigmoid
from cspine_kit.stack.features.names import (
    EXTERNAL,
    LEVEL_LOGIT,
    external_members,
    level_members,
    slice_members,
)

MEAN_OF_MEMBERS = "mean_of_members"
LOG_ODDS_MEAN = "log_odds_mean"
WEIGHTED_MEAN = "visibility_weighted_mean"
CONSTANT = "best_constant"
EDGE = 1e-6
"""Formulas end inside [1e-6, 1 - 1e-6]; the contract asks for the open interval."""


def formulas(features: pd.DataFrame) -> dict[str, FloatArray]:
    """Every fixed formula, by model name, as (n units, 8) probabilities.

    Units are (study_uid, model_fold) in sorted order. `visibility_weighted_mean` pools the slices
    of all members, sum(f v) / sum(v), with the noisy-or overall (source documents A and B); the
    suffix `_max` replaces the overall by the largest level; `maximum` and `top5_mean` (1st place)
    look at the slices inside each level. A member's own row is that weighted mean of its slices,
    what it says of levels, or what its file says; `mean_of_members` and `log_odds_mean` average
    these rows. Without members there are none.
    """
    ordered = features.sort_values(["study_uid", "model_fold", "level"])

    def wide(column: str) -> FloatArray:
        return ordered[column].to_numpy(np.float64).reshape(-1, N_LEVELS)

    members = slice_members(features.columns)
    own = {}
    for name in members:
        levels = wide(f"{name}__fracture__weighted")
        own[name] = np.column_stack([levels, noisy_or(levels)])
    for name in level_members(features.columns):
        judged = sigmoid(wide(f"{name}__{LEVEL_LOGIT}"))
        own[name] = np.column_stack([judged, noisy_or(judged)])
    for name in external_members(features.columns):
        levels, overall = (wide(f"{name}__{EXTERNAL}__{what}") for what in ("own", "overall"))
        own[name] = sigmoid(np.column_stack([levels, overall[:, 0]]))
    if not own:
        return {}
    found = dict(own)
    found[MEAN_OF_MEMBERS] = np.mean(list(own.values()), axis=0)
    found[LOG_ODDS_MEAN] = sigmoid(np.mean([logit(p) for p in own.values()], axis=0))
    return {**found, **(_slice_formulas(members, wide) if members else {})}


def _slice_formulas(members: list[str], wide: Callable[[str], FloatArray]) -> dict[str, FloatArray]:
    """The formulas that look at slices; `wide` gives a column as (n, 7)."""
    maximum, top5 = (
        np.mean([wide(f"{m}__fracture__{name}") for m in members], axis=0)
        for name in ("max", "top5")
    )
    visible = [wide(f"{m}__vertebra__slices") for m in members]
    seen = [wide(f"{m}__fracture__weighted") * v for m, v in zip(members, visible, strict=True)]
    pooled = np.sum(seen, axis=0) / np.sum(visible, axis=0)
    return {
        WEIGHTED_MEAN: np.column_stack([pooled, noisy_or(pooled)]),
        f"{WEIGHTED_MEAN}_max": np.column_stack([pooled, pooled.max(axis=1)]),
        "maximum": np.column_stack([maximum, maximum.max(axis=1)]),
        "top5_mean": np.column_stack([top5, noisy_or(top5)]),
    }


def wide_predictions(predictions: pd.DataFrame, model: str) -> pd.DataFrame:
    """study_uid (index, sorted) by the eight targets of one model of contract `predictions`."""
    own = predictions[predictions["model"] == model]
    if own.empty:
        raise TableError(
            f"predictions: no model {model!r}; got {sorted(set(predictions['model']))}"
        )
    return own.pivot(index="study_uid", columns="target", values="prob")[list(TARGETS)]


def all_predictions(
    study_uid: NDArray[np.object_], models: Mapping[str, FloatArray], fold: pd.Series
) -> pd.DataFrame:
    """Rows of contract `predictions`: the mean log-odds of each study's fold chains, by model.

    Args:
        study_uid: of n rows.
        models: (n, 8) probabilities by model.
        fold: fold by study_uid (-1 for test studies).
    """
    code, uids = pd.factorize(study_uid, sort=True)
    probs = []
    for own in models.values():
        total = np.zeros((len(uids), len(TARGETS)))
        np.add.at(total, code, logit(own))
        probs.append(np.clip(sigmoid(total / np.bincount(code)[:, None]), EDGE, 1.0 - EDGE))
    per_model, study = len(uids) * len(TARGETS), np.repeat(np.asarray(uids), len(TARGETS))
    own_fold = np.repeat(fold.loc[uids].to_numpy(np.int64), len(TARGETS))
    return pd.DataFrame(
        {
            "model": np.repeat(list(models), per_model),
            "study_uid": np.tile(study, len(models)),
            "target": np.tile(np.array(TARGETS), len(models) * len(uids)),
            "prob": np.concatenate(probs).ravel(),
            "fold": np.tile(own_fold, len(models)),
        }
    )


def held_out_constant(y: FloatArray, fold: IntArray, form: Form) -> FloatArray:
    """The best constant (n, 8) of the other folds in one form of the metric, for labels (n, 8)."""
    probs = np.zeros_like(y)
    for k in np.unique(fold):
        probs[fold == k] = best_constant(y[fold != k], form)
    return probs

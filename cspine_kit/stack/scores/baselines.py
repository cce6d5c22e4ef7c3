"""What the stack has to beat: fixed formulas on the slices, and the best constant.

In: features (`aggregate`), labels for the constant. Out: probabilities (units, 8) by name, rows of
contract `predictions`. Example::

    units = features[features["level"] == "C1"]
    rows = all_predictions(units, formulas(features), fold_of)   # members, pooled mean, maxima
    rows = pd.concat([rows, constant_predictions(labels, fold_of, "per_exam")])

Formulas are computed per fold model and averaged over `model_fold` last, so that out-of-fold rows
and the kernel's test rows go through the same code.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import N_LEVELS, TARGETS
from cspine_kit.core.errors import TableError
from cspine_kit.core.metric import Form, best_constant
from cspine_kit.core.numbers import FloatArray, noisy_or
from cspine_kit.stack.features.aggregate import ALL, feature_columns

MEAN_OF_MEMBERS = "mean_of_members"
WEIGHTED_MEAN = "visibility_weighted_mean"
CONSTANT = "best_constant"
EDGE = 1e-6
"""Formulas end inside [1e-6, 1 - 1e-6]; the contract asks for the open interval."""


def members_of(columns: Iterable[str]) -> list[str]:
    """Member names found in feature columns, in order."""
    names = dict.fromkeys(c.split("__")[0] for c in columns)
    return [name for name in names if name != ALL]


def _stacked(features: pd.DataFrame, members: Sequence[str], statistic: str) -> FloatArray:
    """(members, n, 7) values of one statistic; features must be sorted by study, fold, level."""
    wanted = [f"{m}__{statistic}" for m in members]
    missing = [c for c in wanted if c not in features]
    if missing:
        raise TableError(f"features: no column {missing}")
    values = features[wanted].to_numpy(np.float64).T
    stacked: FloatArray = values.reshape(len(members), -1, N_LEVELS)
    return stacked


def formulas(features: pd.DataFrame) -> dict[str, FloatArray]:
    """Every fixed formula, by model name, as (n units, 8) probabilities.

    Units are (study_uid, model_fold) in sorted order. `visibility_weighted_mean` pools the slices
    of all members, sum(f v) / sum(v), with the noisy-or overall (source documents A and B); the
    suffix `_max` replaces the overall by the largest level; `maximum` and `top5_mean` (1st place)
    look at the slices inside each level; `mean_of_members` averages the members' probabilities.
    """
    ordered = features.sort_values(["study_uid", "model_fold", "level"])
    members = members_of(feature_columns(ordered))
    weighted = _stacked(ordered, members, "fracture__weighted")
    visible = _stacked(ordered, members, "vertebra__slices")
    maximum = _stacked(ordered, members, "fracture__max").mean(axis=0)
    top5 = _stacked(ordered, members, "fracture__top5").mean(axis=0)
    pooled = (weighted * visible).sum(axis=0) / visible.sum(axis=0)
    own = {m: np.column_stack([w, noisy_or(w)]) for m, w in zip(members, weighted, strict=True)}
    return {
        **own,
        MEAN_OF_MEMBERS: np.mean(list(own.values()), axis=0),
        WEIGHTED_MEAN: np.column_stack([pooled, noisy_or(pooled)]),
        f"{WEIGHTED_MEAN}_max": np.column_stack([pooled, pooled.max(axis=1)]),
        "maximum": np.column_stack([maximum, maximum.max(axis=1)]),
        "top5_mean": np.column_stack([top5, noisy_or(top5)]),
    }


def long_predictions(model: str, wide: pd.DataFrame, fold: pd.Series) -> pd.DataFrame:
    """Rows of contract `predictions` from study_uid and eight target columns.

    Args:
        model: the name the rows carry.
        wide: study_uid and the targets.
        fold: fold by study_uid (-1 for test studies).
    """
    long = wide.melt("study_uid", list(TARGETS), var_name="target", value_name="prob")
    long["model"] = model
    long["fold"] = long["study_uid"].map(fold).astype("int64")
    return long[["model", "study_uid", "target", "prob", "fold"]]


def wide_predictions(predictions: pd.DataFrame, model: str) -> pd.DataFrame:
    """study_uid (index, sorted) by the eight targets of one model of contract `predictions`."""
    own = predictions[predictions["model"] == model]
    if own.empty:
        raise TableError(
            f"predictions: no model {model!r}; got {sorted(set(predictions['model']))}"
        )
    return own.pivot(index="study_uid", columns="target", values="prob")[list(TARGETS)]


def average_folds(units: pd.DataFrame, probs: FloatArray) -> pd.DataFrame:
    """study_uid and targets: (n units, 8) probabilities averaged over each study's fold models."""
    frame = pd.DataFrame(np.clip(probs, EDGE, 1.0 - EDGE), columns=list(TARGETS))
    frame.insert(0, "study_uid", units["study_uid"].to_numpy())
    return frame.groupby("study_uid", sort=True, as_index=False).mean()


def all_predictions(
    units: pd.DataFrame, models: Mapping[str, FloatArray], fold: pd.Series
) -> pd.DataFrame:
    """Rows of contract `predictions`: every model averaged over the fold models of each study.

    Args:
        units: n rows with study_uid.
        models: (n, 8) probabilities by model.
        fold: fold by study_uid (-1 for test studies).
    """
    code, uids = pd.factorize(units["study_uid"], sort=True)
    count = np.bincount(code)
    mean = np.zeros((len(models), len(uids), len(TARGETS)))
    for i, probs in enumerate(models.values()):
        np.add.at(mean[i], code, np.clip(probs, EDGE, 1.0 - EDGE))
    mean /= count[:, None]
    per_model, study = len(uids) * len(TARGETS), np.repeat(np.asarray(uids), len(TARGETS))
    return pd.DataFrame(
        {
            "model": np.repeat(list(models), per_model),
            "study_uid": np.tile(study, len(models)),
            "target": np.tile(np.array(TARGETS), len(models) * len(uids)),
            "prob": mean.ravel(),
            "fold": np.tile(
                np.repeat(fold.loc[uids].to_numpy(np.int64), len(TARGETS)), len(models)
            ),
        }
    )


def constant_predictions(labels: pd.DataFrame, folds: pd.Series, form: Form) -> pd.DataFrame:
    """The best constant of the other folds, predicted for each fold: model `best_constant`.

    Args:
        labels: study_uid and the eight targets.
        folds: fold by study_uid.
        form: metric form that the constant minimizes.
    """
    fold = labels["study_uid"].map(folds).to_numpy(np.int64)
    y = labels[list(TARGETS)].to_numpy(np.float64)
    probs = np.zeros_like(y)
    for k in np.unique(fold):
        probs[fold == k] = best_constant(y[fold != k], form)
    wide = pd.DataFrame(probs, columns=list(TARGETS))
    wide.insert(0, "study_uid", labels["study_uid"].to_numpy())
    return long_predictions(CONSTANT, wide, folds)

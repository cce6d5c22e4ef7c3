"""Why the stack says what it says: contributions per study and level, importances over all.

In: a `Stack` and features. Out: log-odds contributions that add up to the prediction, and their
mean size per feature. Example::

    parts = contributions(stack, features)          # study_uid, level, feature, contribution
    importances(parts).head(10)

A level's log-odds are the ridge's intercept, one term per feature of the ridge, and the trees' SHAP
values (LightGBM's `pred_contrib`), averaged over seeds and fold models; the sum is exact.
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.numbers import FloatArray
from cspine_kit.stack.model.design import LIFT, FeatureTable, level_design
from cspine_kit.stack.model.head import Design, Head
from cspine_kit.stack.model.linear import EXTREME
from cspine_kit.stack.model.stack import Stack

BASE = "base"
"""Name of the part that no feature explains: intercepts and the trees' mean."""

LEVEL = "level"
"""Name of the category's own part (which of C1..C7 it is)."""


def head_contributions(head: Head, design: Design) -> FloatArray:
    """Parts of each row's log-odds, (n, features + 2): the features, the category, the base.

    The sum over a row is the ridge's log-odds plus the mean raw score of the boosters.
    """
    z = np.clip((design.line - head.ridge.mean) / head.ridge.scale, -EXTREME, EXTREME)
    parts = np.zeros((len(z), z.shape[1] + 2))
    parts[:, :-2] = z * head.ridge.slope
    base = float(head.ridge.intercept.mean())
    parts[:, -2] = head.ridge.intercept[design.category] - base
    parts[:, -1] = base
    for booster in head.boosters:
        shap = booster.predict(design.matrix, pred_contrib=True, num_threads=1)
        parts += np.asarray(shap) / len(head.boosters)
    return parts


def contributions(stack: Stack, features: pd.DataFrame, top: int | None = None) -> pd.DataFrame:
    """Contributions to the level log-odds of every study, averaged over its fold models.

    Args:
        stack: fitted; its level heads are explained (the overall follows from the levels).
        features: rows of `aggregate`.
        top: keep only this many largest contributions per study and level.

    Returns:
        study_uid, level, feature, contribution (log-odds; positive speaks for a fracture), largest
        first inside each study and level.
    """
    table = FeatureTable.of(features, stack.columns)
    names = [*table.columns, LIFT, LEVEL, BASE]
    parts = np.zeros((table.n, N_LEVELS, len(names)))
    for k, heads in stack.folds.items():
        rows = table.model_fold == k
        if rows.any():
            part = table.take(rows)
            design = level_design(part, heads.header.lifts(part.site))
            own = head_contributions(heads.level, design)
            parts[rows] = own.reshape(-1, N_LEVELS, len(names))
    code, uids = pd.factorize(table.study_uid, sort=True)
    mean = np.zeros((len(uids), N_LEVELS, len(names)))
    np.add.at(mean, code, parts)
    mean /= np.bincount(code)[:, None, None]
    flat = mean.reshape(-1, len(names))
    order = np.argsort(-np.abs(flat), axis=1, kind="stable")[:, : top or len(names)]
    kept = order.shape[1]
    return pd.DataFrame(
        {
            "study_uid": np.repeat(np.asarray(uids).astype(str), N_LEVELS * kept),
            "level": np.tile(np.repeat(np.array(LEVELS), kept), len(uids)),
            "feature": np.array(names)[order].ravel(),
            "contribution": np.take_along_axis(flat, order, axis=1).ravel(),
        }
    )


def importances(parts: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute contribution per feature, largest first; the base is left out."""
    size = parts["contribution"].abs().groupby(parts["feature"]).mean()
    ordered = size.drop(BASE, errors="ignore").sort_values(ascending=False)
    return ordered.rename("mean_abs_log_odds").rename_axis("feature").reset_index()

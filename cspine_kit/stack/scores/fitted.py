"""Fitted baselines: what others would have stacked, fitted honestly out-of-fold.

In: out-of-fold features and labels. Out: rows of contract `predictions`, models
`logistic_regression` and `mlp_5th_place`. Example::

    rows = fitted_baselines(features, labels, "per_exam", seed=0)

Both are trained on the out-of-fold rows of the other folds and corrected for the metric's weights
in closed form, so that they lose, where they lose, on what they know. They never ship; scikit-learn
is imported only here.
"""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.metric import Form, row_weights
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.runs import derive_seed
from cspine_kit.stack.features.names import ALL, feature_columns, slice_members
from cspine_kit.stack.model.design import FeatureTable
from cspine_kit.stack.model.linear import one_blas_thread
from cspine_kit.stack.scores.baselines import all_predictions

LOGISTIC, MLP = "logistic_regression", "mlp_5th_place"
LOGISTIC_C = 1.0
MLP_SEEDS = 5
MLP_EPOCHS = 20
EDGE = 1e-3


def metric_odds(probs: FloatArray, y: FloatArray, form: Form) -> FloatArray:
    """Probabilities of an unweighted model, as the metric's weights want them.

    Minimizing a log loss in which positives weigh w1 and negatives w0 moves the best probability p
    to w1 p / (w1 p + w0 (1 - p)); w0 and w1 are the mean weights in the labels y (n, 8).
    """
    w = row_weights(y, form)
    positive = (w * y).sum(axis=0) / np.maximum(y.sum(axis=0), 1.0)
    negative = (w * (1.0 - y)).sum(axis=0) / np.maximum((1.0 - y).sum(axis=0), 1.0)
    known = (positive > 0) & (negative > 0)
    ratio = np.where(known, positive / np.maximum(negative, 1e-300), 1.0)
    shifted: FloatArray = ratio * probs / (ratio * probs + 1.0 - probs)
    return np.clip(shifted, EDGE, 1.0 - EDGE)


def _logistic_inputs(table: FeatureTable) -> FloatArray:
    """(n, 14): mean and smoothed-maximum log-odds of the seven levels."""
    names = (f"{ALL}__fracture__odds", f"{ALL}__smooth__odds")
    return np.hstack([table.column(name) for name in names])


def _fifth_place_inputs(table: FeatureTable) -> FloatArray:
    """(n, 22): mean, min and max over the study of each level's probability, and slices / 1000."""
    members = slice_members(table.columns)
    columns = [
        np.mean([table.column(f"{m}__study__{s}")[:, j] for m in members], axis=0)
        for j in range(len(TARGETS) - 1)
        for s in ("mean", "min", "max")
    ]
    return np.column_stack([*columns, table.column(f"{ALL}__study__slices")[:, 0] / 1000.0])


def _logistic(_: int) -> list[Any]:
    """Ridge logistic regression of each target."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    return [OneVsRestClassifier(LogisticRegression(C=LOGISTIC_C))]


def _networks(seed: int) -> list[Any]:
    """Five networks of 256-128-64, Adam 1e-3, batches of 32, 20 epochs (as 5th place)."""
    from sklearn.neural_network import MLPClassifier

    settings = {"learning_rate_init": 1e-3, "batch_size": 32, "max_iter": MLP_EPOCHS}
    seeds = [derive_seed(seed, i) for i in range(MLP_SEEDS)]
    return [MLPClassifier((256, 128, 64), random_state=s, **settings) for s in seeds]


def _fitted(models: list[Any], x: FloatArray, y: FloatArray, unseen: FloatArray) -> FloatArray:
    """Mean probabilities (n, 8) of some models of scikit-learn on standardized columns."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # epochs are few by intent, a target may have one class
        fitted = [make_pipeline(StandardScaler(), m).fit(x, y.astype(np.int64)) for m in models]
    mean: FloatArray = np.mean([m.predict_proba(unseen) for m in fitted], axis=0)
    return mean


BASELINES = {LOGISTIC: (_logistic_inputs, _logistic), MLP: (_fifth_place_inputs, _networks)}


def fitted_baselines(
    features: pd.DataFrame,
    labels: pd.DataFrame,
    form: Form,
    *,
    seed: int,
    unseen: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Out-of-fold rows of both, or rows of test studies.

    Args:
        features: out-of-fold rows of `aggregate`.
        labels: study_uid and the eight targets of every study.
        form: metric form their probabilities are corrected for.
        seed: of the networks.
        unseen: rows of `aggregate` of test studies: then both are fitted once on all rows, and
            fold models are averaged.
    """
    table = FeatureTable.of(features, tuple(feature_columns(features.columns)))
    own = labels.set_index("study_uid").loc[pd.Index(table.study_uid), list(TARGETS)]
    y, test = own.to_numpy(np.float64), table
    fold = pd.Series(table.model_fold, index=table.study_uid)
    splits: list[Any] = [
        (int(k), table.model_fold != k, table.model_fold == k) for k in np.unique(table.model_fold)
    ]
    if unseen is not None:
        test = FeatureTable.of(unseen, tuple(feature_columns(unseen.columns)))
        fold, splits = pd.Series(-1, index=np.unique(test.study_uid)), [("test", ..., ...)]
    models = {}
    with one_blas_thread():
        for model, (inputs, make) in BASELINES.items():
            x, new = inputs(table), inputs(test)
            models[model] = np.zeros((test.n, len(TARGETS)))
            for k, train, held in tqdm(splits, desc=model, unit="fold"):
                found = _fitted(make(derive_seed(seed, model, k)), x[train], y[train], new[held])
                models[model][held] = metric_odds(found, y[train], form)
    return all_predictions(test.study_uid, models, fold)

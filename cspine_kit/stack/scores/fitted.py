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
from cspine_kit.stack.scores.baselines import all_predictions, long_predictions

LOGISTIC, MLP = "logistic_regression", "mlp_5th_place"
LOGISTIC_C = 1.0
MLP_SEEDS = 5
MLP_EPOCHS = 20
EDGE = 1e-3


def metric_ratio(y: FloatArray, form: Form) -> FloatArray:
    """Mean weight of positives over that of negatives, by target (8,), in labels (n, 8)."""
    w = row_weights(y, form)
    positive = (w * y).sum(axis=0) / np.maximum(y.sum(axis=0), 1.0)
    negative = (w * (1.0 - y)).sum(axis=0) / np.maximum((1.0 - y).sum(axis=0), 1.0)
    known = (positive > 0) & (negative > 0)
    return np.where(known, positive / np.maximum(negative, 1e-300), 1.0)


def metric_odds(probs: FloatArray, y: FloatArray, form: Form) -> FloatArray:
    """Probabilities of an unweighted model, as the metric's weights want them.

    Minimizing a log loss in which positives weigh w1 and negatives w0 moves the best probability p
    to w1 p / (w1 p + w0 (1 - p)); w0 and w1 are the mean weights in the training labels.
    """
    ratio = metric_ratio(y, form)
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


def _fit_logistic(x: FloatArray, y: FloatArray, unseen: FloatArray, _: int) -> FloatArray:
    """Ridge logistic regression of each target; a target of one class gets its rate."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probs = np.tile(y.mean(axis=0), (len(unseen), 1))
    for j in np.flatnonzero((y.min(axis=0) == 0.0) & (y.max(axis=0) == 1.0)):
        model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=LOGISTIC_C))
        probs[:, j] = model.fit(x, y[:, j]).predict_proba(unseen)[:, 1]
    return probs


def _fit_mlp(x: FloatArray, y: FloatArray, unseen: FloatArray, seed: int) -> FloatArray:
    """Mean of five 256-128-64 networks, Adam 1e-3, batches of 32, 20 epochs (as 5th place)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    total = np.zeros((len(unseen), y.shape[1]))
    for i in range(MLP_SEEDS):
        network: Any = MLPClassifier(
            (256, 128, 64),
            learning_rate_init=1e-3,
            batch_size=min(32, len(x)),
            max_iter=MLP_EPOCHS,
            random_state=derive_seed(seed, i),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit((x - mean) / scale, y.astype(np.int64))
        total += network.predict_proba((unseen - mean) / scale)
    return total / MLP_SEEDS


BASELINES = {LOGISTIC: (_logistic_inputs, _fit_logistic), MLP: (_fifth_place_inputs, _fit_mlp)}


def _table(features: pd.DataFrame) -> FeatureTable:
    return FeatureTable.of(features, tuple(feature_columns(features.columns)))


def _labels_of(table: FeatureTable, labels: pd.DataFrame) -> FloatArray:
    own = labels.set_index("study_uid").loc[pd.Index(table.study_uid), list(TARGETS)]
    return own.to_numpy(np.float64)


def fitted_baselines(
    features: pd.DataFrame, labels: pd.DataFrame, form: Form, *, seed: int
) -> pd.DataFrame:
    """Out-of-fold rows of both.

    Args:
        features: out-of-fold rows of `aggregate`.
        labels: study_uid and the eight targets of every study.
        form: metric form their probabilities are corrected for.
        seed: of the networks.
    """
    table = _table(features)
    y = _labels_of(table, labels)
    fold_of = pd.Series(table.model_fold, index=table.study_uid)
    rows = []
    with one_blas_thread():
        for model, (inputs, fit) in BASELINES.items():
            x, probs = inputs(table), np.zeros_like(y)
            for k in tqdm(np.unique(table.model_fold), desc=model, unit="fold"):
                train, held = table.model_fold != k, table.model_fold == k
                fitted = fit(x[train], y[train], x[held], derive_seed(seed, model, int(k)))
                probs[held] = metric_odds(fitted, y[train], form)
            wide = pd.DataFrame(probs, columns=list(TARGETS))
            wide.insert(0, "study_uid", table.study_uid)
            rows.append(long_predictions(model, wide, fold_of))
    return pd.concat(rows, ignore_index=True)


def fitted_baselines_on_test(
    features: pd.DataFrame,
    labels: pd.DataFrame,
    test_features: pd.DataFrame,
    form: Form,
    *,
    seed: int,
) -> pd.DataFrame:
    """Rows of both for test studies: fitted once on all out-of-fold rows.

    Args:
        features, labels, form, seed: as for `fitted_baselines`.
        test_features: rows of `aggregate` of test studies; fold models are averaged.
    """
    table, test = _table(features), _table(test_features)
    y = _labels_of(table, labels)
    fold_of = pd.Series(-1, index=np.unique(test.study_uid))
    models = {}
    with one_blas_thread():
        for model, (inputs, fit) in BASELINES.items():
            fitted = fit(inputs(table), y, inputs(test), derive_seed(seed, model, "test"))
            models[model] = metric_odds(fitted, y, form)
    return all_predictions(test.study_uid, models, fold_of)

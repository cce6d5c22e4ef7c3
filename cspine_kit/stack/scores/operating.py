"""Operating points: thresholds for a wished sensitivity or the best F1, and what they give.

In: labels and out-of-fold probabilities. Out: thresholds by target and point, frozen in the bundle,
and a table of what they give on studies they were not chosen on. Example::

    from cspine_kit.stack.scores.baselines import wide_predictions

    own = labels.sort_values("study_uid")
    y = own[list(TARGETS)].to_numpy(float)
    probs = wide_predictions(predictions, "shipped").loc[own["study_uid"]].to_numpy()
    points = choose_points(y, probs, (0.9,))             # {"C1": {"best_f1": 0.31, ...}, ...}
    table = operating_table(y, probs, own["fold"].to_numpy(), (0.9,))
    calls = called(probs, points, BEST_F1)               # (n, 8) bool

The weights of the metric push probabilities up, so 0.5 is nobody's threshold.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray

BEST_F1 = "best_f1"
NEVER = 1.0
"""Threshold of a target that shows no fracture to choose one on."""

Points = Mapping[str, Mapping[str, float]]


def choose_threshold(y: FloatArray, p: FloatArray, sensitivity: float | None = None) -> float:
    """The threshold (p >= it is called fractured) for the best F1, or for a sensitivity.

    Args:
        y, p: (n,) of 0 / 1, probabilities.
        sensitivity: at least this share of the fractured must be called; the largest threshold
            that does it is taken.
    """
    from sklearn.metrics import precision_recall_curve

    if y.sum() == 0.0:
        return NEVER
    precision, recall, thresholds = precision_recall_curve(y, p)
    if sensitivity is not None:
        return float(thresholds[recall[:-1] >= sensitivity - 1e-9][-1])
    f1 = 2.0 * precision * recall / np.maximum(precision + recall, 1e-300)
    return float(thresholds[::-1][int(np.argmax(np.round(f1[:-1][::-1], 12)))])


def choose_points(
    y: FloatArray, p: FloatArray, sensitivities: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Thresholds by target and point, of (n, 8) labels and probabilities."""
    wanted = {BEST_F1: None, **{f"sensitivity_{s:g}": s for s in sensitivities}}
    return {
        target: {name: choose_threshold(y[:, j], p[:, j], s) for name, s in wanted.items()}
        for j, target in enumerate(TARGETS)
    }


def called(p: FloatArray, points: Points, point: str) -> BoolArray:
    """Which of (n, 8) probabilities count as fractured at a point."""
    calls: BoolArray = p >= np.array([points[target][point] for target in TARGETS])
    return calls


def nested_calls(
    y: FloatArray, p: FloatArray, fold: IntArray, sensitivities: Sequence[float]
) -> dict[str, BoolArray]:
    """(n, 8) calls by point: fold k at the thresholds that the other folds have chosen.

    Where there is one fold only, it chooses its own.
    """
    calls: dict[str, BoolArray] = {}
    for k in np.unique(fold):
        held = fold == k
        rest = ~held if not held.all() else held
        points = choose_points(y[rest], p[rest], sensitivities)
        for name in points[TARGETS[0]]:
            own = calls.setdefault(name, np.zeros(p.shape, dtype=bool))
            own[held] = called(p[held], points, name)
    return calls


def confusion(y: FloatArray, calls: BoolArray) -> dict[str, float]:
    """Counts and shares of (n,) calls: tp, fp, fn, tn, accuracy, precision, recall, specificity,
    f1; a share of nothing is NaN."""
    from sklearn.metrics import confusion_matrix

    tn, fp, fn, tp = confusion_matrix(y > 0.5, calls, labels=[False, True]).ravel().tolist()
    shares = {
        "accuracy": (tp + tn, len(y)),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "f1": (2 * tp, 2 * tp + fp + fn),
    }
    counts = {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    return counts | {n: part / all_ if all_ else np.nan for n, (part, all_) in shares.items()}


def operating_table(
    y: FloatArray, p: FloatArray, fold: IntArray, sensitivities: Sequence[float]
) -> pd.DataFrame:
    """One row per target and point: the threshold of all studies, and what nested ones give.

    Args:
        y, p, fold: (n, 8) labels and out-of-fold probabilities, (n,) folds.
        sensitivities: wished, beside the best F1.
    """
    points = choose_points(y, p, sensitivities)
    calls = nested_calls(y, p, fold, sensitivities)
    return pd.DataFrame(
        [
            {"target": target, "point": name, "threshold": points[target][name]}
            | confusion(y[:, j], own[:, j])
            for j, target in enumerate(TARGETS)
            for name, own in calls.items()
        ]
    )

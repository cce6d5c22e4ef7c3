"""The competition's weighted multi-label log loss, in the two forms in circulation.

In: arrays (n_studies, 8) in the order of `TARGETS`. Out: floats. Example::

    >>> score = evaluate(np.eye(8), np.full((8, 8), 0.5))
    >>> round(score.per_exam, 4), round(score.whole, 4)     # form A (default), form B
    (0.6931, 0.6931)

Weights: `core.anatomy`. The official page gives neither weights nor normalizer, so both are given:
form A, per exam: the mean over exams of sum_j(w L) / sum_j(w) (what most strong competitors
validated with); form B, global: sum_ij(w L) / sum_ij(w).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.anatomy import (
    LEVEL_WEIGHT,
    LEVELS,
    OVERALL_WEIGHT,
    POSITIVE_FACTOR,
    TARGETS,
)
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.numbers import FloatArray, log_losses

Form = Literal["per_exam", "global"]

DRAWN_AT_ONCE = 100
"""Bootstrap draws of an AUC that are held in memory together."""

_NEGATIVE_WEIGHTS = np.array([LEVEL_WEIGHT] * len(LEVELS) + [OVERALL_WEIGHT])


@dataclass(frozen=True)
class Score:
    """Both forms of the metric and the plain log loss of each target."""

    per_exam: float
    whole: float
    per_target: dict[str, float]
    n_studies: int


def weights(labels: NDArray[np.generic]) -> FloatArray:
    """Weight of every (study, target): 1 / 2 for levels, 7 / 14 for overall. Shape of `labels`."""
    positive = np.asarray(labels, dtype=np.float64) > 0.5
    return _NEGATIVE_WEIGHTS * np.where(positive, POSITIVE_FACTOR, 1.0)


def row_weights(labels: NDArray[np.generic], form: Form = "per_exam") -> FloatArray:
    """Weights (n, 8) whose weighted sum of log losses is the metric itself (they sum to 1)."""
    w = weights(labels)
    if form == "per_exam":
        per_exam: FloatArray = w / w.sum(axis=1, keepdims=True) / len(w)
        return per_exam
    return np.asarray(w / w.sum(), dtype=np.float64)


def metric(
    labels: NDArray[np.generic], probs: NDArray[np.generic], form: Form = "per_exam"
) -> float:
    """One form of the metric.

    Args:
        labels: (n, 8) of 0 / 1.
        probs: (n, 8) in [0, 1].
        form: "per_exam" (A) or "global" (B).

    Raises:
        CSpineError: shapes differ, no study, or NaN.
    """
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probs, dtype=np.float64)
    if y.shape != p.shape or y.ndim != 2 or y.shape[1] != len(TARGETS) or len(y) == 0:
        raise CSpineError(
            f"metric needs labels and probs of one shape (n >= 1, {len(TARGETS)}), "
            f"got {y.shape} and {p.shape}"
        )
    if np.isnan(y).any() or np.isnan(p).any():
        raise CSpineError("metric got NaN; validate the submission first (cspine score does)")
    return float((row_weights(y, form) * log_losses(y, p)).sum())


def evaluate(labels: NDArray[np.generic], probs: NDArray[np.generic]) -> Score:
    """Both forms and the mean unweighted log loss per target, for (n, 8) labels and probs."""
    per_exam, whole = metric(labels, probs, "per_exam"), metric(labels, probs, "global")
    per_target = log_losses(labels, probs).mean(axis=0)
    return Score(
        per_exam=per_exam,
        whole=whole,
        per_target={t: float(v) for t, v in zip(TARGETS, per_target, strict=True)},
        n_studies=len(np.asarray(labels)),
    )


def auc(labels: NDArray[np.generic], scores: NDArray[np.generic]) -> float:
    """Area under the ROC curve of (n,) scores, ties count half; NaN where the labels (n,) are all
    alike."""
    from sklearn.metrics import roc_auc_score

    y = np.asarray(labels, dtype=np.float64)
    return float(roc_auc_score(y, scores)) if 0.0 < y.mean() < 1.0 else float("nan")


def best_constant(labels: NDArray[np.generic], form: Form = "per_exam") -> FloatArray:
    """The constant prediction (8,) that minimizes the metric on `labels`, in closed form.

    For each target the minimizer of a weighted log loss is the weighted mean of its labels. A
    target without a positive (or negative) gets half a study's worth of the missing class, so that
    the constant stays inside (0, 1) on small folds.
    """
    y = np.asarray(labels, dtype=np.float64)
    w = row_weights(y, form)
    total = w.sum(axis=0)
    prior = 0.5 / len(y)
    constant: FloatArray = np.clip((w * y).sum(axis=0) / total, prior, 1.0 - prior)
    return constant


def bootstrap_interval(
    labels: NDArray[np.generic],
    probs: NDArray[np.generic],
    form: Form = "per_exam",
    *,
    others: NDArray[np.generic] | None = None,
    repeats: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the metric over studies.

    With `others`, of metric(probs) - metric(others) on the same draws of studies. Of several
    predictions of the same studies, (k, n, 8), the mean of their losses counts.
    """
    y = np.asarray(labels, dtype=np.float64)
    weighted, losses = weights(y), log_losses(y, probs)
    if others is not None:
        losses = losses - log_losses(y, others)
    losses = losses.mean(axis=tuple(range(losses.ndim - 2)))
    loss, total = (weighted * losses).sum(axis=1), weighted.sum(axis=1)
    draws = np.random.default_rng(seed).integers(0, len(y), size=(repeats, len(y)))
    if form == "per_exam":
        values = (loss / total)[draws].mean(axis=1)
    else:
        values = loss[draws].sum(axis=1) / total[draws].sum(axis=1)
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def level_auc(labels: NDArray[np.generic], probs: NDArray[np.generic]) -> float:
    """AUC of all vertebrae of all studies at once, from (n, 8) labels and probs."""
    levels = len(LEVELS)
    return auc(np.asarray(labels)[:, :levels].ravel(), np.asarray(probs)[:, :levels].ravel())


def auc_draws(
    labels: NDArray[np.generic],
    scores: NDArray[np.generic],
    *,
    repeats: int = 1000,
    seed: int = 0,
) -> FloatArray:
    """AUC of (n, k) scores on each of `repeats` draws of n studies, (repeats,); unknown scores
    (NaN) count nowhere, a draw in which all labels are alike gives NaN.

    A draw is a weight of each study; AUC with weights needs the scores sorted but once. The same
    seed draws the same studies: differences of two predictions are paired.
    """
    held = np.isfinite(scores)
    study = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape)[held]
    values, group = np.unique(scores[held], return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(values)))
    broken = (np.asarray(labels, dtype=np.float64)[held] > 0.5)[order]
    rng, found = np.random.default_rng(seed), []
    for start in range(0, repeats, DRAWN_AT_ONCE):
        size = (min(DRAWN_AT_ONCE, repeats - start), len(scores))
        drawn = rng.integers(0, len(scores), size)
        weight = np.stack([np.bincount(d, minlength=len(scores)) for d in drawn])[:, study[order]]
        hurt, sound = (
            np.add.reduceat(weight * own, starts, axis=1).astype(np.float64)
            for own in (broken, ~broken)
        )
        below = np.cumsum(sound, axis=1) - sound / 2
        pairs = hurt.sum(axis=1) * sound.sum(axis=1)
        ranked = (hurt * below).sum(axis=1)
        found.append(np.divide(ranked, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))
    return np.concatenate(found)


def level_auc_interval(
    labels: NDArray[np.generic],
    probs: NDArray[np.generic],
    others: NDArray[np.generic],
    *,
    repeats: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval over studies of level_auc(probs) - level_auc(others), its
    mean where there are several predictions of the same studies, (k, n, 8)."""
    levels = len(LEVELS)
    own, other = (
        np.mean(
            [
                auc_draws(labels[:, :levels], one[:, :levels], repeats=repeats, seed=seed)
                for one in said
            ],
            axis=0,
        )
        for said in (probs, others)
    )
    low, high = np.nanquantile(own - other, [0.025, 0.975])
    return float(low), float(high)

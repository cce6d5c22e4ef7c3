"""Weighted means of whole models, in log-odds.

In: several models' probabilities of the same studies. Out: weights by model name, and the blend.
Example::

    >>> y = np.eye(8)
    >>> models = {"sure": 0.1 + 0.8 * y, "unsure": 0.4 + 0.2 * y}
    >>> weights = greedy_weights(models, y, np.full((8, 8), 1 / 64))
    >>> weights, float(blend(models, weights).max().round(6))
    ({'sure': 1.0}, 0.9)

Weights are fitted inside the folds, on predictions of studies that no component has seen; the plain
mean stands beside them, because fitted weights often only fit.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.numbers import FloatArray, log_losses, logit, sigmoid
from cspine_kit.stack.scores.baselines import long_predictions, wide_predictions

RANKED = "blend_rank"
"""Model name of `rank_predictions`."""

STEPS = 20
"""Picks of the greedy selection (with replacement): weights are multiples of 1/20."""


def blend(models: Mapping[str, FloatArray], weights: Mapping[str, float]) -> FloatArray:
    """Weighted mean in log-odds of (n, 8) probabilities; weights are scaled to sum 1."""
    total = sum(weights.values())
    odds = sum(weights[name] / total * logit(models[name]) for name in weights)
    return sigmoid(np.asarray(odds))


def plain_weights(models: Mapping[str, FloatArray]) -> dict[str, float]:
    """Every model alike."""
    return {name: 1.0 / len(models) for name in models}


def _loss(probs: FloatArray, labels: FloatArray, weights: FloatArray) -> float:
    return float((weights * log_losses(labels, probs)).sum())


def greedy_weights(
    models: Mapping[str, FloatArray], labels: FloatArray, weights: FloatArray
) -> dict[str, float]:
    """Ensemble selection with replacement (Caruana et al. 2004): add what helps most, 20 times.

    Args:
        models: held-out probabilities (n, 8) by name.
        labels, weights: (n, 8); weights are the metric's.
    """
    odds = {name: logit(probs) for name, probs in models.items()}
    total = np.zeros_like(labels)
    picks: list[str] = []
    for step in range(1, STEPS + 1):
        losses = {n: _loss(sigmoid((total + o) / step), labels, weights) for n, o in odds.items()}
        name = min(losses, key=lambda n: losses[n])
        total = total + odds[name]
        picks.append(name)
    return {name: picks.count(name) / STEPS for name in models if name in picks}


def search_weights(
    models: Mapping[str, FloatArray], labels: FloatArray, weights: FloatArray, *, steps: int = 200
) -> dict[str, float]:
    """Weights on the simplex by exponentiated gradient on the weighted log loss."""
    names = list(models)
    odds = np.stack([logit(models[name]) for name in names])
    share = np.full(len(names), 1.0 / len(names))
    scale = weights.sum()
    for _ in range(steps):
        residual = weights / scale * (sigmoid(np.tensordot(share, odds, axes=1)) - labels)
        gradient = (odds * residual).sum(axis=(1, 2))
        share = share * np.exp(-0.5 * (gradient - gradient.min()))
        share = share / share.sum()
    return {name: float(s) for name, s in zip(names, share, strict=True) if s > 1e-3}


def rank_mean(models: Mapping[str, FloatArray]) -> FloatArray:
    """Mean of ranks per target, mapped back on the mean of the models' sorted log-odds.

    Needs the whole set of studies at once, so it is a yardstick and never ships: the kernel sees
    one study at a time.
    """
    odds = np.stack([logit(probs) for probs in models.values()])
    ranks = odds.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable").mean(axis=0)
    place = ranks.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    typical = np.sort(odds, axis=1).mean(axis=0)
    return sigmoid(np.take_along_axis(typical, place, axis=0))


def rank_predictions(predictions: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Rank mean of some models inside each fold (test studies are one), as model `blend_rank`.

    Args:
        predictions: contract `predictions`.
        models: names whose rows are there for the same studies.
    """
    wide = {name: wide_predictions(predictions, name) for name in models}
    first = wide[models[0]]
    fold = predictions.drop_duplicates("study_uid").set_index("study_uid")["fold"].loc[first.index]
    mixed = first.copy()
    for k in fold.unique():
        rows = (fold == k).to_numpy()
        mixed.loc[rows, list(TARGETS)] = rank_mean({n: w[rows].to_numpy() for n, w in wide.items()})
    return long_predictions(RANKED, mixed.reset_index(), fold)

"""Ridge logistic regression in numpy: the robust backbone that the boosters correct.

In: a design matrix, labels 0 / 1, row weights and an integer category per row. Out: log-odds.
Example::

    >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0.0, 0.0, 1.0, 1.0])
    >>> one = np.zeros(4, dtype=int)
    >>> model = fit_ridge(x, y, np.ones(4), one, n_categories=1, penalty=1.0)
    >>> (model.odds(x, one) > 0).tolist()
    [False, False, True, True]

On a few hundred rows trees alone overfit and a straight line in log-odds does not; on many rows the
line costs nothing, because trees learn what it misses. Written here so that the kernel needs no
scikit-learn.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray, sigmoid

ITERATIONS = 50
TOLERANCE = 1e-8
CATEGORY_PENALTY = 1.0
"""Pulls each category's intercept to the common one; in rows of weight 1."""

EXTREME = 6.0
"""Standardized values are cut here, so that one odd study cannot drag the line."""


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run matrix products on one thread: the same bytes on any machine, and no busy waiting where
    folds already fill the cores (four times slower under load without it)."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


@dataclass(frozen=True)
class Ridge:
    """A fitted line: log-odds = intercept[category] + slope . (x - mean) / scale."""

    mean: FloatArray
    scale: FloatArray
    slope: FloatArray
    intercept: FloatArray

    def odds(self, x: FloatArray, category: IntArray) -> FloatArray:
        """Log-odds (n,) of rows x (n, features)."""
        z = np.clip((x - self.mean) / self.scale, -EXTREME, EXTREME)
        result: FloatArray = z @ self.slope + self.intercept[category]
        return result

    def to_json(self) -> dict[str, list[float]]:
        """Plain lists; `Ridge.from_json` gives back equal arrays."""
        return {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Ridge":
        """Inverse of `to_json`."""
        return cls(**{k: np.asarray(value[k], dtype=np.float64) for k in cls.__dataclass_fields__})


def fit_ridge(
    x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    category: IntArray,
    *,
    n_categories: int,
    penalty: float | FloatArray,
    rising: BoolArray | None = None,
) -> Ridge:
    """Minimize sum(w log loss) + sum(penalty slope^2) / 2 by projected Newton steps.

    Args:
        x: (n, features); constant columns get slope 0.
        y: (n,) of 0 / 1.
        weights: (n,), scaled here to mean 1, so that `penalty` is in rows.
        category: (n,) of 0..n_categories - 1; each has its own intercept.
        penalty: ridge strength on standardized features, one for all or one each.
        rising: (features,) true where the slope may not be negative.
    """
    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    z = np.clip((x - mean) / scale, -EXTREME, EXTREME)
    dummies = (category[:, None] == np.arange(n_categories)).astype(np.float64)
    design = np.hstack([np.ones((len(x), 1)), dummies, z])
    slopes = np.broadcast_to(np.asarray(penalty, dtype=np.float64), z.shape[1:])
    ridge = np.concatenate([[1e-6], np.full(n_categories, CATEGORY_PENALTY), slopes])
    bounded = np.zeros(len(ridge), dtype=bool)
    if rising is not None:
        bounded[1 + n_categories :] = rising
    w = weights / weights.mean()
    beta = np.zeros(design.shape[1])
    rate = np.clip(np.average(y, weights=w), 0.5 / len(y), 1.0 - 0.5 / len(y))
    beta[0] = np.log(rate / (1.0 - rate))
    loss = _objective(design, y, w, beta, ridge)
    for _ in range(ITERATIONS):
        p = sigmoid(design @ beta, limit=np.inf)
        gradient = design.T @ (w * (p - y)) + ridge * beta
        free = ~(bounded & (beta <= 0.0) & (gradient >= 0.0))
        part = design[:, free]
        curvature = (part * (w * p * (1.0 - p))[:, None]).T @ part + np.diag(ridge[free])
        step = np.zeros(len(beta))
        step[free] = np.linalg.solve(curvature, gradient[free])
        share, lower, moved = 1.0, loss, beta
        while share > 1e-6:
            moved = beta - share * step
            moved[bounded] = np.maximum(moved[bounded], 0.0)
            lower = _objective(design, y, w, moved, ridge)
            if lower <= loss:
                break
            share /= 2.0
        gained = loss - lower
        if gained <= 0.0:
            break
        beta, loss = moved, lower
        if gained < TOLERANCE * len(y):
            break
    return Ridge(mean, scale, beta[1 + n_categories :], beta[0] + beta[1 : 1 + n_categories])


def _objective(
    design: FloatArray, y: FloatArray, w: FloatArray, beta: FloatArray, ridge: FloatArray
) -> float:
    odds = design @ beta
    return float((w * (np.logaddexp(0.0, odds) - y * odds)).sum() + 0.5 * (ridge * beta**2).sum())

"""Ridge logistic regression: the robust backbone that the boosters correct.

In: a design matrix, labels 0 / 1, row weights and an integer category per row. Out: log-odds.
Example::

    >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0.0, 0.0, 1.0, 1.0])
    >>> one = np.zeros(4, dtype=int)
    >>> model = fit_ridge(x, y, np.ones(4), one, n_categories=1, penalty=1.0)
    >>> (model.odds(x, one) > 0).tolist()
    [False, False, True, True]

On a few hundred rows trees alone overfit and a straight line in log-odds does not; on many rows the
line costs nothing, because trees learn what it misses. Fitting needs SciPy, predicting does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray, sigmoid

ITERATIONS = 1000
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

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Ridge":
        """What JSON made of `vars`."""
        return cls(**{name: np.asarray(v, dtype=np.float64) for name, v in value.items()})


def fit_ridge(
    x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    category: IntArray,
    *,
    n_categories: int,
    penalty: float | FloatArray,
    rising: BoolArray | None = None,
    start: Ridge | None = None,
) -> Ridge:
    """Minimize sum(w log loss) + sum(penalty slope^2) / 2 by L-BFGS-B.

    Args:
        x: (n, features); constant columns get slope 0.
        y: (n,) of 0 / 1.
        weights: (n,), scaled here to mean 1, so that `penalty` is in rows.
        category: (n,) of 0..n_categories - 1; each has its own intercept.
        penalty: ridge strength on standardized features, one for all or one each.
        rising: (features,) true where the slope may not be negative.
        start: a line fitted on the same rows with another penalty, where the search begins.
    """
    from scipy.optimize import minimize

    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    z = np.clip((x - mean) / scale, -EXTREME, EXTREME)
    w = weights / weights.mean()
    ridge = np.concatenate([np.full(n_categories, CATEGORY_PENALTY), np.zeros(z.shape[1])])
    ridge[n_categories:] = penalty
    rate = np.clip(np.average(y, weights=w), 0.5 / len(y), 1.0 - 0.5 / len(y))
    common = float(np.log(rate / (1.0 - rate)))

    def objective(beta: FloatArray) -> tuple[float, FloatArray]:
        own, slope = beta[:n_categories], beta[n_categories:]
        odds = z @ slope + own[category] + common
        residual = w * (sigmoid(odds, limit=np.inf) - y)
        gradient = np.concatenate([np.bincount(category, residual, n_categories), z.T @ residual])
        loss = (w * (np.logaddexp(0.0, odds) - y * odds)).sum() + 0.5 * (ridge * beta**2).sum()
        return float(loss), gradient + ridge * beta

    beta = np.zeros(len(ridge))
    if start is not None:
        beta = np.concatenate([start.intercept - common, start.slope])
    low = np.full(len(ridge), -np.inf)
    if rising is not None:
        low[n_categories:][rising] = 0.0
    found = minimize(
        objective,
        np.maximum(beta, low),
        jac=True,
        method="L-BFGS-B",
        bounds=[(b, None) for b in low],
        options={"maxiter": ITERATIONS, "ftol": 1e-9, "gtol": 1e-3, "maxcor": 20},
    ).x
    return Ridge(mean, scale, found[n_categories:], found[:n_categories] + common)

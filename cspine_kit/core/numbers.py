"""Sigmoid, log-odds, log loss and noisy-or: written once, for every room.

In: arrays of any shape. Out: arrays of the same shape. Example::

    >>> probs = sigmoid(np.array([-2.0, 0.0]))
    >>> logit(probs).round(6).tolist()
    [-2.0, 0.0]

The names of arrays that the rooms share are here too.
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

LOGIT_LIMIT = 15.0
"""Logits are cut here: beyond it float32 probabilities say nothing more, and an infinite logit of a
broken model must not become an infinite feature."""

LOG_CLIP = 1e-15
"""Probabilities are clipped to [1e-15, 1 - 1e-15] before the log, as MLE-bench's grader does."""


def sigmoid(logits: FloatArray, limit: float = LOGIT_LIMIT) -> FloatArray:
    """Probabilities of logits that are cut at +-`limit`; never exactly 0 or 1 below 36."""
    cut: FloatArray = 1.0 / (1.0 + np.exp(-np.clip(logits, -limit, limit)))
    return cut


def logit(probs: FloatArray) -> FloatArray:
    """Log-odds, cut at +-`LOGIT_LIMIT`: the inverse of `sigmoid`."""
    edge = 1.0 / (1.0 + np.exp(LOGIT_LIMIT))
    p = np.clip(probs, edge, 1.0 - edge)
    odds: FloatArray = np.log(p) - np.log1p(-p)
    return odds


def log_losses(labels: NDArray[np.generic], probs: NDArray[np.generic]) -> FloatArray:
    """Binary cross-entropy of each element, in nats and float64.

    Args:
        labels: 0 / 1, or shares between.
        probs: the same shape; clipped by `LOG_CLIP`.
    """
    y = np.asarray(labels, dtype=np.float64)
    p = np.clip(np.asarray(probs, dtype=np.float64), LOG_CLIP, 1.0 - LOG_CLIP)
    losses: FloatArray = -(y * np.log(p) + (1.0 - y) * np.log1p(-p))
    return losses


def noisy_or(probs: FloatArray, edge: float = 1e-9) -> FloatArray:
    """Probability 1 - prod_j (1 - p_j) that any of several independent things is so.

    Args:
        probs: (n, k); values above 1 - edge count as 1 - edge.

    Returns:
        (n,). Formula: source document B's overall from the seven levels.
    """
    kept = np.clip(probs, 0.0, 1.0 - edge)
    any_of: FloatArray = -np.expm1(np.log1p(-kept).sum(axis=1))
    return any_of

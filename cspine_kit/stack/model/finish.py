"""The last step of a prediction: a temperature where the rows certainly ask for one.

In: held-out probabilities (n, 8), labels, weights. Out: slopes of the log-odds. Example::

    y = (rng.random((400, 8)) < 0.3).astype(float)
    held_out = np.full((400, 8), 0.3)
    slopes = fit_slopes(held_out, y, np.ones((400, 8)))  # 1.0 for all: nothing is certain
    probs = sigmoid(slopes * logit(held_out))

Out-of-fold rows come from one fold chain each and test rows from the mean of all chains, so what
calibrates the former need not calibrate the latter: doing nothing is the rule.
"""

import numpy as np

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.numbers import FloatArray, log_losses, logit, sigmoid

SLOPES = np.geomspace(0.5, 2.0, 29)
FEWEST = 50
"""Fewer studies say nothing certain about a temperature."""


def fit_slopes(probs: FloatArray, labels: FloatArray, weights: FloatArray) -> FloatArray:
    """A factor for the log-odds of each target, (8,): one for the levels, one for the overall.

    It is 1 unless the best factor lowers the loss by more than one standard error of its gain over
    studies (the one-standard-error rule), of which there must be `FEWEST`.

    Args:
        probs, labels, weights: (n, 8); probabilities of studies that their model has not seen,
            weights of the metric.
    """
    odds = logit(probs)
    slopes = np.ones(probs.shape[1])
    for part in (slice(0, N_LEVELS), slice(N_LEVELS, None)):
        y, w = labels[:, part], weights[:, part]
        losses = [(w * log_losses(y, sigmoid(s * odds[:, part]))).sum(axis=1) for s in SLOPES]
        best = int(np.argmin([loss.sum() for loss in losses]))
        gain = (w * log_losses(y, probs[:, part])).sum(axis=1) - losses[best]
        if len(gain) >= FEWEST and gain.sum() > gain.std() * np.sqrt(len(gain)):
            slopes[part] = SLOPES[best]
    return slopes

"""The last step of a prediction: calibration, coherence, clip; each taken only where it pays.

In: inner out-of-fold probabilities (n, 8), labels, weights, inner folds. Out: a `Finish` that turns
raw probabilities into final ones. Example::

    y = (rng.random((40, 8)) < 0.3).astype(float)
    probs = np.clip(0.3 + 0.2 * y + rng.normal(scale=0.1, size=y.shape), 0.01, 0.99)
    finish = fit_finish(probs, y, np.ones_like(y), np.arange(40) % 4, clip=0.003)
    finish.apply(probs[:5])

Every choice is made by cross-validation over the inner folds, and "do nothing" wins ties: a
calibrator that gains less than `WORTH` of the loss is noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cspine_kit.core.anatomy import N_LEVELS, TARGETS
from cspine_kit.core.numbers import FloatArray, IntArray, log_losses, logit, noisy_or, sigmoid
from cspine_kit.stack.model.linear import Ridge, fit_ridge

WORTH = 2e-3
"""Relative gain of the inner loss that a step must bring."""

COHERENCE = (0.25, 0.5)
"""Shares of the way (in log-odds) that the overall may move toward the noisy-or of its levels."""

CLIPS = (0.001, 0.01, 0.02)
"""Clips tried beside the configured one."""

FLOOR = 1e-3
"""Isotonic steps stay inside [0.001, 0.999]: a pure step of a few rows is not certainty."""


@dataclass(frozen=True)
class Calibrator:
    """A map of probabilities: `kind` identity, temperature, platt, beta or isotonic, and numbers.

    `line` are slopes and intercept on the views of `_views`; `knots` / `values` are isotonic steps
    in log-odds.
    """

    kind: str = "identity"
    line: tuple[float, ...] = ()
    knots: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    def apply(self, probs: FloatArray) -> FloatArray:
        """Calibrated probabilities of any shape."""
        if self.kind == "identity":
            return probs
        if self.kind == "isotonic":
            return np.interp(logit(probs), self.knots, self.values)
        odds = np.full(probs.shape, self.line[-1])
        for slope, view in zip(self.line[:-1], _views(self.kind, probs), strict=True):
            odds = odds + slope * view
        return sigmoid(odds)


def _views(kind: str, probs: FloatArray) -> list[FloatArray]:
    """What the line of a calibrator reads: log-odds, or log p and -log(1 - p) (beta, Kull 2017)."""
    if kind == "beta":
        odds = logit(probs)
        return [-np.logaddexp(0.0, -odds), np.logaddexp(0.0, odds)]
    return [logit(probs)]


def _fit_line(kind: str, probs: FloatArray, y: FloatArray, w: FloatArray) -> Calibrator:
    x = np.column_stack(_views(kind, probs))
    if kind == "temperature":
        slopes = np.geomspace(0.4, 2.5, 61)
        losses = [_loss(y, sigmoid(a * x[:, 0]), w) for a in slopes]
        return Calibrator(kind, (float(slopes[int(np.argmin(losses))]), 0.0))
    category = np.zeros(len(y), dtype=np.int64)
    ridge: Ridge = fit_ridge(x, y, w, category, n_categories=1, penalty=1.0)
    slope = ridge.slope / ridge.scale
    intercept = float(ridge.intercept[0] - (slope * ridge.mean).sum())
    return Calibrator(kind, (*slope.tolist(), intercept))


def _fit_isotonic(_: str, probs: FloatArray, y: FloatArray, w: FloatArray) -> Calibrator:
    """Pool adjacent violators on log-odds; straight lines between the pools' centers."""
    order = np.argsort(probs, kind="stable")
    x = logit(probs[order])
    pools: list[list[float]] = []  # weight, weighted label, weighted position
    for position, label, weight in zip(x, y[order], w[order], strict=True):
        pools.append([float(weight), float(weight * label), float(weight * position)])
        while len(pools) > 1 and pools[-2][1] * pools[-1][0] >= pools[-1][1] * pools[-2][0]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    weight, label, position = (np.array(column) for column in zip(*pools, strict=True))
    values = np.clip(label / weight, FLOOR, 1.0 - FLOOR)
    return Calibrator("isotonic", (), tuple((position / weight).tolist()), tuple(values.tolist()))


FITS: dict[str, Callable[[str, FloatArray, FloatArray, FloatArray], Calibrator]] = {
    "temperature": _fit_line,
    "platt": _fit_line,
    "beta": _fit_line,
    "isotonic": _fit_isotonic,
}


def _loss(y: FloatArray, probs: FloatArray, w: FloatArray) -> float:
    return float(np.average(log_losses(y, probs), weights=w))


def choose_calibrator(
    probs: FloatArray, y: FloatArray, w: FloatArray, inner: IntArray
) -> tuple[Calibrator, FloatArray]:
    """The kind that pays on held-out inner folds, fitted on all rows; and its held-out values."""
    best_loss, best, best_probs = _loss(y, probs, w) * (1.0 - WORTH), Calibrator(), probs
    for kind, fit in FITS.items():
        held = np.empty_like(probs)
        for j in np.unique(inner):
            out = inner == j
            held[out] = fit(kind, probs[~out], y[~out], w[~out]).apply(probs[out])
        loss = _loss(y, held, w)
        if loss < best_loss:
            best_loss, best, best_probs = loss, fit(kind, probs, y, w), held
    return best, best_probs


@dataclass(frozen=True)
class Finish:
    """Calibrators of levels and overall, the overall's pull to its levels, and the clip."""

    level: Calibrator = field(default_factory=Calibrator)
    overall: Calibrator = field(default_factory=Calibrator)
    coherence: float = 0.0
    clip: float = 1e-6

    def apply(self, probs: FloatArray) -> FloatArray:
        """Final probabilities (n, 8) from raw ones."""
        levels = self.level.apply(probs[:, :N_LEVELS])
        overall = cohere(self.overall.apply(probs[:, N_LEVELS]), levels, self.coherence)
        return np.clip(np.column_stack([levels, overall]), self.clip, 1.0 - self.clip)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `Finish.from_json` reads them back."""
        parts = {name: vars(getattr(self, name)) for name in ("level", "overall")}
        return {**parts, "coherence": self.coherence, "clip": self.clip}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Finish":
        """Inverse of `to_json`."""

        def calibrator(raw: dict[str, Any]) -> Calibrator:
            numbers = {k: tuple(raw[k]) for k in ("line", "knots", "values")}
            return Calibrator(raw["kind"], **numbers)

        return cls(
            calibrator(value["level"]),
            calibrator(value["overall"]),
            value["coherence"],
            value["clip"],
        )


def cohere(overall: FloatArray, levels: FloatArray, share: float) -> FloatArray:
    """Move the overall toward 1 - prod(1 - p_j) of its levels, `share` of the way in log-odds."""
    if share == 0.0:
        return overall
    return sigmoid((1.0 - share) * logit(overall) + share * logit(noisy_or(levels)))


def fit_finish(
    probs: FloatArray, labels: FloatArray, weights: FloatArray, inner: IntArray, *, clip: float
) -> Finish:
    """Choose every step on inner out-of-fold rows.

    Args:
        probs, labels, weights: (n, 8) in the order of `TARGETS`; weights are the metric's.
        inner: (n,) inner fold of each study.
        clip: the configured clip, kept unless another pays.
    """
    if probs.shape[1] != len(TARGETS):
        raise ValueError(f"probs need {len(TARGETS)} columns, got {probs.shape}")
    flat = (
        probs[:, :N_LEVELS].ravel(),
        labels[:, :N_LEVELS].ravel(),
        weights[:, :N_LEVELS].ravel(),
    )
    level, level_probs = choose_calibrator(*flat, np.repeat(inner, N_LEVELS))
    y, w = labels[:, N_LEVELS], weights[:, N_LEVELS]
    overall, overall_probs = choose_calibrator(probs[:, N_LEVELS], y, w, inner)
    levels = level_probs.reshape(-1, N_LEVELS)
    best, coherence = _loss(y, overall_probs, w) * (1.0 - WORTH), 0.0
    for share in COHERENCE:
        loss = _loss(y, cohere(overall_probs, levels, share), w)
        if loss < best:
            best, coherence = loss, share
    final = np.column_stack([levels, cohere(overall_probs, levels, coherence)])
    best, chosen = _loss(labels, np.clip(final, clip, 1.0 - clip), weights) * (1.0 - WORTH), clip
    for other in CLIPS:
        loss = _loss(labels, np.clip(final, other, 1.0 - other), weights)
        if loss < best:
            best, chosen = loss, other
    return Finish(level, overall, coherence, chosen)


def shift_prior(probs: FloatArray, trained: float, expected: float) -> FloatArray:
    """Probabilities for a test set whose share of positives differs from the training set's.

    Args:
        probs: calibrated for prevalence `trained`.
        trained, expected: shares of positives in (0, 1).
    """
    return sigmoid(logit(probs) + float(logit(np.array(expected)) - logit(np.array(trained))))

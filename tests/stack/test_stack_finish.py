"""The last step: a temperature only where it is certain."""

import numpy as np
import pytest

from cspine_kit.core.metric import row_weights
from cspine_kit.core.numbers import logit, sigmoid
from cspine_kit.stack.model.finish import fit_slopes


def draw(n: int = 800, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True probabilities (n, 8), labels drawn from them, equal weights."""
    rng = np.random.default_rng(seed)
    p = sigmoid(rng.normal(-1.0, 1.5, size=(n, 8)))
    return p, (rng.random(p.shape) < p).astype(float), np.full(p.shape, 1.0 / p.size)


def loss(y: np.ndarray, p: np.ndarray) -> float:
    return float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).mean())


@pytest.mark.parametrize("factor", [0.6, 1.8])
def test_certain_miscalibration_is_repaired(factor: float) -> None:
    p, y, w = draw()
    bad = sigmoid(factor * logit(p))
    slopes = fit_slopes(bad, y, w)
    assert slopes == pytest.approx(1.0 / factor, rel=0.15)
    unseen, truth, _ = draw(seed=1)
    repaired = sigmoid(slopes * factor * logit(unseen))
    assert loss(truth, repaired) < loss(truth, sigmoid(factor * logit(unseen)))


def test_levels_and_overall_are_judged_apart() -> None:
    p, y, _ = draw(2000)
    w = row_weights(np.zeros_like(y))
    bad = p.copy()
    bad[:, -1] = sigmoid(2.0 * logit(p[:, -1]))
    slopes = fit_slopes(bad, y, w)
    assert (slopes[:-1] == 1.0).all()
    assert slopes[-1] < 0.8


@pytest.mark.parametrize("seed", range(5))
def test_calibrated_probabilities_are_left_alone(seed: int) -> None:
    p, y, w = draw(seed=seed)
    slightly = sigmoid(1.02 * logit(p))
    assert np.abs(fit_slopes(slightly, y, w) - 1.0).max() < 0.11


def test_few_rows_ask_for_nothing() -> None:
    p, y, w = draw(12)
    assert (fit_slopes(sigmoid(2.5 * logit(p)), y, w) == 1.0).all()

"""Thresholds and what they give, against hand-made cases."""

import numpy as np
import pytest

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.stack.scores.console import render_points
from cspine_kit.stack.scores.operating import (
    BEST_F1,
    called,
    choose_points,
    choose_threshold,
    confusion,
    nested_calls,
    operating_table,
)

Y = np.array([0.0, 0, 1, 0, 1, 1])
P = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.9])


def test_thresholds_by_hand() -> None:
    assert choose_threshold(Y, P) == 0.3  # 3 of 3 found, 1 false: F1 6/7
    assert choose_threshold(Y, P, 1.0) == 0.3
    assert choose_threshold(Y, P, 0.6) == 0.6
    assert choose_threshold(Y, P, 0.3) == 0.9
    tied = np.array([0.5, 0.5, 0.5, 0.2, 0.5, 0.5])
    assert choose_threshold(Y, tied, 0.1) == 0.5  # all that are alike are called
    assert choose_threshold(np.zeros(6), P) == 1.0


def test_confusion_by_hand() -> None:
    found = confusion(Y, P >= 0.3)
    counts = {name: found[name] for name in ("tp", "fp", "fn", "tn")}
    assert counts == {"tp": 3, "fp": 1, "fn": 0, "tn": 2}
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert found["precision"] == pytest.approx(3 / 4)
    assert found["recall"] == 1.0
    assert found["specificity"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(6 / 7)
    assert np.isnan(confusion(Y, P > 1.0)["precision"])


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1.0, 2.0, size=(n, 8))
    p = 1.0 / (1.0 + np.exp(-odds))
    return (rng.random(p.shape) < p).astype(float), p, np.arange(n) % 5


def test_thresholds_of_a_fold_never_see_its_labels() -> None:
    y, p, fold = draw(300, 0)
    flipped = y.copy()
    flipped[fold == 2] = 1.0 - flipped[fold == 2]
    before, after = nested_calls(y, p, fold, (0.9,)), nested_calls(flipped, p, fold, (0.9,))
    for point in (BEST_F1, "sensitivity_0.9"):
        assert (before[point][fold == 2] == after[point][fold == 2]).all()
        assert (before[point][fold != 2] != after[point][fold != 2]).any()


def test_the_wished_sensitivity_is_met_on_other_studies() -> None:
    y, p, fold = draw(4000, 1)
    table = operating_table(y, p, fold, (0.8, 0.95)).set_index(["target", "point"])
    for target in TARGETS:
        assert table.loc[(target, "sensitivity_0.8"), "recall"] == pytest.approx(0.8, abs=0.05)
        assert table.loc[(target, "sensitivity_0.95"), "recall"] == pytest.approx(0.95, abs=0.03)
        best = table.loc[(target, BEST_F1)]
        assert best["f1"] >= table.xs(target)["f1"].max() - 0.02
        assert best[["tp", "fp", "fn", "tn"]].sum() == 4000
    points = choose_points(y, p, (0.8, 0.95))
    assert points["C3"][BEST_F1] == table.loc[("C3", BEST_F1), "threshold"]
    assert (called(p, points, BEST_F1)[:, 2] == (p[:, 2] >= points["C3"][BEST_F1])).all()
    text = render_points(table.reset_index())
    assert len(text.splitlines()) == 1 + 3 * len(TARGETS)

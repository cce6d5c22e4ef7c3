"""The metric against hand-computed cases and the published figures for train.csv."""

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.metric import (
    best_constant,
    bootstrap_interval,
    evaluate,
    level_auc,
    level_auc_interval,
    metric,
    row_weights,
    weights,
)

NEGATIVE = np.zeros(8)
ONE_LEVEL = np.array([1, 0, 0, 0, 0, 0, 0, 1.0])


def test_weights_of_a_negative_and_a_positive_exam():
    assert weights(NEGATIVE[None]).tolist() == [[1, 1, 1, 1, 1, 1, 1, 7]]
    assert weights(ONE_LEVEL[None]).tolist() == [[2, 1, 1, 1, 1, 1, 1, 14]]


def test_forms_by_hand():
    labels = np.stack([NEGATIVE, ONE_LEVEL])
    probs = np.full((2, 8), 0.25)
    low, high = -np.log(0.75), -np.log(0.25)
    negative, positive = 14 * low, 16 * high + 6 * low
    assert metric(labels, probs) == pytest.approx((negative / 14 + positive / 22) / 2)
    assert metric(labels, probs, "global") == pytest.approx((negative + positive) / 36)


def test_one_half_scores_ln2_in_both_forms():
    labels = np.stack([NEGATIVE, ONE_LEVEL, ONE_LEVEL])
    score = evaluate(labels, np.full((3, 8), 0.5))
    assert score.per_exam == pytest.approx(np.log(2))
    assert score.whole == pytest.approx(np.log(2))
    assert score.n_studies == 3


def test_certain_and_right_is_zero_certain_and_wrong_is_finite():
    assert metric(ONE_LEVEL[None], ONE_LEVEL[None]) == pytest.approx(0, abs=1e-12)
    assert np.isfinite(metric(ONE_LEVEL[None], 1 - ONE_LEVEL[None]))


@pytest.mark.parametrize("form", ["per_exam", "global"])
def test_best_constant_is_the_minimum(form):
    rng = np.random.default_rng(0)
    levels = rng.random((200, 7)) < [0.1, 0.2, 0.05, 0.05, 0.1, 0.15, 0.25]
    labels = np.column_stack([levels, levels.any(axis=1)]).astype(float)
    constant = best_constant(labels, form)
    least = metric(labels, np.broadcast_to(constant, labels.shape), form)
    for target in range(8):
        for step in (-0.02, 0.02):
            moved = constant.copy()
            moved[target] += step
            assert metric(labels, np.broadcast_to(moved, labels.shape), form) > least
    assert row_weights(labels, form).sum() == pytest.approx(1)


def test_best_constant_stays_inside_on_a_fold_without_positives():
    constant = best_constant(np.zeros((10, 8)))
    assert ((constant > 0) & (constant < 1)).all()


def test_bootstrap_interval_holds_the_metric():
    labels = np.stack([NEGATIVE, ONE_LEVEL] * 50)
    probs = np.random.default_rng(1).uniform(0.1, 0.9, labels.shape)
    low, high = bootstrap_interval(labels, probs)
    assert low < metric(labels, probs) < high


@pytest.mark.parametrize(
    ("labels", "probs"),
    [
        (np.zeros((2, 7)), np.zeros((2, 7))),
        (np.zeros((0, 8)), np.zeros((0, 8))),
        (np.zeros((1, 8)), np.full((1, 8), np.nan)),
    ],
)
def test_bad_input_is_refused(labels, probs):
    with pytest.raises(CSpineError):
        metric(labels, probs)


def test_golden_figures_of_the_real_labels(real_data):
    labels = pd.read_csv(real_data / "train.csv")[list(TARGETS)].to_numpy(float)

    def constant(values, form):
        return round(metric(labels, np.broadcast_to(values, labels.shape), form), 4)

    mean = labels.mean(axis=0)
    assert (constant(mean, "per_exam"), constant(mean, "global")) == (0.5638, 0.6127)
    scaled = 2 * mean / (1 + mean)
    assert (constant(scaled, "per_exam"), constant(scaled, "global")) == (0.5757, 0.5668)
    assert (constant(0.1, "per_exam"), constant(0.1, "global")) == (0.8941, 1.0908)
    assert constant(best_constant(labels, "per_exam"), "per_exam") == 0.5573
    assert constant(best_constant(labels, "global"), "global") == 0.5668
    assert best_constant(labels, "global") == pytest.approx(scaled, rel=1e-9)


def test_the_auc_of_all_vertebrae_at_once_by_hand():
    labels = np.zeros((2, 8))
    labels[0, 0] = labels[1, 3] = 1
    probs = np.full((2, 8), 0.2)
    probs[:, 7] = [0.9, 0.1]  # the eighth is no vertebra
    probs[0, 0], probs[1, 3], probs[1, 4] = 0.8, 0.3, 0.5
    # of 2 x 12 pairs of a broken and a whole vertebra one is the wrong way round
    assert level_auc(labels, probs) == pytest.approx(23 / 24)


def test_the_interval_of_a_gain_in_auc_holds_the_gain_and_leaves_zero_where_it_is_large():
    rng = np.random.default_rng(3)
    labels = (rng.random((120, 8)) < 0.2).astype(float)
    knows, guesses = labels + rng.normal(0, 1, labels.shape), rng.random(labels.shape)
    better, worse = knows[None], guesses[None]
    gain = level_auc(labels, knows) - level_auc(labels, guesses)
    low, high = level_auc_interval(labels, better, worse, repeats=200)
    assert 0 < low < gain < high
    assert level_auc_interval(labels, worse, worse, repeats=20) == (0.0, 0.0)

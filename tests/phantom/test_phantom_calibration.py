"""Drawn labels against the real training table's prevalence and correlation."""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.phantom.calibration import PATTERN_COUNTS, draw_labels


def test_patterns_hold_the_published_counts():
    patterns = np.array([[int(c) for c in p] for p in PATTERN_COUNTS])
    counts = np.array(list(PATTERN_COUNTS.values()))
    assert counts.sum() == 2019
    assert list(counts @ patterns) == [146, 285, 73, 108, 162, 277, 393]
    assert counts[patterns.any(axis=1)].sum() == 961


def test_drawn_labels_match_within_sampling_error():
    drawn = draw_labels(np.random.default_rng(5), 300)
    expected = np.array([146, 285, 73, 108, 162, 277, 393]) / 2019
    error = np.sqrt(expected * (1 - expected) / len(drawn))
    assert (np.abs(drawn.mean(axis=0) - expected) < 2 * error).all()
    assert np.corrcoef(drawn.T)[4, 5] > 0.2  # C5 and C6 break together (0.36 in the real table)


def test_patterns_are_those_of_the_real_table(real_data):
    train = pd.read_csv(real_data / "train.csv")
    real = train[list(LEVELS)].astype(str).agg("".join, axis=1).value_counts()
    assert real.to_dict() == PATTERN_COUNTS

"""Models on the hidden truth."""

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.metric import metric
from cspine_kit.show.test_set import hidden_scores


def draw(n: int, rate: float, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Truth of n studies, and probabilities (n, 8) that know it up to noise."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(np.log(rate / (1 - rate)), 2.0, size=(n, 8))
    probs = 1.0 / (1.0 + np.exp(-odds))
    truth = pd.DataFrame((rng.random((n, 8)) < probs).astype(float), columns=list(TARGETS))
    truth.insert(0, "study_uid", [f"1.2.{i}" for i in range(n)])
    return truth, probs


def long(truth: pd.DataFrame, probs: np.ndarray, model: str) -> pd.DataFrame:
    wide = pd.DataFrame(probs, columns=list(TARGETS)).assign(study_uid=truth["study_uid"])
    rows = wide.melt("study_uid", var_name="target", value_name="prob")
    return rows.assign(model=model, fold=-1)


def test_studies_without_predictions_count_with_the_priors() -> None:
    truth, probs = draw(50, 0.3, 0)
    priors = dict.fromkeys(TARGETS, 0.25)
    rows = long(truth, probs, "stack")
    rows = rows[rows["study_uid"] != "1.2.7"]
    scores = hidden_scores(rows, truth, priors).set_index("model")
    filled = probs.copy()
    filled[7] = 0.25
    y = truth[list(TARGETS)].to_numpy()
    assert scores.loc["stack", "test_per_exam"] == pytest.approx(metric(y, filled, "per_exam"))
    assert scores.loc["stack", "test_global"] == pytest.approx(metric(y, filled, "global"))
    constant = metric(y, np.full(y.shape, 0.25), "global")
    assert scores.loc["best_constant", "test_global"] == pytest.approx(constant)

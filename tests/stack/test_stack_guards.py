"""Scores against hand-made cases, and fitted baselines."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slice_tables import World, make_world

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import StackConfig, load_config
from cspine_kit.core.metric import bootstrap_interval
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.model.fit import Fit, fit_stack
from cspine_kit.stack.model.stack import STACK
from cspine_kit.stack.scores import fitted as fitted_room
from cspine_kit.stack.scores.baselines import all_predictions
from cspine_kit.stack.scores.console import render_scores
from cspine_kit.stack.scores.fitted import (
    fitted_baselines,
    metric_odds,
)
from cspine_kit.stack.scores.table import (
    auc,
    calibration_error,
    expected_interval,
    score_table,
    sensitivity_at,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def larger() -> World:
    return make_world(240, n_folds=4, seed=11)


@pytest.fixture(scope="module")
def features(larger: World) -> pd.DataFrame:
    return aggregate(larger.slices, larger.levels)


@pytest.fixture(scope="module")
def config() -> StackConfig:
    stack = load_config(CONFIGS / "demo.yaml").stack
    return stack.model_copy(update={"folds": 3, "seeds": 1, "rounds": 80, "patience": 15})


@pytest.fixture(scope="module")
def fit(larger: World, features: pd.DataFrame, config: StackConfig) -> Fit:
    return fit_stack(features, larger.labels, config, seed=2, jobs=1)


def test_scores_by_hand() -> None:
    y = np.array([0.0, 0, 1, 1])
    p = np.array([0.1, 0.4, 0.35, 0.8])
    assert auc(y, p) == pytest.approx(0.75)
    assert auc(y, np.full(4, 0.5)) == pytest.approx(0.5)
    assert np.isnan(auc(np.zeros(4), p))
    assert sensitivity_at(y, p) == pytest.approx(0.5)
    assert calibration_error(y, np.full(4, 0.5), bins=1) == pytest.approx(0.0)
    assert calibration_error(y, np.ones(4), bins=2) == pytest.approx(0.5)


def test_the_interval_of_what_ships_reaches_lower_where_fold_models_differ() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((200, 8)) < 0.3).astype(float)
    p = np.clip(0.4 + 0.3 * (y - 0.5) + rng.normal(0, 0.05, y.shape), 0.01, 0.99)
    low, high = bootstrap_interval(y, p)
    for gap, chains, lower in ((0.0, 3, low), (-0.1, 3, low), (0.03, 3, low - 0.02), (0.5, 1, low)):
        found = expected_interval(y, p, "per_exam", gap=gap, chains=chains)
        assert found == (pytest.approx(lower), high)
    assert expected_interval(y, p, "per_exam", gap=9.0, chains=2)[0] == 0.0


def test_paired_interval_sees_small_certain_gains() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 8)) < 0.3).astype(float)
    worse = np.full(labels.shape, 0.45)
    better = np.clip(worse + 0.02 * (2 * labels - 1), 0, 1)
    for form in ("per_exam", "global"):
        low, high = bootstrap_interval(labels, better, form, others=worse)
        assert low < high < 0
        assert bootstrap_interval(labels, worse, form, others=worse) == (0.0, 0.0)


def test_stack_certainly_beats_formulas_and_the_rebuilt_mlp(
    larger: World, features: pd.DataFrame, fit: Fit
) -> None:
    folds = larger.folds.set_index("study_uid")["fold"]
    others = fitted_baselines(features, larger.labels, "per_exam", seed=0)
    predictions = pd.concat([all_predictions(fit.study_uid, fit.probs, folds), others])
    for baseline in ("visibility_weighted_mean", "mlp_5th_place"):
        table = score_table(predictions, larger.labels, folds, baselines=(baseline,))
        row = table.set_index("model").loc[STACK]
        assert row["per_exam_gain_high"] < 0, baseline
        assert row["global_gain_high"] < 0, baseline
    text = render_scores(table.assign(ships=table["model"] == STACK), {STACK: "what it means"})
    assert "stack: what it means" in text
    assert "stack *" in text
    assert "minus the best baseline, mlp_5th_place" in text


def test_fitted_baselines_are_out_of_fold(
    larger: World, features: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitted_room, "MLP_SEEDS", 1)
    flipped = larger.labels.copy()
    fold = flipped["study_uid"].map(larger.folds.set_index("study_uid")["fold"])
    flipped.loc[fold == 2, list(TARGETS)] = 1.0 - flipped.loc[fold == 2, list(TARGETS)]
    before = fitted_baselines(features, larger.labels, "per_exam", seed=0)
    after = fitted_baselines(features, flipped, "per_exam", seed=0)
    same = before["prob"].to_numpy() == after["prob"].to_numpy()
    assert same[before["fold"] == 2].all()
    assert same[before["fold"] != 2].mean() < 0.05  # equal only where both are clipped


def test_fitted_baselines_predict_test_studies_and_average_fold_models(
    larger: World, features: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitted_room, "MLP_SEEDS", 1)
    uids = larger.labels["study_uid"].iloc[:40]
    test = features[features["study_uid"].isin(uids)]
    copies = pd.concat([test.assign(fold=-1, model_fold=k) for k in range(3)])
    rows = fitted_baselines(features, larger.labels, "per_exam", seed=0, unseen=copies)
    assert (rows["fold"] == -1).all()
    assert rows.groupby("model").size().eq(40 * len(TARGETS)).all()
    alone = test.assign(fold=-1, model_fold=0)
    once = fitted_baselines(features, larger.labels, "per_exam", seed=0, unseen=alone)
    np.testing.assert_allclose(rows["prob"], once["prob"], rtol=1e-9)


def test_weights_of_the_metric_move_a_constant_to_the_best_constant() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((500, 8)) < 0.3).astype(float)
    means = np.broadcast_to(labels.mean(axis=0), labels.shape)
    moved = metric_odds(means, labels, "global")[0]
    assert moved == pytest.approx(2 * means[0] / (1 + means[0]))

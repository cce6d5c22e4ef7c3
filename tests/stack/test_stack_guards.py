"""Scores against hand-made cases, rivals, contributions that add up, and the shift alarm."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slice_tables import World, make_world

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import StackConfig, load_config
from cspine_kit.core.errors import TableError
from cspine_kit.core.numbers import logit
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.model.stack import STACK, Stack, fit_stack
from cspine_kit.stack.scores import rivals as rivals_room
from cspine_kit.stack.scores.explain import BASE, contributions, importances
from cspine_kit.stack.scores.rivals import metric_odds, rival_predictions, rival_test_predictions
from cspine_kit.stack.scores.shift import feature_reference, shift_report
from cspine_kit.stack.scores.table import (
    auc,
    best_f1,
    calibration_error,
    paired_interval,
    render_scores,
    score_table,
    sensitivity_at,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def larger() -> World:
    return make_world(240, n_folds=4, seed=11)


@pytest.fixture(scope="module")
def features(larger: World) -> pd.DataFrame:
    return aggregate(larger.slices, larger.crops)


@pytest.fixture(scope="module")
def config() -> StackConfig:
    stack = load_config(CONFIGS / "demo.yaml").stack
    return stack.model_copy(update={"seeds": 1, "rounds": 80, "patience": 15})


@pytest.fixture(scope="module")
def stack(larger: World, features: pd.DataFrame, config: StackConfig) -> Stack:
    return fit_stack(features, larger.labels, config, seed=2, jobs=1)


def test_scores_by_hand() -> None:
    y = np.array([0.0, 0, 1, 1])
    p = np.array([0.1, 0.4, 0.35, 0.8])
    assert auc(y, p) == pytest.approx(0.75)
    assert auc(y, np.full(4, 0.5)) == pytest.approx(0.5)
    assert np.isnan(auc(np.zeros(4), p))
    assert best_f1(y, p) == pytest.approx(0.8)
    assert sensitivity_at(y, p) == pytest.approx(0.5)
    assert calibration_error(y, np.full(4, 0.5), bins=1) == pytest.approx(0.0)
    assert calibration_error(y, np.ones(4), bins=2) == pytest.approx(0.5)


def test_paired_interval_sees_small_certain_gains() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 8)) < 0.3).astype(float)
    worse = np.full(labels.shape, 0.45)
    better = np.clip(worse + 0.02 * (2 * labels - 1), 0, 1)
    for form in ("per_exam", "global"):
        low, high = paired_interval(labels, better, worse, form)
        assert low < high < 0
        assert paired_interval(labels, worse, worse, form) == (0.0, 0.0)


def test_stack_certainly_beats_formulas_and_the_rebuilt_mlp(
    larger: World, features: pd.DataFrame, stack: Stack
) -> None:
    folds = larger.folds.set_index("study_uid")["fold"]
    rivals = rival_predictions(features, larger.labels, "per_exam", seed=0)
    predictions = pd.concat([stack.predict_all(features), rivals])
    for rival in ("visibility_weighted_mean", "mlp_5th_place"):
        table = score_table(predictions, larger.labels, folds, baselines=(rival,))
        row = table.set_index("model").loc[STACK]
        assert row["per_exam_gain_high"] < 0, rival
        assert row["global_gain_high"] < 0, rival
    text = render_scores(table.assign(ships=table["model"] == STACK))
    assert "stack *" in text
    assert "minus the best baseline, mlp_5th_place" in text


def test_rivals_are_out_of_fold(
    larger: World, features: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals_room, "MLP_SEEDS", 1)
    flipped = larger.labels.copy()
    fold = flipped["study_uid"].map(larger.folds.set_index("study_uid")["fold"])
    flipped.loc[fold == 2, list(TARGETS)] = 1.0 - flipped.loc[fold == 2, list(TARGETS)]
    before = rival_predictions(features, larger.labels, "per_exam", seed=0)
    after = rival_predictions(features, flipped, "per_exam", seed=0)
    same = before["prob"].to_numpy() == after["prob"].to_numpy()
    assert same[before["fold"] == 2].all()
    assert same[before["fold"] != 2].mean() < 0.05  # equal only where both are clipped


def test_rivals_predict_test_studies_and_average_fold_models(
    larger: World, features: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals_room, "MLP_SEEDS", 1)
    uids = larger.labels["study_uid"].iloc[:40]
    test = features[features["study_uid"].isin(uids)]
    copies = pd.concat([test.assign(fold=-1, model_fold=k) for k in range(3)])
    rows = rival_test_predictions(features, larger.labels, copies, "per_exam", seed=0)
    assert (rows["fold"] == -1).all()
    assert rows.groupby("model").size().eq(40 * len(TARGETS)).all()
    once = rival_test_predictions(
        features, larger.labels, test.assign(fold=-1, model_fold=0), "per_exam", seed=0
    )
    np.testing.assert_allclose(rows["prob"], once["prob"], rtol=1e-9)


def test_weights_of_the_metric_move_a_constant_to_the_best_constant() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((500, 8)) < 0.3).astype(float)
    means = np.broadcast_to(labels.mean(axis=0), labels.shape)
    moved = metric_odds(means, labels, "global")[0]
    assert moved == pytest.approx(2 * means[0] / (1 + means[0]))


def test_contributions_add_up_to_the_level_log_odds(stack: Stack, features: pd.DataFrame) -> None:
    parts = contributions(stack, features)
    total = parts.groupby(["study_uid", "level"])["contribution"].sum()
    wide = stack.predict(features, STACK).set_index("study_uid")
    for uid in wide.index[:10]:
        for level in ("C1", "C5"):
            p = wide.loc[uid, level]
            if 0.004 < p < 0.996:
                assert total[uid, level] == pytest.approx(logit(np.array(p)), abs=1e-4)
    top = importances(parts)
    assert BASE not in set(top["feature"])
    assert (top["mean_abs_log_odds"].diff().dropna() <= 0).all()
    few = contributions(stack, features, top=3)
    assert few.groupby(["study_uid", "level"]).size().eq(3).all()


def test_shift_report_is_silent_on_its_own_and_loud_on_other_data(features: pd.DataFrame) -> None:
    reference = feature_reference(features)
    half = features[features["study_uid"].isin(features["study_uid"].unique()[::2])]
    assert not shift_report(reference, half)["shifted"].any()
    broken = half.assign(a__fracture__max=half["a__fracture__max"] * 0.2)
    report = shift_report(reference, broken)
    assert report.loc[report["shifted"], "feature"].tolist() == ["a__fracture__max"]
    with pytest.raises(TableError, match="b__fracture__max"):
        shift_report(reference, half.drop(columns="b__fracture__max"))

"""Each check of the report passes on sound tables and speaks up on a made fault."""

import numpy as np
import pandas as pd
import pytest
from slice_tables import draw_labels, make_world

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.failures import NO_LEVELS
from cspine_kit.core.numbers import logit, sigmoid
from cspine_kit.show.report.checks_data import (
    constant_feature,
    imbalance,
    leak,
    left_out,
    stale,
)
from cspine_kit.show.report.checks_scores import (
    calibration,
    harmful_member,
    shift,
    slope_of,
    worse_than_mean,
)
from cspine_kit.stack.features.aggregate import aggregate


@pytest.fixture(name="world", scope="module")
def _world():
    return make_world(30, step_mm=6.0)


@pytest.fixture(name="train")
def _train(world) -> pd.DataFrame:
    return world.labels.merge(world.folds[["study_uid", "fold"]], on="study_uid")


def test_out_of_fold_rows_pass_and_a_leaked_one_fails(world, train):
    rows = {"oof_slices": world.slices, "features": None}
    assert leak(train, world.folds, rows, {}).verdict == "pass"
    seen = world.slices.assign(model_fold=world.slices["model_fold"].to_numpy().copy())
    seen.loc[seen.index[:3], "model_fold"] += 1
    found = leak(train, world.folds, {"oof_slices": seen}, {})
    assert found.verdict == "fail" and "3 rows of oof_slices" in found.figure
    assert str(seen["study_uid"].iloc[0]) in found.figure


def test_a_study_that_moved_to_another_fold_is_a_leak(world, train):
    moved = world.folds.assign(fold=np.roll(world.folds["fold"].to_numpy(), 1))
    found = leak(train, moved, {"oof_slices": world.slices}, {})
    assert found.verdict == "fail" and "another fold than folds.csv" in found.figure


def test_a_model_that_names_a_held_out_study_is_a_leak(world, train):
    rows, good = {"oof_slices": world.slices}, {"a fold 0": "", "a fold 1": ""}
    assert "2 models' own lists" in leak(train, world.folds, rows, good).figure
    found = leak(train, world.folds, rows, good | {"a fold 1": "it has learned from 1.2.10"})
    assert found.verdict == "fail" and "learned from 1.2.10" in found.figure


def test_a_patient_in_two_folds_is_a_leak(world, train):
    split = world.folds.assign(group=["one"] * 2 + list(world.folds["group"][2:]))
    split.loc[:1, "fold"] = [0, 1]
    found = leak(train, split, {}, {})
    assert found.verdict == "fail" and "groups in two folds: one" in found.figure


def test_folds_are_weighed_by_their_positives(train):
    many = pd.DataFrame(draw_labels(150, np.random.default_rng(0), 1.5), columns=list(LEVELS))
    many[OVERALL] = many.max(axis=1)
    alike = many.sort_values(list(TARGETS)).assign(fold=np.arange(len(many)) % 3)
    assert imbalance(alike).verdict == "pass"
    heap = alike.assign(fold=np.where(alike["C7"] == 1.0, 0, alike["fold"]))
    found = imbalance(heap)
    assert found.verdict == "fail" and "C7 in fold" in found.figure and "folds.csv" in found.advice
    one_class = alike.assign(fold=np.where(alike[OVERALL] == 1.0, 0, 1))
    assert "one class of patients" in imbalance(one_class).figure
    assert imbalance(train.assign(fold=-1)).verdict == "not yet"


def test_a_constant_feature_is_named_and_a_dead_member_fails(world):
    features = aggregate(world.slices, world.levels)
    rng = np.random.default_rng(0)
    lively = features.copy()
    for column in [c for c in features if "__" in c]:
        lively[column] = rng.normal(size=len(features))
    assert constant_feature(lively).verdict == "pass"
    found = constant_feature(lively.assign(all__study__step=2.0))
    assert found.verdict == "warn" and "all__study__step" in found.figure
    assert constant_feature(lively.assign(a__fracture__std=0.0)).verdict == "warn"
    dead = {c: 0.5 for c in lively if c.startswith("a__fracture__")}
    found = constant_feature(lively.assign(**dead))
    assert found.verdict == "fail" and "all fracture statistics of a" in found.figure


def drawn(slope: float, n: int = 3000) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Labels, and predictions whose log-odds are 1 / slope times too steep."""
    rng = np.random.default_rng(1)
    odds = rng.normal(-0.5, 1.5, size=(n, 8))
    y = (rng.random((n, 8)) < sigmoid(odds)).astype(float)
    train = pd.DataFrame(y, columns=list(TARGETS)).assign(study_uid=[f"1.{i}" for i in range(n)])
    wide = pd.DataFrame(sigmoid(odds / slope), columns=list(TARGETS))
    wide.insert(0, "study_uid", train["study_uid"])
    rows = wide.melt("study_uid", var_name="target", value_name="prob")
    return train, rows.assign(model="shipped", fold=0)


@pytest.mark.parametrize(("slope", "verdict"), [(1.0, "pass"), (0.7, "warn"), (0.4, "fail")])
def test_overconfidence_shows_in_the_slope(slope, verdict):
    found = calibration(*drawn(slope))
    assert found.verdict == verdict and f"levels {slope:.1f}" in found.figure


def test_the_slope_is_that_of_the_logistic_regression():
    train, rows = drawn(0.8)
    p = rows.loc[rows["target"] == "C1", "prob"].to_numpy()
    slope, error = slope_of(train["C1"].to_numpy(), p)
    assert slope == pytest.approx(0.8, abs=4 * error) and 0.0 < error < 0.05
    twice, _ = slope_of(train["C1"].to_numpy(), sigmoid(2.0 * logit(p)))
    assert twice == pytest.approx(slope / 2, rel=1e-3)


def test_few_fractures_say_nothing_about_calibration():
    train, rows = drawn(1.0, n=20)
    few = train.assign(**dict.fromkeys((*LEVELS, OVERALL), 0.0))
    assert calibration(few, rows).verdict == "not yet"


def worth(**changes: object) -> pd.DataFrame:
    row = {"member": "b", "per_exam": 0.01, "per_exam_low": 0.0, "per_exam_high": 0.02}
    return pd.DataFrame([row | {"kept": True, "member": "a"}, row | {"kept": True} | changes])


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "pass"),
        ({"per_exam": -0.01, "per_exam_low": -0.02}, "warn"),
        ({"per_exam": -0.01, "per_exam_low": -0.02, "per_exam_high": -0.001}, "fail"),
        ({"per_exam": -0.01, "per_exam_high": -0.001, "kept": False}, "warn"),
    ],
)
def test_a_harmful_member_is_named(changes, verdict):
    found = harmful_member(worth(**changes), "per_exam")
    assert found.verdict == verdict
    assert not changes or "least worth: b" in found.figure


def scores(shipped: float, mean: float, **changes: object) -> pd.DataFrame:
    rows = pd.DataFrame(
        {"model": ["best_constant", "mean_of_members", "shipped"], "per_exam": [0.6, mean, shipped]}
    )
    gain = {"per_exam_baseline": "mean_of_members", "per_exam_gain_low": -0.1}
    return rows.assign(**gain | {"per_exam_gain_high": -0.05, "shipped_model": "stack"} | changes)


@pytest.mark.parametrize(
    ("table", "verdict", "told"),
    [
        (scores(0.4, 0.5), "pass", "shipped 0.4000"),
        (scores(0.4, 0.5, per_exam_gain_high=0.01), "warn", "not certainly better"),
        (scores(0.5, 0.5, shipped_model="mean_of_members"), "warn", "mean_of_members ships"),
        (scores(0.55, 0.5), "fail", "mean_of_members 0.5000"),
        (scores(0.4, 0.5, per_exam_gain_low=0.01), "fail", "certainly worse"),
        (scores(0.7, 0.8), "fail", "a constant answers better"),
    ],
)
def test_the_stack_is_held_against_simpler_models(table, verdict, told):
    found = worse_than_mean(table, "per_exam")
    assert found.verdict == verdict and told in found.figure


def test_answers_on_other_patients_show_as_a_shift():
    _, rows = drawn(1.0, n=300)
    same = rows.assign(row_id=rows["study_uid"] + "_" + rows["target"], fractured=rows["prob"])
    assert shift(rows, same[["row_id", "fractured"]]).verdict == "pass"
    higher = same.assign(fractured=sigmoid(logit(same["prob"].to_numpy()) + 1.5))
    found = shift(rows, higher)
    assert found.verdict == "fail" and "prevalence" in found.advice
    assert shift(rows, None).verdict == "not yet"


def state(**stages: str) -> dict[str, object]:
    named = {stage: {"state": told, "path": ""} for stage, told in stages.items()}
    return {"stages": named, "changed_parts": [], "next": "make stack"}


@pytest.mark.parametrize(
    ("told", "verdict"),
    [("done", "pass"), ("missing", "pass"), ("partly (1 of 3)", "warn"), ("stale", "fail")],
)
def test_old_artifacts_are_named_with_what_makes_them_anew(told, verdict):
    found = stale(state(oof="done", stack=told))
    assert found.verdict == verdict
    assert verdict == "pass" or ("stack" in found.figure and found.advice == "next: make stack")
    changed = stale(state(oof="done") | {"changed_parts": ["members"]})
    assert changed.verdict == "warn" and "members" in changed.figure


def test_lost_studies_are_counted(train):
    none = pd.DataFrame({"study_uid": [], "cause": []})
    assert left_out(none, train).verdict == "pass"
    found = left_out(pd.DataFrame({"study_uid": ["1.9"], "cause": ["no slice"]}), train)
    assert found.verdict == "warn" and "no slice" in found.figure
    trunk = pd.DataFrame({"study_uid": ["1.8"], "cause": [f"study 1.8: {NO_LEVELS}"]})
    found = left_out(trunk, train)
    assert found.verdict == "warn" and found.figure.startswith("1 studies whose scans show none")

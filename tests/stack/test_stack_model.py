"""The nested stack: it beats what it is made of, leaks nothing, and gives the same bytes again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slice_tables import World, make_world

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.config import StackConfig, load_config
from cspine_kit.core.errors import TableError
from cspine_kit.core.metric import metric
from cspine_kit.stack.features.aggregate import aggregate, feature_columns
from cspine_kit.stack.model.design import FeatureTable, level_design
from cspine_kit.stack.model.head import Task, inner_loss
from cspine_kit.stack.model.search import search
from cspine_kit.stack.model.stack import STACK, Stack, fit_stack, inner_folds
from cspine_kit.stack.scores.baselines import constant_predictions, formulas, wide_predictions

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def config() -> StackConfig:
    stack = load_config(CONFIGS / "demo.yaml").stack
    return stack.model_copy(update={"seeds": 2, "rounds": 60, "patience": 15})


@pytest.fixture(scope="module")
def features(world: World) -> pd.DataFrame:
    return aggregate(world.slices, world.crops)


@pytest.fixture(scope="module")
def stack(world: World, features: pd.DataFrame, config: StackConfig) -> Stack:
    return fit_stack(features, world.labels, config, seed=5, jobs=1)


def score(world: World, wide: pd.DataFrame) -> float:
    wide = wide.set_index("study_uid") if "study_uid" in wide else wide
    truth = world.labels.set_index("study_uid").loc[wide.index]
    return metric(truth[list(TARGETS)].to_numpy(), wide[list(TARGETS)].to_numpy())


def test_stack_beats_members_mean_and_constant(
    world: World, features: pd.DataFrame, stack: Stack
) -> None:
    folds = world.folds.set_index("study_uid")["fold"]
    simple = pd.concat(
        [stack.predict_all(features), constant_predictions(world.labels, folds, "per_exam")]
    )
    own = score(world, stack.predict(features, STACK))
    for model in ("a", "b", "mean_of_members", "visibility_weighted_mean"):
        assert own < score(world, wide_predictions(simple, model)), model
    assert own < 0.75 * score(world, wide_predictions(simple, "best_constant"))


def test_shuffled_labels_score_like_the_constant(
    world: World, features: pd.DataFrame, config: StackConfig
) -> None:
    rng = np.random.default_rng(0)
    shuffled = world.labels.copy()
    shuffled[list(TARGETS)] = shuffled[list(TARGETS)].to_numpy()[rng.permutation(len(shuffled))]
    stack = fit_stack(features, shuffled, config, seed=5, jobs=1)
    folds = world.folds.set_index("study_uid")["fold"]
    constant = wide_predictions(constant_predictions(shuffled, folds, "per_exam"), "best_constant")
    fake = World(shuffled, world.folds, world.slices, world.crops)
    assert score(fake, stack.predict(features, STACK)) > 0.97 * score(fake, constant)


def test_heads_of_a_fold_never_see_it(
    world: World, features: pd.DataFrame, stack: Stack, config: StackConfig
) -> None:
    flipped = world.labels.copy()
    held = world.folds.set_index("study_uid")["fold"].loc[flipped["study_uid"]].to_numpy() == 1
    flipped.loc[held, list(TARGETS)] = 1.0 - flipped.loc[held, list(TARGETS)]
    other = fit_stack(features, flipped, config, seed=5, jobs=1)
    before, after = stack.predict(features), other.predict(features)
    same = (before[list(TARGETS)] == after[list(TARGETS)]).all(axis=1).to_numpy()
    fold = before["study_uid"].map(world.folds.set_index("study_uid")["fold"]).to_numpy()
    assert same[fold == 1].all()
    assert not same[fold != 1].any()


def test_same_bytes_for_any_jobs_and_after_loading(
    world: World, features: pd.DataFrame, stack: Stack, config: StackConfig, tmp_path: Path
) -> None:
    again = fit_stack(features, world.labels, config, seed=5, jobs=3)
    stack.save(tmp_path / "one")
    again.save(tmp_path / "two")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert Path("stack.json") in files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    loaded = Stack.load(tmp_path / "one").predict(features)
    pd.testing.assert_frame_equal(loaded, stack.predict(features), check_exact=True)


def test_test_studies_average_over_fold_models(
    features: pd.DataFrame, stack: Stack, world: World
) -> None:
    own = features[features["study_uid"] == world.labels["study_uid"].iloc[0]]
    copies = [own.assign(fold=-1, model_fold=k) for k in range(3)]
    each = [stack.predict(c)[list(TARGETS)].to_numpy() for c in copies]
    both = stack.predict(pd.concat(copies))
    assert both.columns.tolist() == ["study_uid", *TARGETS]
    np.testing.assert_allclose(both[list(TARGETS)].to_numpy(), np.mean(each, axis=0), rtol=1e-12)


def test_formulas_treat_oof_and_test_alike(world: World) -> None:
    uid = world.labels["study_uid"].iloc[0]
    slices = world.slices[world.slices["study_uid"] == uid]
    crops = world.crops[world.crops["study_uid"] == uid]
    one = formulas(aggregate(slices, crops))
    slices = pd.concat([slices.assign(fold=-1, model_fold=k) for k in range(2)])
    many = formulas(aggregate(slices, pd.concat([crops.assign(model_fold=k) for k in range(2)])))
    for name, probs in many.items():
        np.testing.assert_allclose(probs, np.repeat(one[name], 2, axis=0), rtol=1e-9)


def test_faults_are_named(
    world: World, features: pd.DataFrame, stack: Stack, config: StackConfig
) -> None:
    with pytest.raises(TableError, match="a__fracture__mean"):
        stack.predict(features.drop(columns="a__fracture__mean"))
    with pytest.raises(TableError, match="has no heads"):
        stack.predict(features.assign(model_fold=9))
    with pytest.raises(TableError, match=r"C1\.\.C7"):
        stack.predict(features[features["level"] != LEVELS[2]])
    with pytest.raises(TableError, match="may have seen"):
        fit_stack(features.assign(model_fold=0), world.labels, config, seed=1, jobs=1)
    with pytest.raises(TableError, match=world.labels["study_uid"].iloc[2]):
        fit_stack(features, world.labels.drop(index=2), config, seed=1, jobs=1)
    infinite = features.copy()
    infinite.loc[5, "a__fracture__mean"] = np.inf
    with pytest.raises(TableError, match="a__fracture__mean is inf"):
        stack.predict(infinite)


def test_inner_folds_keep_groups_whole() -> None:
    labels = make_world(40, seed=3).labels.assign(group=[str(i // 2) for i in range(40)])
    inner = inner_folds(labels, 7)
    assert set(inner) == {0, 1, 2, 3}
    assert pd.Series(inner).groupby(labels["group"]).nunique().max() == 1


def test_expected_prevalence_moves_test_rows_only(
    features: pd.DataFrame, stack: Stack, world: World
) -> None:
    rarer = replace(stack, prevalence=0.2)
    pd.testing.assert_frame_equal(rarer.predict(features), stack.predict(features))
    test = features[features["model_fold"] == 0].assign(fold=-1)
    before, after = stack.predict(test), rarer.predict(test)
    assert (after[list(TARGETS)] <= before[list(TARGETS)]).all(axis=None)
    assert after[OVERALL].mean() < before[OVERALL].mean() - 0.1


def test_search_stays_inside_its_budget_and_is_never_worse(
    world: World, features: pd.DataFrame, config: StackConfig
) -> None:
    pytest.importorskip("optuna")
    table = FeatureTable.of(features, tuple(feature_columns(features)))
    y = world.labels.set_index("study_uid").loc[table.study_uid, list(LEVELS)].to_numpy()
    task = Task(
        level_design(table, np.zeros((table.n, 8))),
        y.ravel(),
        np.ones(y.size),
        np.arange(y.size) // 7 % 3,
    )
    found = search(task, config.model_copy(update={"search_minutes": 0.02}), seed=3)
    assert inner_loss(task, found, seed=3) <= inner_loss(task, config, seed=3)

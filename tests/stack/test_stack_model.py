"""The nested stack: it beats what it is made of, leaks nothing, and gives the same bytes again."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slice_tables import World, make_world

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.config import StackConfig, load_config
from cspine_kit.core.errors import TableError
from cspine_kit.core.metric import metric
from cspine_kit.core.numbers import logit, sigmoid
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.features.names import COLUMN, SITE, signal_of
from cspine_kit.stack.model.fit import STRICT, Fit, fit_stack
from cspine_kit.stack.model.folds import deal_folds
from cspine_kit.stack.model.nested import cross_fit, sample_of
from cspine_kit.stack.model.stack import SHIPPED, SLICES_ONLY, STACK, Stack
from cspine_kit.stack.scores.baselines import formulas, held_out_constant

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def config() -> StackConfig:
    stack = load_config(CONFIGS / "demo.yaml").stack
    return stack.model_copy(update={"folds": 3, "seeds": 2, "rounds": 60, "patience": 15})


@pytest.fixture(scope="module")
def features(world: World) -> pd.DataFrame:
    return aggregate(world.slices, world.levels)


@pytest.fixture(scope="module")
def fit(world: World, features: pd.DataFrame, config: StackConfig) -> Fit:
    return fit_stack(features, world.labels, config, seed=5, jobs=1)


def as_test(features: pd.DataFrame, model_folds: tuple[int, ...] = (0,)) -> pd.DataFrame:
    """The rows as a kernel has them: fold -1, once for each fold model."""
    return pd.concat([features.assign(fold=-1, model_fold=k) for k in model_folds])


def score(world: World, study_uid: object, probs: np.ndarray) -> float:
    truth = world.labels.set_index("study_uid").loc[list(study_uid)]
    return metric(truth[list(TARGETS)].to_numpy(), probs)


def test_stack_beats_members_mean_and_constant(world: World, fit: Fit) -> None:
    folds = world.folds.set_index("study_uid")["fold"]
    constant = held_out_constant(fit.y, folds.loc[list(fit.study_uid)].to_numpy(), "per_exam")
    own = score(world, fit.study_uid, fit.probs[STACK])
    for model in ("a", "b", "mean_of_members", "log_odds_mean", "visibility_weighted_mean"):
        assert own < score(world, fit.study_uid, fit.probs[model]), model
    assert own < 0.75 * score(world, fit.study_uid, constant)
    assert fit.stack.ships == STACK


def test_shuffled_labels_score_like_the_constant(
    world: World, features: pd.DataFrame, config: StackConfig
) -> None:
    rng = np.random.default_rng(0)
    shuffled = world.labels.copy()
    shuffled[list(TARGETS)] = shuffled[list(TARGETS)].to_numpy()[rng.permutation(len(shuffled))]
    fit = fit_stack(features, shuffled, config, seed=5, jobs=1)
    network = world.folds.set_index("study_uid")["fold"]
    crossing = pd.Series(fit.fold, index=fit.study_uid)
    fake = World(shuffled, world.folds, world.slices, world.levels)
    for model, folds in ((STACK, crossing), (SHIPPED, crossing), (STRICT, network)):
        own_folds = folds.loc[list(fit.study_uid)].to_numpy()
        constant = held_out_constant(fit.y, own_folds, "per_exam")
        own = score(fake, fit.study_uid, fit.probs[model])
        assert own > 0.97 * score(fake, fit.study_uid, constant), model


def test_stack_folds_cross_the_networks_folds(
    world: World, features: pd.DataFrame, fit: Fit, config: StackConfig
) -> None:
    network = world.folds.set_index("study_uid")["fold"].loc[list(fit.study_uid)]
    table = pd.crosstab(fit.fold, network.to_numpy())
    assert table.shape == (2 * config.folds, 3)
    assert table.max(axis=None) - table.min(axis=None) <= 2
    overall = world.labels.set_index("study_uid")[OVERALL].loc[list(fit.study_uid)].to_numpy()
    positives = pd.Series(overall).groupby(fit.fold).sum()
    assert positives.max() - positives.min() <= 1


@pytest.mark.parametrize("kind", ["crossing", "strict"])
def test_heads_of_a_fold_never_see_its_labels(
    world: World, features: pd.DataFrame, fit: Fit, config: StackConfig, kind: str
) -> None:
    network = world.folds.set_index("study_uid")["fold"].loc[list(fit.study_uid)].to_numpy()
    fold = fit.fold if kind == "crossing" else network
    held = fold == 1
    flipped = world.labels.set_index("study_uid").loc[list(fit.study_uid)].reset_index()
    flipped.loc[held, list(TARGETS)] = 1.0 - flipped.loc[held, list(TARGETS)]
    before, after = (
        cross_fit(sample_of(features, labels, config), fold, seed=5, jobs=1)[0]
        for labels in (world.labels, flipped)
    )
    same = (before == after).all(axis=1)
    assert same[held].all()
    assert not same[~held].any()
    assert (before == fit.probs[STACK if kind == "crossing" else STRICT]).all()


def test_same_bytes_for_any_jobs_and_after_loading(
    world: World, features: pd.DataFrame, fit: Fit, config: StackConfig, tmp_path: Path
) -> None:
    again = fit_stack(features, world.labels, config, seed=5, jobs=3)
    for model, probs in fit.probs.items():
        assert (again.probs[model] == probs).all(), model
    fit.stack.save(tmp_path / "one")
    again.stack.save(tmp_path / "two")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert Path("stack.json") in files
    assert {p.suffix for p in files} <= {".json", ".txt"}
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    loaded = Stack.load(tmp_path / "one").predict_all(as_test(features))
    pd.testing.assert_frame_equal(
        loaded, fit.stack.predict_all(as_test(features)), check_exact=True
    )


def test_log_odds_of_the_fold_chains_are_averaged(
    features: pd.DataFrame, fit: Fit, world: World
) -> None:
    uids = world.labels["study_uid"].iloc[:3]
    own = [features[features["study_uid"] == uid] for uid in uids]
    # One study seen by three fold models: here the statistics of three studies.
    chains = [o.assign(study_uid="1.9", fold=-1, model_fold=k) for k, o in enumerate(own)]
    for model in (STACK, "mean_of_members", "a"):
        each = np.concatenate([fit.stack.predict(c, model).to_numpy() for c in chains])
        both = fit.stack.predict(pd.concat(chains), model)
        assert both.columns.tolist() == list(TARGETS)
        np.testing.assert_allclose(both.to_numpy()[0], sigmoid(logit(each).mean(axis=0)), rtol=1e-9)
    assert (
        fit.stack.predict(pd.concat(chains)) == fit.stack.predict(pd.concat(chains), STACK)
    ).all(axis=None)


def test_a_training_study_is_refused(features: pd.DataFrame, fit: Fit) -> None:
    """The heads have learned from it: its answer would be too good."""
    with pytest.raises(TableError, match=r"fitted on all training studies.*1\.2\.10"):
        fit.stack.predict(features)


def test_formulas_treat_oof_and_test_alike(world: World) -> None:
    uid = world.labels["study_uid"].iloc[0]
    slices = world.slices[world.slices["study_uid"] == uid]
    levels = world.levels[world.levels["study_uid"] == uid]
    one = formulas(aggregate(slices, levels))
    slices = pd.concat([slices.assign(fold=-1, model_fold=k) for k in range(2)])
    many = formulas(aggregate(slices, pd.concat([levels.assign(model_fold=k) for k in range(2)])))
    for name, probs in many.items():
        np.testing.assert_allclose(probs, np.repeat(one[name], 2, axis=0), rtol=1e-9)


def test_slices_alone_read_no_header(fit: Fit) -> None:
    columns = fit.stack.heads[SLICES_ONLY].columns
    assert columns
    assert not {signal_of(c) for c in columns} & {SITE, COLUMN}
    assert {signal_of(c) for c in fit.stack.heads[STACK].columns} > {SITE}


def test_faults_are_named(
    world: World, features: pd.DataFrame, fit: Fit, config: StackConfig
) -> None:
    test = as_test(features)
    with pytest.raises(TableError, match="a__fracture__mean"):
        fit.stack.predict(test.drop(columns="a__fracture__mean"))
    with pytest.raises(TableError, match=r"fold models \[0, 1, 2\], not \[9\]"):
        fit.stack.predict(test.assign(model_fold=9))
    with pytest.raises(TableError, match=r"C1\.\.C7"):
        fit.stack.predict(test[test["level"] != LEVELS[2]])
    with pytest.raises(TableError, match="may have seen"):
        fit_stack(features.assign(model_fold=0), world.labels, config, seed=1, jobs=1)
    with pytest.raises(TableError, match=world.labels["study_uid"].iloc[2]):
        fit_stack(features, world.labels.drop(index=2), config, seed=1, jobs=1)
    infinite = test.reset_index(drop=True)
    infinite.loc[5, "a__fracture__mean"] = np.inf
    with pytest.raises(TableError, match="a__fracture__mean is inf"):
        fit.stack.predict(infinite)


def test_folds_keep_groups_whole() -> None:
    labels = make_world(40, seed=3).labels.assign(group=[str(i // 2) for i in range(40)])
    for strata in (None, np.arange(40) // 2 % 3):
        fold = deal_folds(labels, 7, 4, strata)
        assert set(fold) == {0, 1, 2, 3}
        assert pd.Series(fold).groupby(labels["group"]).nunique().max() == 1


def broken(world: World, member: str, seed: int = 0) -> pd.DataFrame:
    """The slice table with a member whose logits are a random other study's."""
    rng = np.random.default_rng(seed)
    own = world.slices["member"] == member
    rows = world.slices[own]
    columns = [c for c in rows if c.startswith("fracture_")]
    noise = 3.0 * rng.normal(size=(rows["study_uid"].nunique(), 7))
    code = pd.factorize(rows["study_uid"])[0]
    changed = world.slices.copy()
    changed.loc[own, columns] = noise[code] - 2.0
    return changed


def test_worth_of_members_and_what_certainly_harms(config: StackConfig) -> None:
    world = make_world(200, seed=21)
    slices = broken(world, "b")

    def build(dropped: tuple[str, ...]) -> pd.DataFrame:
        return aggregate(slices[~slices["member"].isin(dropped)], world.levels)

    fit = fit_stack(build(()), world.labels, config, seed=5, jobs=1, without=build)
    worth = fit.worth.set_index("member")
    assert worth.loc["a", "per_exam_low"] > 0.05
    assert worth.loc["b", "per_exam"] < worth.loc["a", "per_exam_low"]
    certainly = worth.loc["b", "per_exam_high"] < 0
    assert bool(worth.loc["b", "kept"]) is not certainly
    assert fit.stack.members == (("a",) if certainly else ("a", "b"))


def test_a_harmful_member_is_left_out_and_can_be_forced(
    monkeypatch: pytest.MonkeyPatch, world: World, config: StackConfig
) -> None:
    """Where the interval of a member's worth lies below zero."""
    import cspine_kit.stack.model.fit as room

    def build(dropped: tuple[str, ...]) -> pd.DataFrame:
        return aggregate(world.slices[~world.slices["member"].isin(dropped)], world.levels)

    monkeypatch.setattr(room, "bootstrap_interval", lambda *_, **__: (-0.2, -0.1))
    few = config.model_copy(update={"rounds": 10})
    fit = fit_stack(build(()), world.labels, few, seed=5, jobs=1, without=build)
    # Both look harmful: the better one stays, because something must.
    assert len(fit.stack.members) == 1
    assert fit.worth["kept"].sum() == 1
    [left_out] = fit.stack.notes["left_out"]
    assert not [c for c in fit.stack.heads[STACK].columns if c.startswith(f"{left_out}__")]
    assert {"stack_all_members", "a", "b"} <= set(fit.probs)
    [stays] = fit.stack.members
    assert (fit.probs["mean_of_members"] == fit.probs[stays]).all()
    forced = few.model_copy(update={"keep": ("a", "b")})
    fit = fit_stack(build(()), world.labels, forced, seed=5, jobs=1, without=build)
    assert fit.stack.members == ("a", "b")
    assert "stack_all_members" not in fit.probs


def test_raw_columns_help_where_known_and_cost_nothing_where_not(
    world: World, features: pd.DataFrame, config: StackConfig
) -> None:
    told = features["study_uid"].map(world.labels.set_index("study_uid")[OVERALL])
    fit = fit_stack(features.assign(raw__column__told=told), world.labels, config, seed=5, jobs=1)
    known, absent = fit.probs[STACK], fit.probs["stack_columns_absent"]
    assert score(world, fit.study_uid, known) < score(world, fit.study_uid, absent)
    alone = score(world, fit.study_uid, fit.probs[SLICES_ONLY])
    assert score(world, fit.study_uid, absent) < 1.15 * alone
    test = as_test(features).assign(raw__column__told=np.nan)
    assert np.isfinite(fit.stack.predict(test).to_numpy()).all()


def test_rows_that_may_have_leaked_are_no_sample(
    world: World, features: pd.DataFrame, config: StackConfig
) -> None:
    leaky = features.copy()
    leaky.loc[leaky.index[3], "model_fold"] = (leaky.loc[leaky.index[3], "model_fold"] + 1) % 3
    with pytest.raises(TableError, match="may have seen"):
        sample_of(leaky, world.labels, config)

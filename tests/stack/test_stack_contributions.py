"""Parts of an answer sum to the answer, and a member that knows nothing has small ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slice_tables import World

from cspine_kit.core.anatomy import LEVELS, N_LEVELS, TARGETS
from cspine_kit.core.config import load_config
from cspine_kit.core.metric import best_constant
from cspine_kit.stack.external.extras import Extras
from cspine_kit.stack.external.read import Scores
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.model.contributions import Contributions, level_contributions
from cspine_kit.stack.model.design import FeatureTable, level_design
from cspine_kit.stack.model.head import Settings
from cspine_kit.stack.model.nested import fit_heads, sample_of
from cspine_kit.stack.model.stack import STACK, Stack

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROUNDS = 7


def fitted(features: pd.DataFrame, world: World) -> Stack:
    """A stack with a line and exactly `ROUNDS` trees of two seeds."""
    config = load_config(CONFIGS / "demo.yaml").stack
    config = config.model_copy(update={"seeds": 2, "min_rows": 5})
    settings = (Settings(1.0, ROUNDS), Settings(1.0, 0))
    heads, _ = fit_heads(sample_of(features, world.labels, config), seed=3, settings=settings)
    rates = tuple(best_constant(world.labels[list(TARGETS)].to_numpy()))
    return Stack({STACK: heads}, ("a", "b"), (0, 1, 2), 1e-3, rates)


@pytest.fixture(scope="module")
def features(world: World) -> pd.DataFrame:
    return aggregate(world.slices, world.levels)


@pytest.fixture(scope="module")
def stack(world: World, features: pd.DataFrame) -> Stack:
    return fitted(features, world)


@pytest.fixture(scope="module")
def found(stack: Stack, features: pd.DataFrame) -> Contributions:
    return level_contributions(stack, features)


def total(found: Contributions) -> np.ndarray:
    return found.start + found.line.sum(axis=2) + found.trees.sum(axis=2)


def test_parts_sum_to_the_heads_log_odds(stack, features, found) -> None:
    heads = stack.heads[STACK]
    table = FeatureTable.of(features, heads.columns)
    odds = heads.level.odds(level_design(table)).reshape(-1, N_LEVELS)
    assert total(found) == pytest.approx(odds, abs=1e-5)
    assert np.abs(found.trees).sum() > 0 and np.abs(found.line).sum() > 0


def test_parts_of_one_level_are_told_with_what_all_studies_share(found) -> None:
    uid = found.study_uid[4]
    rows = found.of(uid, "C3")
    assert rows["part"].sum() == pytest.approx(total(found)[4, LEVELS.index("C3")])
    assert rows["feature"].iloc[0] == "start" and set(rows["study_uid"]) == {uid}


def test_a_feature_that_never_changes_moves_nothing(world, features) -> None:
    flat = features.assign(a__fracture__max=0.25)
    parts = level_contributions(fitted(flat, world), flat).importances().set_index("feature")
    assert parts.loc["a__fracture__max", ["line", "trees"]].abs().max() < 1e-9
    assert parts["line"].max() > 0.05


def test_scores_from_elsewhere_have_their_own_parts(world, features) -> None:
    probs = world.labels.set_index("study_uid")[list(TARGETS)] * 0.8 + 0.1
    extern, _ = Extras.fit(features, [Scores("other", probs)]).add(features)
    stack = fitted(extern, world)
    parts = level_contributions(stack, extern)
    table = FeatureTable.of(extern, stack.heads[STACK].columns)
    odds = stack.heads[STACK].level.odds(level_design(table)).reshape(-1, N_LEVELS)
    assert total(parts) == pytest.approx(odds, abs=1e-5)
    shares = parts.importances().set_index("feature")["line"]
    assert shares[[c for c in shares.index if "__external__" in c]].sum() > 0.5 * shares.sum()

"""Slices of other planes, and members that judge levels, studies or boxes, as features."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slice_tables import World
from test_stack_pipeline import CONFIGS, write_run

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import load_config
from cspine_kit.core.errors import TableError
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS, write_table
from cspine_kit.stack.external.extras import Extras
from cspine_kit.stack.fallback.scores import fit_score_imputer
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.features.names import (
    BOX_SCORE,
    LEVEL_LOGIT,
    STUDY_LOGIT,
    feature_columns,
    own_members,
)
from cspine_kit.stack.features.scores import MemberScores
from cspine_kit.stack.inputs import read_inputs
from cspine_kit.stack.model.fit import members_of
from cspine_kit.stack.pipeline import stack_key
from cspine_kit.stack.scores.baselines import formulas

KEY = ["study_uid", "level", "model_fold"]


def sagittal(world: World) -> pd.DataFrame:
    """Member s: eleven sagittal slices of every study, the middle ones show the spine."""
    units = world.slices[["study_uid", "model_fold", "fold"]].drop_duplicates()
    rng = np.random.default_rng(5)
    parts = []
    for unit in units.to_dict("records"):
        at = 5.0 * np.arange(11)
        seen = 4.0 - 0.4 * np.abs(at - 25.0)
        rows = pd.DataFrame({"position": np.arange(11), "at_mm": at})
        rows[list(VERTEBRA_COLUMNS)] = np.repeat(seen[:, None], 7, axis=1)
        rows[list(FRACTURE_COLUMNS)] = rng.normal(-2.0, 1.0, (11, 7))
        parts.append(rows.assign(member="s", plane="sagittal", slice_idx=pd.NA, **unit))
    return pd.concat(parts, ignore_index=True)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def test_a_level_of_another_plane_is_what_the_network_sees_of_it(world: World) -> None:
    own = sagittal(world)
    joined = pd.concat([world.slices, own])
    features = aggregate(joined, world.levels).set_index(KEY)
    plain = aggregate(world.slices, world.levels).set_index(KEY)
    alike = [c for c in plain if c.startswith(("a__", "b__", "all__site", "all__study"))]
    pd.testing.assert_frame_equal(features[alike], plain[alike], check_exact=True)
    rows = own[own["study_uid"] == own["study_uid"].iloc[0]]
    f, v = sigmoid(rows["fracture_C3"]), sigmoid(rows["vertebra_C3"])
    got = features.xs((rows["study_uid"].iloc[0], "C3")).iloc[0]
    assert got["s__fracture__weighted"] == pytest.approx((f * v).sum() / v.sum(), abs=1e-5)
    shown = f[v >= 0.5 * v.max()]
    assert 0 < len(shown) < len(rows)
    assert got["s__fracture__max"] == pytest.approx(shown.max(), abs=1e-5)
    assert got["s__fracture__mean"] == pytest.approx(shown.mean(), abs=1e-5)


def test_without_axial_slices_nothing_is_said_of_the_scanner(world: World) -> None:
    features = aggregate(sagittal(world), world.levels)
    assert not [c for c in features if c.startswith(("all__site", "all__study__step"))]
    assert np.isfinite(features[feature_columns(features.columns)].to_numpy()).all()


def test_slices_of_a_member_do_not_mix_planes_in_a_study(world: World) -> None:
    own = sagittal(world)
    own.loc[[0, 1], "plane"] = "coronal"
    with pytest.raises(TableError, match="more than one plane"):
        aggregate(own, world.levels)
    # Where another member speaks for it, a study may be seen in another plane than the others.
    uid = own["study_uid"].iloc[0]
    spoken = world.slices[(world.slices["member"] == "a") & (world.slices["study_uid"] == uid)]
    mixed = pd.concat([sagittal(world).query("study_uid != @uid"), spoken.assign(member="s")])
    features = aggregate(mixed, world.levels).set_index(KEY)
    expected = aggregate(world.slices, world.levels).set_index(KEY)
    assert features.xs(uid)["s__fracture__max"].tolist() == (
        expected.xs(uid)["a__fracture__max"].tolist()
    )


def test_axial_slices_must_descend(world: World) -> None:
    with pytest.raises(TableError, match="do not descend"):
        aggregate(world.slices.assign(at_mm=-world.slices["at_mm"]), world.levels)


def scores_of(world: World) -> MemberScores:
    """Members l (levels, and studies), d (boxes): noisy truth."""
    rng = np.random.default_rng(3)
    labels = world.labels.merge(world.folds[["study_uid", "fold"]], on="study_uid")
    labels["model_fold"] = labels["fold"]
    unit = ["study_uid", "model_fold", "fold"]
    levels = labels.melt(unit, list(LEVELS), var_name="level", value_name="fracture")
    levels["fracture"] = 3 * levels["fracture"] - 2 + rng.normal(0, 0.5, len(levels))
    studies = labels[unit].assign(overall=3.0 * labels["patient_overall"] - 1.5)
    boxes = labels[unit].merge(world.levels[["study_uid", "level", "center_z_mm"]], on="study_uid")
    boxes = boxes[boxes["level"].isin(["C2", "C5"])].assign(n=0, slice_idx=0)
    boxes["at_mm"] = boxes["center_z_mm"]
    boxes["score"] = np.where(boxes["level"] == "C2", 0.25, 0.75)
    weaker = boxes.assign(score=boxes["score"] / 2, n=1)
    return MemberScores(
        levels.assign(member="l"),
        studies.assign(member="l"),
        pd.concat([boxes, weaker]).assign(member="d"),
    )


def test_scores_stand_beside_the_statistics(world: World) -> None:
    scores = scores_of(world)
    features = aggregate(world.slices, world.levels, scores)
    at = features.set_index(KEY)
    given = scores.levels.set_index(KEY)["fracture"].loc[at.index]
    np.testing.assert_allclose(at[f"l__{LEVEL_LOGIT}"], given, atol=1e-5)
    overall = scores.studies.set_index("study_uid")["overall"]
    np.testing.assert_allclose(features[f"l__{STUDY_LOGIT}"], overall[features["study_uid"]])
    best = at[f"d__{BOX_SCORE}"].groupby("level").agg(["min", "max"])
    assert (best.loc["C2"] >= 0.25).all() and (best.loc["C5"] == 0.75).all()
    assert best.loc["C7"].tolist() == [0.0, 0.0], "a study has boxes, this level none"
    assert own_members(features.columns) == ["a", "b", "l", "d"] == list(members_of(features))
    probs = formulas(features)
    assert set(probs) >= {"a", "b", "l"} and "d" not in probs
    np.testing.assert_allclose(probs["l"][0, :7], sigmoid(features[f"l__{LEVEL_LOGIT}"][:7]))


def test_a_unit_that_a_member_lacks_is_imputed(world: World) -> None:
    scores = scores_of(world)
    whole = aggregate(world.slices, world.levels, scores)
    lost = world.labels["study_uid"].iloc[:4].tolist()
    part = MemberScores(
        scores.levels[~scores.levels["study_uid"].isin(lost)],
        scores.studies[~scores.studies["study_uid"].isin(lost)],
        scores.boxes[~scores.boxes["study_uid"].isin(lost)],
    )
    features = aggregate(world.slices, world.levels, part)
    holes = features["study_uid"].isin(lost)
    columns = [f"l__{LEVEL_LOGIT}", f"l__{STUDY_LOGIT}", f"d__{BOX_SCORE}"]
    assert features.loc[holes, columns].isna().all(axis=None)
    imputer = fit_score_imputer(features)
    assert json.loads(json.dumps(imputer.lines)) == imputer.lines
    filled, counts = imputer.fill(features)
    features = features.sort_values(["study_uid", "model_fold", "level"], ignore_index=True)
    whole = whole.sort_values(["study_uid", "model_fold", "level"], ignore_index=True)
    holes = features["study_uid"].isin(lost)
    assert counts == {"l": 4, "d": 4}
    assert np.isfinite(filled[columns].to_numpy()).all()
    pd.testing.assert_frame_equal(filled[~holes], features[~holes])
    assert filled[f"d__{BOX_SCORE}"].between(0, 1).all()
    # The line knows which levels are suspicious: its guesses follow what the member would say.
    guess, truth = (f.loc[holes, f"l__{LEVEL_LOGIT}"] for f in (filled, whole))
    assert np.corrcoef(guess, truth)[0, 1] > 0.3
    # In a kernel in which the member did not run at all there is no column to fill.
    blind, counts = Extras(imputer=imputer).add(aggregate(world.slices, world.levels))
    assert counts["l"] == len(world.labels) and np.isfinite(blind[columns].to_numpy()).all()


def test_faulty_scores_are_named(world: World) -> None:
    scores = scores_of(world)
    uid = scores.levels["study_uid"].iloc[0]
    torn = scores.levels.drop(index=scores.levels.index[0])
    twice = pd.concat([scores.studies, scores.studies.head(1)])
    holed = scores.levels.assign(fracture=scores.levels["fracture"].where(scores.levels.index > 0))
    for wrong, said in (
        (MemberScores(levels=torn), f"not all of C1..C7.*{uid}"),
        (MemberScores(studies=twice), "duplicate keys"),
        (MemberScores(levels=holed), f"fracture is not finite.*{uid}"),
    ):
        with pytest.raises(TableError, match=said):
            aggregate(world.slices, world.levels, wrong)


def test_a_run_reads_the_tables_that_are_there(world: World, tmp_path: Path) -> None:
    paths, scores = write_run(world, tmp_path), scores_of(world)
    config = load_config(CONFIGS / "demo.yaml")
    assert read_inputs(config.stack, paths).scores == MemberScores()
    before = stack_key(config, paths)
    lost = scores.levels["study_uid"].iloc[0]
    part = scores.levels[scores.levels["study_uid"] != lost]
    write_table(part, paths.table("oof_levels"), "oof_levels", "k5")
    assert stack_key(config, paths) != before
    inputs = read_inputs(config.stack, paths)
    features = inputs.features()
    assert features[f"l__{LEVEL_LOGIT}"].notna().all() and inputs.imputed == {"l": 1}
    assert f"l__{LEVEL_LOGIT}" not in inputs.features(("l",))
    alone = inputs.features(("a", "b"))
    assert f"l__{LEVEL_LOGIT}" in alone and "a__fracture__max" not in alone
    inputs.extras().save(paths.stack, config.stack)
    assert list(Extras.load(paths.stack).imputer.lines) == [f"l__{LEVEL_LOGIT}"]

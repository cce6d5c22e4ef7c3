"""Rounds of a member's labels: halves of the training folds teach each other, and never fold k.

Networks are fakes where nothing is learned. Nine studies in three folds.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_networks import fake_networks
from run_folder import tiny_config, write_run

from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.config import parse_config, read_config
from cspine_kit.core.config.changes import apply_changes
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.tables import FRACTURE_COLUMNS, MASK_COLUMNS, read_table
from cspine_kit.show.plan import describe_plan
from cspine_kit.vision.inputs.tables import open_inputs
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.oof import steps
from cspine_kit.vision.oof.chain import FoldChain
from cspine_kit.vision.oof.lineage import read_lineage
from cspine_kit.vision.oof.run import run_oof, train_member
from cspine_kit.vision.tasks.soft import soft_labels
from cspine_kit.vision.tasks.task import Lesson

PATH = Path(__file__).resolve().parents[2] / "configs" / "hard-gpu.yaml"
HALVES = ["a_half_0", "a_half_1"]
LATER = ["a_round_1_half_0", "a_round_1_half_1"]


def three_folds(**changes):
    config = tiny_config()
    changed = config.members["a"].model_copy(update=changes)
    folds = config.folds.model_copy(update={"n": 3})
    members = {**config.members, "a": changed}
    return config.model_copy(update={"folds": folds, "members": members})


@pytest.fixture(name="made")
def _made(monkeypatch):
    return fake_networks(monkeypatch)


@pytest.fixture(name="paths")
def _paths(tmp_path):
    paths = write_run(tmp_path / "run", 9)
    folds = pd.read_csv(paths.folds)
    folds.assign(fold=np.arange(9) % 3).to_csv(paths.folds, index=False)
    return paths


def fold_of(paths):
    return pd.read_csv(paths.folds).set_index("study_uid")["fold"].to_dict()


def test_halves_learn_from_one_half_and_judge_the_other(made, paths):
    config = three_folds(rounds=1)
    run_oof(config, paths)
    assert [made.count_of("train", name) for name in (*HALVES, "a", "b")] == [3, 3, 3, 3]
    fold, inputs = fold_of(paths), open_inputs(paths)
    for k in range(3):
        chain = FoldChain(config, paths, inputs, k)
        first, second = (chain.learned_by(name) for name in HALVES)
        assert {fold[uid] for uid in first} | {fold[uid] for uid in second} == {0, 1, 2} - {k}
        assert not set(first) & set(second)
        assert [chain.judged_by(name) for name in HALVES] == [second, first]
        for name, judged in zip(HALVES, (second, first), strict=True):
            assert set(chain.fracture_rows(name).frame()["study_uid"]) == set(judged)
        assert not {fold[uid] for uid in read_lineage(paths.model("a", k))} & {k}
    table = read_table(paths.table("oof_slices"), "oof_slices")
    assert set(table["member"]) == {"a", "b"}, "halves speak to their member alone"
    made.clear()
    run_oof(config, paths)
    assert not made


def test_a_further_round_keeps_the_halves_before_it(made, paths):
    run_oof(three_folds(rounds=1), paths)
    made.clear()
    run_oof(three_folds(rounds=2), paths)
    assert made.count_of("train", *HALVES) == 0
    assert [made.count_of("train", name) for name in (*LATER, "a", "b")] == [3, 3, 3, 0]


def test_without_rounds_keys_are_what_they_were(paths):
    inputs = open_inputs(paths)
    plain, some, more = (FoldChain(three_folds(rounds=n), paths, inputs, 0) for n in (0, 1, 2))
    assert plain.model_key("b") == some.model_key("b")
    assert len({chain.model_key("a") for chain in (plain, some, more)}) == 3
    assert some.model_key("a_half_0") == more.model_key("a_half_0") != more.model_key(LATER[0])
    divided = FoldChain(three_folds(head_studies="other_half"), paths, inputs, 0)
    assert divided.model_key("a") != plain.model_key("a")


def test_a_half_can_be_trained_by_its_name_and_is_listed(made, paths):
    config = three_folds(rounds=1)
    train_member(config, paths, "a_half_1", 0)
    assert made.count_of("train", "a_half_1") == 1 and made.count_of("train", "a") == 0
    plan = describe_plan(config)
    assert plan.index("a_half_0:") < plan.index("  a:")


def test_a_member_learns_what_the_other_half_says_of_each_study(made, paths, monkeypatch):
    seen = {}
    original = steps.Lesson

    def look(slices, label, rows=None, *rest, said=None, **more):
        if said is not None:
            seen[slices["study_uid"].iloc[0]] = set(said["member"])
        return original(slices, label, rows, *rest, said=said, **more)

    monkeypatch.setattr(steps, "Lesson", look)
    train_member(three_folds(rounds=1), paths, "a", 0)
    fold = fold_of(paths)
    assert set(seen) == {uid for uid, k in fold.items() if k != 0}
    assert all(seen[uid] == {HALVES[fold[uid] == 1]} for uid in seen)


@pytest.fixture(name="view")
def _view(make_volume, four):
    """Slices 10 to 29, of which all show C2."""
    whole = four.views[0]
    rows = np.arange(10, 30)
    return StudyView(whole.volume, rows, [whole.patches[k] for k in rows])


def said_of(view, logits):
    rows = pd.DataFrame({"at_mm": view.at_mm, **dict.fromkeys(FRACTURE_COLUMNS, -9.0)})
    return rows.assign(fracture_C2=logits)


def lesson_of(view, said):
    label = pd.Series({t: float(t in ("C2", "patient_overall")) for t in TARGETS})
    z = view.volume.z_mm
    slices = pd.DataFrame({"z_mm": z, **dict.fromkeys(MASK_COLUMNS, 0.0)})
    return Lesson(slices.assign(mask_C2=0.5), label, said=said)


def test_labels_are_as_large_as_the_fracture_is_sure(view, config):
    second = LEVELS.index("C2")
    visible = np.zeros((len(view), 7), np.float32)
    visible[:, second] = 1.0
    said = said_of(view, np.where(np.arange(len(view)) == 4, 0.0, -3.0))
    own = config.levels.model_copy(update={"rounds": 1})
    lesson = lesson_of(view, said)
    found = soft_labels(view, lesson, visible, own)
    low = 2 / (1 + np.exp(3.0))
    assert found[4, second] == pytest.approx(1.0) and found[5, second] == pytest.approx(low)
    assert found[:, [k for k in range(7) if k != second]].max() == 0.0, "whole levels stay whole"
    softer = own.model_copy(update={"slice_labels": "visible"})
    assert np.allclose(soft_labels(view, lesson, visible, softer), 0.5 * found)
    # Rows from the feet up say the same, and nothing said leaves the study's label.
    turned = replace(lesson, said=said[::-1])
    assert np.array_equal(soft_labels(view, turned, visible, own), found)
    assert soft_labels(view, replace(lesson, said=None), visible, own)[:, second].tolist() == [
        1.0
    ] * len(view)


BAD = {
    r"members\.axial\.rounds: .* set folds\.n to 3": {"axial.rounds": 1, "folds.n": 2},
    r"rounds: .* set plane: axial, or rounds: 0": {"axial.rounds": 1, "axial.plane": "coronal"},
    "set one_output: false, .* and rounds: 0": {"axial.rounds": 1, "axial.one_output": True},
    "both halve": {"axial.rounds": 1, "axial.head_epochs": 1, "axial.head_studies": "same_half"},
    "does nothing without head_epochs": {"axial.head_studies": "other_half"},
    "axial_half_0.* are names of other networks too, or of rounds": {
        "axial.rounds": 1,
        "axial_half_0": {},
    },
    "does nothing for kind 'boxes'": {"boxed.rounds": 1},
}


@pytest.mark.parametrize("said", BAD)
def test_what_cannot_be_halved_is_refused(said):
    changes = {k if k.startswith("folds") else f"members.{k}": v for k, v in BAD[said].items()}
    with pytest.raises(ConfigError, match=said):
        parse_config(apply_changes(read_config(PATH), changes), PATH)

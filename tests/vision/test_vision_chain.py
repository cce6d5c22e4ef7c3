"""Keys: a change makes anew what hangs on it, and nothing else.

Networks are fakes; what is asked of them is counted. Eight masked studies in two folds, two
members: at first six trainings, 16 vertebra rows (both models on all studies), 8 rows a member.
"""

import os
import shutil

import pandas as pd
import pytest
from fake_networks import fake_networks
from run_folder import tiny_config, write_run

from cspine_kit.core.paths import RunPaths
from cspine_kit.core.tables import read_table, write_table
from cspine_kit.vision.oof import chain as chain_room
from cspine_kit.vision.oof.run import _trained_first, missing, run_oof
from cspine_kit.vision.tasks.slices import SlicesTask
from cspine_kit.vision.tasks.vertebra import VertebraTask

IN_FOLD_0 = "1.2.3"
"""Folds alternate, so that odd studies are in fold 0: model 1 learns from them."""


@pytest.fixture(name="made")
def _made(monkeypatch):
    return fake_networks(monkeypatch)


@pytest.fixture(name="paths")
def _paths(tmp_path, made):
    """A finished run; `made` is empty again."""
    paths = write_run(tmp_path / "run", 8)
    run_oof(tiny_config(), paths)
    assert counts(made) == (2, 16, 4, 16)
    made.clear()
    return paths


def counts(made):
    """Vertebra models trained, vertebra rows, member models trained, member rows."""
    return (
        made.count_of("train", "vertebra"),
        made.count_of("rows", "vertebra"),
        made.count_of("train", "a", "b"),
        made.count_of("rows", "a", "b"),
    )


def rewrite(paths: RunPaths, name: str, change) -> None:
    """A table of the data room as another run of the index or the cache would leave it."""
    table = change(read_table(paths.table(name), name))
    write_table(table, paths.table(name), name, "another key, of other times and places")


def run(paths: RunPaths, config=None) -> pd.DataFrame:
    run_oof(config or tiny_config(), paths)
    return read_table(paths.table("oof_slices"), "oof_slices")


def test_side_by_side_the_rows_of_a_vertebra_fold_wait_for_its_training_alone(made, tmp_path):
    paths = write_run(tmp_path / "run", 8)
    tasks = _trained_first(missing(tiny_config(), paths, ["vertebra"]))
    rows, training = ([f"vertebra fold {k}{what}" for k in (0, 1)] for what in ("", ": training"))
    assert list(tasks) == [*training, *rows]
    assert [tasks[name].after for name in rows] == [(name,) for name in training]
    assert [tasks[name].run() for name in training] == ["", ""]
    assert counts(made) == (2, 0, 0, 0)
    assert [tasks[name].run() for name in rows] == ["", ""]
    assert counts(made) == (2, 16, 0, 0)


def test_nothing_is_made_twice(made, paths):
    run(paths)
    assert not made


def test_test_images_and_times_do_not_matter(made, paths):
    def with_test_study(studies):
        return pd.concat([studies, studies.head(1).assign(study_uid="9.9", split="test")])

    rewrite(paths, "studies", with_test_study)
    for name in ("slices", "coarse"):
        rewrite(paths, name, lambda table: table)
    for path in paths.root.rglob("*"):
        os.utime(path, (1e9, 1e9))
    run(paths)
    assert not made


def test_a_copied_run_folder_is_as_good(made, paths, tmp_path):
    copy = RunPaths(shutil.copytree(paths.root, tmp_path / "elsewhere" / "copy"))
    shutil.rmtree(paths.root)

    def moved(volumes):
        folder = copy.cache / "coarse"
        return volumes.assign(path=[str(folder / f"{uid}.arrow") for uid in volumes["study_uid"]])

    rewrite(copy, "coarse", moved)
    run(copy)
    assert not made


def changed(config, part, **changes):
    return config.model_copy(update={part: getattr(config, part).model_copy(update=changes)})


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("execution", {"jobs": 1, "threads": 1}),
        ("training", {"workers": 1}),
        ("kernel", {"batch_size": 3, "hours": 1.0}),
        ("stack", {"seeds": 7}),
    ],
)
def test_how_a_run_is_carried_out_does_not_matter(made, paths, part, changes):
    run(paths, changed(tiny_config(), part, **changes))
    assert not made


def test_a_members_settings_are_its_own(made, paths):
    config = tiny_config()
    other = config.members["b"].model_copy(update={"lr": 0.5})
    config = config.model_copy(update={"members": {"a": config.members["a"], "b": other}})
    run(paths, config)
    assert counts(made) == (0, 0, 2, 8)
    assert made.count_of("train", "b") == 2 and made.count_of("rows", "b") == 8
    made.clear()
    third = {**config.members, "c": other}
    run(paths, config.model_copy(update={"members": third}))
    assert counts(made) == (0, 0, 0, 0) and made.count_of("train", "c") == 2


def test_views_are_predicted_anew_and_nothing_is_trained(made, paths):
    run(paths, changed(tiny_config(), "kernel", views=1 + tiny_config().kernel.views % 2))
    assert counts(made) == (0, 0, 0, 16)


def without(uid):
    return lambda table: table[table["study_uid"] != uid]


def test_an_excluded_study_matters_to_those_who_learned_from_it(made, paths):
    before = read_table(paths.table("oof_slices"), "oof_slices")
    for name in ("studies", "slices", "coarse"):
        rewrite(paths, name, without(IN_FOLD_0))
    rows = run(paths)
    assert IN_FOLD_0 in set(before["study_uid"]) and IN_FOLD_0 not in set(rows["study_uid"])
    assert {entry[2] for entry in made} == {1}, "fold 0 held it out"
    assert counts(made) == (1, 7, 2, 8)


def test_an_excluded_study_without_a_mask_leaves_the_vertebra_stage_alone(made, tmp_path):
    paths = write_run(tmp_path / "run", 8)
    rewrite(paths, "studies", lambda t: t.assign(has_mask=t["study_uid"] != IN_FOLD_0))
    run(paths)
    made.clear()
    for name in ("studies", "slices", "coarse"):
        rewrite(paths, name, without(IN_FOLD_0))
    run(paths)
    assert counts(made) == (0, 0, 2, 8) and {entry[2] for entry in made} == {1}


def of_one(column, value):
    return lambda table: table.assign(
        **{column: table[column].where(table["study_uid"] != IN_FOLD_0, value)}
    )


def test_new_voxels_of_a_study_are_looked_at_again(made, paths):
    rewrite(paths, "coarse", of_one("checksum", "0" * 64))
    run(paths)
    of_fold_0 = [entry[1:] for entry in made if entry[2] == 0]
    assert of_fold_0 == [(name, 0, IN_FOLD_0) for name in ("vertebra", "a", "b")]
    assert counts(made) == (1, 8 + 1, 2, 8 + 2)


def test_a_label_matters_to_members_that_learned_it(made, paths):
    rewrite(paths, "studies", of_one("C5", 1.0))
    run(paths)
    assert counts(made) == (0, 0, 2, 8) and {entry[2] for entry in made} == {1}


def test_a_mask_matters_to_all_who_learned_from_it(made, paths):
    rewrite(paths, "slices", of_one("mask_C3", 0.5))
    run(paths)
    assert counts(made) == (1, 8, 2, 8) and {entry[2] for entry in made} == {1}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ((chain_room, "TRAIN_VERSION"), (2, 16, 4, 16)),
        ((VertebraTask, "rows_version"), (0, 16, 4, 16)),
        ((chain_room, "DECODE_VERSION"), (0, 0, 4, 16)),
        ((SlicesTask, "rows_version"), (0, 0, 0, 16)),
    ],
)
def test_changed_code_makes_anew_what_it_makes(made, paths, monkeypatch, code, expected):
    monkeypatch.setattr(*code, getattr(*code) + 1)
    run(paths)
    assert counts(made) == expected
    made.clear()
    run(paths)
    assert not made


def test_a_model_that_is_gone_is_made_again(made, paths):
    (paths.model("a", 1) / "weights.safetensors").unlink()
    run(paths)
    assert made == [("train", "a", 1)], "its rows are there, under the same key"

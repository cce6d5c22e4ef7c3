"""A competition with many small damages, from its files through training to the slice table."""

import shutil

import pandas as pd
import pytest
import torch
from damage import TRAIN, edit, line, nest, write_small
from run_folder import tiny_config
from safetensors.torch import load_file

from cspine_kit.core.paths import RunPaths
from cspine_kit.core.tables import read_table
from cspine_kit.data.stages import prepare, run_coarse, run_folds, run_index
from cspine_kit.vision.oof.run import run_oof

A, B, C, D, E, F = TRAIN


@pytest.fixture(name="config")
def _config(tmp_path):
    config = tiny_config()
    folder = config.competition.model_copy(update={"dir": tmp_path / "c"})
    return config.model_copy(update={"competition": folder})


def test_a_damaged_competition_trains_to_finite_weights(tmp_path, config):
    """An empty label, a cut mask, a dead link among files, a doubled folder: one study is lost."""
    competition = write_small(tmp_path / "c")
    edit(competition.train_csv, lambda t: "\ufeff" + line(t, 7, lambda r: r[:-1]))
    mask = competition.segmentation(D)
    mask.write_bytes(mask.read_bytes()[:5000])
    (competition.images("train", B) / "25.dcm").symlink_to("nowhere")
    nest(competition.root / "train_images")
    paths = RunPaths(tmp_path / "run")
    prepare(config, paths)
    failures = run_oof(config, paths)
    assert [(f.stage, f.study_uid) for f in failures] == [("index", F)]
    assert failures[0].cause == f"study {F}: train.csv line 7, column C7: is empty"
    rows = read_table(paths.table("oof_slices"), "oof_slices")
    assert set(rows["study_uid"]) == {A, B, C, D, E}
    weights = list(paths.root.rglob("weights.safetensors"))
    assert len(weights) == 6
    for file in weights:
        assert all(torch.isfinite(value).all() for value in load_file(file).values()), file


def test_a_study_that_dies_between_runs_costs_itself_and_may_come_back(tmp_path, config):
    """Its row in folds.csv waits; the run goes on without it, and with it when it is mended."""
    competition = write_small(tmp_path / "c")
    paths = RunPaths(tmp_path / "run")
    prepare(config, paths)
    folds = paths.folds.read_text()
    folder = competition.images("train", F)
    shutil.move(folder, tmp_path / "aside")
    folder.symlink_to("nowhere")
    prepare(config, paths)
    assert F not in set(read_table(paths.table("studies"), "studies")["study_uid"])
    assert F not in set(read_table(paths.table("coarse"), "coarse")["study_uid"])
    assert paths.folds.read_text() == folds
    (failure,) = run_oof(config, paths)
    assert (failure.stage, failure.study_uid) == ("index", F)
    assert "is a link to nowhere" in failure.cause
    folder.unlink()
    shutil.move(tmp_path / "aside", folder)
    prepare(config, paths)
    assert F in set(read_table(paths.table("coarse"), "coarse")["study_uid"])
    assert paths.folds.read_text() == folds


def test_a_volume_that_is_gone_or_cut_is_made_again(tmp_path, config):
    write_small(tmp_path / "c")
    paths = RunPaths(tmp_path / "run")
    run_index(config, paths)
    run_folds(config, paths)
    run_coarse(config, paths)
    files = {uid: paths.cache / "coarse" / f"{uid}.arrow" for uid in TRAIN}
    before = {uid: file.read_bytes() for uid, file in files.items()}
    files[A].unlink()
    files[B].write_bytes(before[B][:-7])
    files[C].unlink()
    files[C].symlink_to("nowhere")
    run_coarse(config, paths)
    assert before == {uid: file.read_bytes() for uid, file in files.items()}


def test_tables_and_volumes_serve_where_there_are_no_scans(tmp_path, config):
    """A run folder carried to another machine, its volumes shipped apart, trains a new member."""
    competition = write_small(tmp_path / "c")
    paths = RunPaths(tmp_path / "run")
    prepare(config, paths)
    run_oof(config, paths)
    before = read_table(paths.table("oof_slices"), "oof_slices")
    shutil.copytree(paths.cache, tmp_path / "shipped")
    shutil.rmtree(paths.cache)
    shutil.rmtree(competition.root / "train_images")
    volumes = config.volumes.model_copy(update={"shipped": (tmp_path / "shipped",)})
    members = {**config.members, "c": config.members["a"]}
    config = config.model_copy(update={"volumes": volumes, "members": members})
    weights = {p: p.stat().st_mtime_ns for p in paths.root.rglob("weights.safetensors")}
    prepare(config, paths)
    assert run_oof(config, paths) == []
    rows = read_table(paths.table("oof_slices"), "oof_slices")
    assert set(rows["member"]) == {"a", "b", "c"}
    kept = rows[rows["member"] != "c"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before)
    assert weights == {p: p.stat().st_mtime_ns for p in weights}, "no model is trained again"

"""A study that fails costs itself, is told and tried again when its inputs change; no run stops.

The out-of-fold run goes over a run folder whose volumes are damaged one by one.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from run_folder import tiny_config, write_run

from cspine_kit.core.errors import DataError, StudyError
from cspine_kit.core.failures import FILES, ROWS, gather, read_failures, summary
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.tables import read_table
from cspine_kit.data.levels import decode_levels
from cspine_kit.data.volumes.store import in_memory, open_volume, write_volume
from cspine_kit.vision.oof import run as oof
from cspine_kit.vision.oof import steps
from cspine_kit.vision.oof.attempts import Attempts
from cspine_kit.vision.predict import Said

BAD = "1.2.3"


UIDS = tuple(f"1.{k}" for k in range(1, 6))


def attempts(tmp_path, key=lambda uid: "k", state=lambda uid: "one", uids=UIDS):
    return Attempts(ROWS, "m", 0, tmp_path / "rows.parquet", uids, key, state)


def table_of(values):
    return {"rows": pd.DataFrame({"value": values})}


def rows_of(uid):
    if uid == "1.2":
        raise StudyError(uid, "is broken")
    if uid == "1.4":
        raise KeyError("z")
    return table_of([float(uid[-1])] * 2)


def causes(tmp_path):
    return {f.study_uid: f.cause for f in read_failures(tmp_path / FILES[ROWS])}


def test_failures_are_kept_and_tried_again_when_their_inputs_change(tmp_path):
    first = attempts(tmp_path)
    assert first.todo() == list(UIDS)
    first.make(rows_of, "t")
    assert not first.todo()
    assert causes(tmp_path) == {"1.2": "study 1.2: is broken", "1.4": "study 1.4: KeyError: 'z'"}
    assert first.frame()["study_uid"].tolist() == ["1.1"] * 2 + ["1.3"] * 2 + ["1.5"] * 2
    changed = attempts(tmp_path, state=lambda uid: "two" if uid == "1.2" else "one")
    assert changed.todo() == ["1.2"]
    changed.make(lambda uid: table_of([2.0]), "t")
    assert not changed.todo() and list(causes(tmp_path)) == ["1.4"]
    table = changed.frame()
    assert table.groupby("study_uid").size().to_dict() == {"1.1": 2, "1.2": 1, "1.3": 2, "1.5": 2}


def test_each_study_has_a_key_of_its_own(tmp_path):
    one = attempts(tmp_path)
    one.make(lambda uid: table_of([0.0]), "t")
    assert one.content() == dict.fromkeys(UIDS, "k")
    two = attempts(tmp_path, key=lambda uid: "new" if uid == "1.3" else "k")
    assert two.todo() == ["1.3"] and "1.3" not in set(two.frame()["study_uid"])
    two.make(lambda uid: table_of([1.0]), "t")
    assert two.frame().groupby("study_uid")["value"].first().to_dict() == {
        uid: float(uid == "1.3") for uid in UIDS
    }
    fewer = attempts(tmp_path, key=two.key, uids=UIDS[1:])
    assert not fewer.todo() and set(fewer.frame()["study_uid"]) == set(UIDS[1:])
    assert attempts(tmp_path, key=lambda uid: "other").todo() == list(UIDS)
    # A file without the ledger that belongs to it was not written to its end.
    one.file.with_suffix(".json").write_text("{}")
    assert two.todo() == list(UIDS)


def test_tables_of_one_network_are_written_and_made_anew_together(tmp_path):
    def both(uid):
        return table_of([1.0, 2.0]) | {"more": pd.DataFrame({"score": [3.0]})}

    made = replace(attempts(tmp_path), others=("more",))
    made.make(both, "t")
    assert len(made.frame()) == 10 and made.frame("more")["study_uid"].tolist() == list(UIDS)
    assert not made.todo()
    (tmp_path / "more.parquet").unlink()
    assert made.todo() == list(UIDS)


def test_short_memory_is_tried_at_every_run_and_a_broken_device_stops_it(tmp_path):
    def hungry(uid):
        if uid == "1.2":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return rows_of("1.1")

    found = attempts(tmp_path)
    found.make(hungry, "t")
    assert found.todo() == ["1.2"]

    def broken(uid):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        attempts(tmp_path, key=lambda uid: "new").make(broken, "t")
    with pytest.raises(DataError, match=r"every study failed; the first: study 1\.2: is broken"):
        attempts(tmp_path, key=lambda uid: "new", uids=("1.2",)).make(rows_of, "t")


@pytest.fixture(name="paths")
def _paths(tmp_path) -> RunPaths:
    return write_run(tmp_path / "run", 8)


def dead_link(path):
    path.unlink()
    path.symlink_to("nowhere")


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def rubbish(path):
    path.write_bytes(b"rubbish")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_volume_that_breaks_under_a_training_costs_its_study(paths, workers):
    """Flipped bits in the middle: nobody sees them before its slices are looked at."""
    volume = paths.cache / "fine" / f"{BAD}.arrow"
    torn = bytearray(volume.read_bytes())
    for place in range(len(torn) // 5, 4 * len(torn) // 5, 97):
        torn[place] ^= 0x55
    volume.write_bytes(torn)
    failures = oof.run_oof(tiny_config(workers), paths)
    assert {(f.stage, f.member, f.study_uid, f.model_fold) for f in failures} == {
        ("training", "a", BAD, 1),
        ("training", "b", BAD, 1),
        ("rows", "a", BAD, 0),
        ("rows", "b", BAD, 0),
    }
    assert all("delete it and run cspine cache" in f.cause for f in failures)
    assert len(set(read_table(paths.table("oof_slices"), "oof_slices")["study_uid"])) == 7


@pytest.mark.slow
@pytest.mark.parametrize("damage", [dead_link, cut, rubbish])
def test_one_bad_coarse_volume_costs_itself_and_comes_back_when_mended(paths, damage):
    volume = paths.cache / "coarse" / f"{BAD}.arrow"
    sound = volume.read_bytes()
    damage(volume)
    config = tiny_config()
    failures = oof.run_oof(config, paths)
    table = read_table(paths.table("failures"), "failures")
    assert len(table) == len(failures)
    found = {(r.stage, r.member, r.study_uid, r.model_fold) for r in table.itertuples()}
    # Study 3 belongs to fold 0: model 1 learns from it, both vertebra models look at it.
    assert found == {
        ("training", "vertebra", BAD, 1),
        ("rows", "vertebra", BAD, 0),
        ("rows", "vertebra", BAD, 1),
        ("rows", "a", BAD, 0),
        ("rows", "b", BAD, 0),
    }
    assert table["cause"].str.contains(BAD).all()
    told = "studies left out: rows vertebra 1, training vertebra 1, rows a 1, rows b 1\n  volume"
    assert summary(failures).startswith(told)
    rows = read_table(paths.table("oof_slices"), "oof_slices")
    assert set(rows["study_uid"]) == {f"1.2.{k}" for k in range(1, 9)} - {BAD}
    weights = {p: p.stat().st_mtime_ns for p in paths.root.rglob("weights.safetensors")}
    files = {p: p.stat().st_mtime_ns for p in paths.root.rglob("slices.parquet")}
    oof.run_oof(config, paths)
    assert files == {p: p.stat().st_mtime_ns for p in files}, "nothing is asked twice"
    if volume.is_symlink():
        volume.unlink()
    volume.write_bytes(sound)
    left = oof.run_oof(config, paths)
    assert [(f.stage, f.study_uid) for f in left] == [("training", BAD)]
    mended = read_table(paths.table("oof_slices"), "oof_slices")
    assert set(mended["study_uid"]) == {f"1.2.{k}" for k in range(1, 9)}
    kept = mended[mended["study_uid"] != BAD].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, rows)
    assert weights == {p: p.stat().st_mtime_ns for p in weights}, "no model is trained again"
    assert set(read_table(paths.table("levels"), "levels")["study_uid"]) == set(mended["study_uid"])


@pytest.mark.parametrize("damage", [dead_link, cut, rubbish])
def test_one_bad_fine_volume_costs_the_members_and_comes_back_when_mended(paths, damage):
    volume = paths.cache / "fine" / f"{BAD}.arrow"
    sound = volume.read_bytes()
    damage(volume)
    config = tiny_config()
    failures = oof.run_oof(config, paths)
    # Without the scans it cannot be made again.
    assert {(f.stage, f.member, f.study_uid, f.model_fold) for f in failures} == {
        ("fine", "", BAD, -1),
        ("training", "a", BAD, 1),
        ("training", "b", BAD, 1),
        ("rows", "a", BAD, 0),
        ("rows", "b", BAD, 0),
    }
    rows = read_table(paths.table("oof_slices"), "oof_slices")
    assert set(rows["study_uid"]) == {f"1.2.{k}" for k in range(1, 9)} - {BAD}
    assert BAD in set(read_table(paths.table("levels"), "levels")["study_uid"])
    weights = {p: p.stat().st_mtime_ns for p in paths.root.rglob("weights.safetensors")}
    if volume.is_symlink():
        volume.unlink()
    volume.write_bytes(sound)
    left = oof.run_oof(config, paths)
    assert {(f.stage, f.member) for f in left} == {("training", "a"), ("training", "b")}
    mended = read_table(paths.table("oof_slices"), "oof_slices")
    assert set(mended["study_uid"]) == {f"1.2.{k}" for k in range(1, 9)}
    assert weights == {p: p.stat().st_mtime_ns for p in weights}, "no model is trained again"


def test_a_study_that_fails_in_one_member_is_kept_for_the_others(paths, monkeypatch):
    real = steps.predict

    def picky(models, volume, levels, *arguments, **named):
        said = real(models, volume, levels, *arguments, **named)
        if volume.study_uid == BAD and "b" in models:
            return {"b": Said(None, StudyError(BAD, "gave NaN"), 0.0)}
        return said

    monkeypatch.setattr(steps, "predict", picky)
    (failure,) = oof.run_oof(tiny_config(), paths)
    assert (failure.stage, failure.member, failure.study_uid) == ("rows", "b", BAD)
    rows = read_table(paths.table("oof_slices"), "oof_slices")
    assert set(rows.loc[rows["study_uid"] == BAD, "member"]) == {"a"}
    assert len(set(rows.loc[rows["member"] == "b", "study_uid"])) == 7


def test_a_study_without_levels_costs_itself(paths, monkeypatch):
    """Neither the decode nor levels without slices stops a training."""

    def no_levels(z_mm, visible, boxes):
        levels = decode_levels(z_mm, visible, boxes)
        return levels.assign(z_top_mm=901.0, z_bottom_mm=900.0) if (z_mm[1] == -5.0) else levels

    for grid in ("coarse", "fine"):
        file = paths.cache / grid / f"{BAD}.arrow"
        volume, facts = open_volume(file)
        z_mm = np.where(np.arange(len(volume.z_mm)) == 1, -5.0, volume.z_mm)
        write_volume(replace(in_memory(volume), z_mm=z_mm), file, facts)
    monkeypatch.setattr("cspine_kit.vision.tasks.vertebra.decode_levels", no_levels)
    failures = oof.run_oof(tiny_config(), paths)
    assert {(f.stage, f.member, f.study_uid) for f in failures} == {
        ("training", "a", BAD),
        ("training", "b", BAD),
        ("rows", "a", BAD),
        ("rows", "b", BAD),
    }
    assert all("no slice lies inside the decoded levels" in f.cause for f in failures)


def test_failures_of_index_and_volumes_stand_in_the_same_list(tmp_path):
    paths = RunPaths(tmp_path)
    places = tmp_path / "index", paths.cache / "coarse", paths.cache / "fine"
    for folder, uid in zip(places, ("1.1", "1.2", "1.3"), strict=True):
        folder.mkdir(parents=True)
        (folder / "failures.json").write_text(json.dumps({uid: f"study {uid}: is gone"}))
    found = gather(paths, ("vertebra",), 5)
    assert [(f.stage, f.study_uid, f.model_fold) for f in found] == [
        ("index", "1.1", -1),
        ("coarse", "1.2", -1),
        ("fine", "1.3", -1),
    ]
    assert summary(found) == (
        "studies left out: index 1, coarse 1, fine 1"
        "\n  study 1.1: is gone\n  study 1.2: is gone\n  study 1.3: is gone"
    )
    assert summary([]) == ""

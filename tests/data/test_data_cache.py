"""Files of volumes: made once, made again where they do not fit, shipped, sharded."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scans import STEP, neck_hu, neck_labels, write_mask, write_scan
from test_data_volumes import levels_of

from cspine_kit.core.config import load_config
from cspine_kit.core.errors import DataError, Unfinished
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.room import clear_room, set_room
from cspine_kit.core.tables import check_table, read_table, write_table
from cspine_kit.data import stages
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.data.stages import run_coarse, run_fine, run_shards
from cspine_kit.data.volumes import cache as cache_room
from cspine_kit.data.volumes.cache import Cache
from cspine_kit.data.volumes.read import group_of, read_both
from cspine_kit.data.volumes.shards import finished, lay_in_shards
from cspine_kit.data.volumes.store import every_slice, mask_path, open_volume, write_volume

UIDS = ["1.2.1", "1.2.2"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="competition")
def _competition(tmp_path):
    for i, uid in enumerate(UIDS):
        write_scan(tmp_path / "comp" / "train_images" / uid, neck_hu(shift=(i, i)))
    write_mask(tmp_path / "comp" / "segmentations" / "1.2.2.nii", neck_labels())
    return Competition(tmp_path / "comp")


@pytest.fixture(name="config")
def _config(tmp_path):
    demo = load_config(ROOT / "configs" / "demo.yaml")
    volumes = demo.volumes
    return demo.model_copy(
        update={
            "competition": demo.competition.model_copy(update={"dir": tmp_path / "comp"}),
            "execution": demo.execution.model_copy(update={"jobs": 1}),
            "volumes": volumes.model_copy(
                update={
                    "coarse": volumes.coarse.model_copy(
                        update={"spacing_mm": 3.0, "field_mm": 110.0}
                    ),
                    "fine": volumes.fine.model_copy(
                        update={"spacing_mm": 1.2, "field_mm": 60.0, "margin_mm": 6.0}
                    ),
                }
            ),
            # The others see more of z than these small scans hold.
            "members": {"axial": demo.members["axial"].model_copy(update={"field_mm": 48.0})},
        }
    )


def slices_of(*uids) -> pd.DataFrame:
    z_mm = [100.0 - STEP * z for z in range(24)]
    return pd.concat(
        pd.DataFrame({"study_uid": uid, "slice_idx": range(24), "z_mm": z_mm}) for uid in uids
    )


def studies_of(*uids) -> pd.DataFrame:
    table = pd.DataFrame({"study_uid": uids, "split": "train", "n_slices": 24, "spacing_z": STEP})
    return table.assign(rows=96, cols=96, has_mask=[uid == "1.2.2" for uid in uids])


@pytest.fixture(name="paths")
def _paths(tmp_path, monkeypatch):
    """A run folder whose tables hold what volumes are made from."""
    paths = RunPaths(tmp_path / "run")
    tables = {"studies": studies_of(*UIDS), "slices": slices_of(*UIDS)}
    plain = read_table
    read = lambda path, name: tables[name] if name in tables else plain(path, name)  # noqa: E731
    monkeypatch.setattr(stages, "read_table", read)
    return paths


def levels_table(**changes: float) -> pd.DataFrame:
    levels = pd.concat(levels_of(2, **changes).assign(study_uid=uid) for uid in UIDS)
    levels = levels.assign(present=True, confidence=1.0, source="model")
    levels["center_z_mm"] = (levels["z_top_mm"] + levels["z_bottom_mm"]) / 2
    return levels


def never(*_, **__):
    raise AssertionError("read again")


def test_stored_volumes_are_the_kernels_and_are_kept(config, competition, paths, monkeypatch):
    run_coarse(config, paths)
    write_table(levels_table(), paths.table("levels"), "levels", "k")
    run_fine(config, paths)
    volumes, _ = read_both(competition.images("train", "1.2.2"), config.volumes, "1.2.2")
    coarse = volumes.coarse
    wide = volumes.fine
    rows = {
        name: read_table(paths.table(name), name).set_index("study_uid")
        for name in ["coarse", "fine"]
    }
    stored, _ = open_volume(paths.cache / "coarse" / "1.2.2.arrow")
    assert np.array_equal(every_slice(stored.voxels), coarse.voxels.array)
    assert np.array_equal(stored.z_mm, coarse.z_mm) and stored.box == coarse.box
    fine, _ = open_volume(paths.cache / "fine" / "1.2.2.arrow")
    y, x = (a - b for a, b in zip(fine.corner, wide.corner, strict=True))
    nz, ny, nx = fine.voxels.shape
    own = wide.voxels.array[fine.first_slice :, y:, x:][:nz, :ny, :nx]
    assert np.array_equal(every_slice(fine.voxels), own)
    assert nz < 24 and ny < wide.voxels.shape[1]
    for name, volume in (("coarse", stored), ("fine", fine)):
        row = rows[name].loc["1.2.2"]
        assert tuple(row[["nz", "ny", "nx"]]) == volume.voxels.shape
        assert row["has_mask"] and not rows[name].loc["1.2.1", "has_mask"]
        assert row["first_slice"] == volume.first_slice and row["stand_ins"] == 0
        assert len(set(np.unique(every_slice(volume.mask))) & set(range(1, 9))) > 5
    monkeypatch.setattr(cache_room, "read_coarse", never)
    monkeypatch.setattr(cache_room, "read_fine", never)
    for table in ("coarse", "fine"):
        paths.table(table).unlink()
    run_coarse(config, paths)
    run_fine(config, paths)
    for name, before in rows.items():
        after = read_table(paths.table(name), name).set_index("study_uid")
        pd.testing.assert_frame_equal(after, before)


@pytest.mark.parametrize("change", ["curve", "spacing", "files", "mask", "gone", "cut", "no mask"])
def test_what_does_not_fit_is_made_again(config, competition, paths, change):
    run_coarse(config, paths)
    before = read_table(paths.table("coarse"), "coarse").set_index("study_uid")
    file = paths.cache / "coarse" / "1.2.2.arrow"
    volumes = config.volumes
    if change == "curve":
        curve = ((-1000, 0), (0, 100), (2500, 255))
        config = config.model_copy(update={"volumes": volumes.model_copy(update={"curve": curve})})
    elif change == "spacing":
        grid = volumes.coarse.model_copy(update={"spacing_mm": 4.0})
        config = config.model_copy(update={"volumes": volumes.model_copy(update={"coarse": grid})})
    elif change == "files":
        write_scan(competition.images("train", "1.2.2"), neck_hu() + np.int16(40))
        paths.table("coarse").unlink()
    elif change == "mask":
        write_mask(competition.segmentation("1.2.2"), np.roll(neck_labels(), 1, axis=2))
        paths.table("coarse").unlink()
    elif change == "gone":
        file.unlink()
    elif change == "no mask":
        mask_path(file).unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    run_coarse(config, paths)
    after = read_table(paths.table("coarse"), "coarse").set_index("study_uid")
    same = after.loc["1.2.2"].equals(before.loc["1.2.2"])
    assert same == (change in ("gone", "cut", "no mask"))
    assert (after["checksum"]["1.2.1"] == before["checksum"]["1.2.1"]) == (
        change not in ("curve", "spacing")
    )


def test_touched_files_are_read_again_to_the_same_checksum(config, competition, paths):
    """A key is of voxels: a copied folder has other times and the same key."""
    run_coarse(config, paths)
    before = read_table(paths.table("coarse"), "coarse")
    folder = competition.images("train", "1.2.1")
    shutil.copytree(folder, folder.with_name("copy"), copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)
    paths.table("coarse").unlink()
    run_coarse(config, paths)
    pd.testing.assert_frame_equal(read_table(paths.table("coarse"), "coarse"), before)


@pytest.mark.parametrize(("moved", "recut"), [(3.0, False), (16.0, True)])
def test_fine_is_cut_again_only_where_a_needed_patch_leaves_it(
    config, competition, paths, moved, recut
):
    run_coarse(config, paths)
    write_table(levels_table(), paths.table("levels"), "levels", "k1")
    run_fine(config, paths)
    before = read_table(paths.table("fine"), "fine")
    write_table(levels_table(x_mm=72.0 + moved), paths.table("levels"), "levels", "k2")
    run_fine(config, paths)
    after = read_table(paths.table("fine"), "fine")
    assert (after["checksum"] != before["checksum"]).all() == recut
    assert after.equals(before) != recut


def test_a_study_without_levels_or_files_costs_itself(config, competition, paths, monkeypatch):
    run_coarse(config, paths)
    levels = levels_table()
    write_table(levels[levels["study_uid"] == "1.2.2"], paths.table("levels"), "levels", "k")
    run_fine(config, paths)
    assert list(read_table(paths.table("fine"), "fine")["study_uid"]) == ["1.2.2"]
    every = studies_of(*UIDS, "1.2.9")
    rows, failures = Cache.coarse(config, paths).build(
        every, slices_of(*UIDS, "1.2.9"), competition
    )
    assert list(failures) == ["1.2.9"] and len(check_table(rows, "coarse")) == 2


@pytest.mark.parametrize("reckoned", [True, False])
def test_volumes_without_room_are_left_for_another_time(config, competition, paths, reckoned):
    """Reckoned beforehand, or seen to be too large only when the first one is there."""
    grid = config.volumes.coarse
    one = 24 / group_of(STEP, grid.spacing_mm) * grid.side_px**2 / 1e9
    set_room(paths.cache, 1.05 * one)
    try:
        with pytest.raises(Unfinished, match="1 coarse volumes of 2 are left"):
            run_coarse(config, paths, most_gb=one if reckoned else None)
    finally:
        clear_room()
    assert list(finished("coarse", paths.cache / "coarse")) == ["1.2.1"]
    run_coarse(config, paths)
    assert list(read_table(paths.table("coarse"), "coarse")["study_uid"]) == UIDS


def test_an_undecodable_slice_is_shown_by_its_neighbor(config, competition, paths):
    folder = competition.images("train", "1.2.1")
    volumes, _ = read_both(folder, config.volumes)
    whole = volumes.coarse
    path = folder / "11.dcm"
    path.write_bytes(path.read_bytes()[:-5])
    run_coarse(config, paths)
    table = read_table(paths.table("coarse"), "coarse").set_index("study_uid")
    assert table["stand_ins"].to_dict() == {"1.2.1": 1, "1.2.2": 0}
    stored, _ = open_volume(paths.cache / "coarse" / "1.2.1.arrow")
    voxels, kept = every_slice(stored.voxels), np.delete(np.arange(24), 10)
    assert np.array_equal(voxels[kept], whole.voxels.array[kept])
    assert any(np.array_equal(voxels[10], whole.voxels.array[z]) for z in (9, 11))
    assert np.array_equal(stored.z_mm, whole.z_mm)


def test_a_full_disk_is_told_before_anything_is_read(config, competition, paths, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(cache_room.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(cache_room, "read_coarse", never)
    with pytest.raises(DataError, match=r"coarse volumes need about .* GB are free"):
        run_coarse(config, paths)


def test_shards_are_used_without_the_scans(tmp_path, config, competition, paths, monkeypatch):
    """Volumes laid in shards, carried elsewhere, serve a run that has tables alone."""
    run_coarse(config, paths)
    write_table(levels_table(), paths.table("levels"), "levels", "k")
    run_fine(config, paths)
    own = [p.stat().st_size for p in (paths.cache / "fine").glob("1.2.2*.arrow")]
    most = {"coarse": 1.0, "fine": 1e-9 * (sum(own) + 10)}
    before = {name: read_table(paths.table(name), name) for name in ("coarse", "fine")}
    monkeypatch.setattr(
        stages, "lay_in_shards", lambda name, folder, _: lay_in_shards(name, folder, most[name])
    )
    run_shards(config, paths, 1.0)
    assert {p.name for p in (paths.cache / "fine").glob("shard_*")} == {"shard_000", "shard_001"}
    table = read_table(paths.table("fine"), "fine")
    assert [p.split("/")[-2] for p in table["path"]] == ["shard_000", "shard_001"]
    assert "shard_001/1.2.2.mask.arrow" in str(mask_path(open_volume_path(table, "1.2.2")))
    monkeypatch.setattr(cache_room, "read_coarse", never)
    monkeypatch.setattr(cache_room, "read_fine", never)
    run_fine(config, paths)  # nothing to do
    shutil.rmtree(competition.root)
    shutil.copytree(paths.cache, tmp_path / "kaggle" / "input")
    shutil.rmtree(paths.cache)
    shipped = config.volumes.model_copy(update={"shipped": (tmp_path / "kaggle",)})
    config = config.model_copy(update={"volumes": shipped})
    run_coarse(config, paths)
    run_fine(config, paths)
    for name, rows in before.items():
        after = read_table(paths.table(name), name)
        assert after["path"].str.startswith(str(tmp_path / "kaggle")).all()
        pd.testing.assert_frame_equal(after.drop(columns="path"), rows.drop(columns="path"))


def open_volume_path(table: pd.DataFrame, uid: str):
    return Path(table.set_index("study_uid").loc[uid, "path"])


def test_shards_are_filled_in_order_and_may_change_size(tmp_path):
    folder = tmp_path / "fine"
    folder.mkdir()
    for k in range(6):
        (folder / f"1.{k}.arrow").write_bytes(b"x" * 400)
        if k % 2:
            (folder / f"1.{k}.mask.arrow").write_bytes(b"x" * 100)
    lay_in_shards("fine", folder, 1e-6)
    assert [len(list(s.glob("*.arrow"))) for s in sorted(folder.iterdir())] == [3, 3, 3]
    assert all(sum(f.stat().st_size for f in s.iterdir()) <= 1000 for s in folder.iterdir())
    moved = lay_in_shards("fine", folder, 1.0)
    assert {path.parent.name for path in moved.values()} == {"shard_000"}
    assert finished("fine", folder) == moved and len(list(folder.iterdir())) == 1
    with pytest.raises(DataError, match="more than a shard"):
        lay_in_shards("fine", folder, 1e-7)
    with pytest.raises(DataError, match="no folder"):
        finished("fine", folder, tmp_path / "absent")


def test_real_ct_volumes_are_small(real_data, tmp_path):
    """What is told of the disk beforehand holds on a real scan."""
    demo = load_config(ROOT / "configs" / "base.yaml")
    study = read_study(real_data / "head_neck_ct")
    volumes, _ = read_both(real_data / "head_neck_ct", demo.volumes)
    coarse = volumes.coarse
    write_volume(coarse, tmp_path / "c.arrow", {})
    size = (tmp_path / "c.arrow").stat().st_size
    assert size < cache_room.COMPRESSED * every_slice(coarse.voxels).size
    assert coarse.spacing_mm[1:] == pytest.approx((1.0, 1.0)) and len(study.hu) == 90

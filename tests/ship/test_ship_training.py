"""Sessions of a training: cut and continued to the same bits, and nothing foreign believed."""

import json
import os

import pandas as pd
import pytest
from run_folder import tiny_config
from training_sessions import NOTHING, Place, first_output, two_steps

from cspine_kit.core.deadline import VARIABLE
from cspine_kit.core.errors import ArtifactError, ConfigError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.room import VARIABLE as VARIABLE_ROOM
from cspine_kit.core.room import size_gb
from cspine_kit.core.runs import write_json
from cspine_kit.data.stages import prepare
from cspine_kit.ship.training import work as working
from cspine_kit.ship.training.dataset import read_dataset, write_dataset
from cspine_kit.ship.training.names import (
    check_training,
    session_settings,
    training_ref,
)
from cspine_kit.ship.training.output import leave, read_report, sessions, take
from cspine_kit.vision.oof.run import missing, room_for, run_oof


@pytest.fixture(scope="module", name="config")
def _config():
    return two_steps()


@pytest.fixture(scope="module", name="whole")
def _whole(config, tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("whole"), config)
    place.cached(6)
    report = place.session(1.0)
    assert (report.next, report.fault, report.number, report.kind) == (None, "", 2, "train")
    return place


def weights_of(place: Place) -> dict[str, bytes]:
    """The newest weights of every fold model."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for out in place.outputs
        for path in out.rglob("weights.safetensors")
    }


@pytest.mark.slow
def test_a_training_cut_by_its_time_ends_in_the_same_weights(config, whole, tmp_path):
    cut = Place(tmp_path, config)
    cut.cached(6)
    left = "time is up: 2 fold models are left, vertebra fold 0 among them"
    step = cut.session(0.0)
    assert (step.next, step.left) == ("train", left)
    assert "models/vertebra/fold_0/checkpoint.pt" in step.files and weights_of(cut) == {}
    step = cut.session(0.0)  # the second step, and the first study's rows
    assert (step.next, step.left) == ("train", left)
    rows = pd.read_parquet(cut.outputs[-1] / "oof/demo/models/vertebra/fold_0/slices.parquet")
    assert rows["study_uid"].nunique() == 1 and len(weights_of(cut)) == 1
    step = cut.session(1.0)
    assert step.next is None and not step.fault and VARIABLE not in os.environ
    mine, theirs = weights_of(cut), weights_of(whole)
    assert len(theirs) == 4 and mine == theirs
    tables = [p.outputs[-1] / "oof/demo/tables/oof_slices.parquet" for p in (cut, whole)]
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_a_session_leaves_what_it_made_and_nothing_else(whole):
    first, second = whole.outputs
    report = read_report(second / "session.json")
    assert not [path for path in second.rglob("*") if path.is_symlink()]
    assert "tables/studies.parquet" not in report.files and report.volumes == 0
    assert "tables/oof_slices.parquet.key" in report.files
    assert read_report(first / "session.json").volumes == 12
    run = second / "oof" / "demo"
    there = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert set(report.files) == there


def test_what_was_fetched_is_all_that_make_oof_wants(config, whole, tmp_path):
    """Tables and models alone, without scans and volumes: nothing is left to do."""
    paths = RunPaths(tmp_path / "oof" / "demo")
    for k, out in enumerate(whole.outputs):
        copied = tmp_path / f"fetched{k}"
        working.shutil.copytree(out, copied)
        count = take(copied, read_report(copied / "session.json"), paths)
        assert count > 4
    assert not list(paths.root.rglob("*.arrow")) and not list(paths.root.rglob("*.pt"))
    before = {path: path.stat().st_mtime_ns for path in paths.root.rglob("*") if path.is_file()}
    prepare(config, paths)
    assert missing(config, paths, ["vertebra", *config.members]) == {}
    assert run_oof(config, paths) == []
    after = {path: path.stat().st_mtime_ns for path in paths.root.rglob("*") if path.is_file()}
    assert before == after


def test_a_run_that_lacks_volumes_asks_for_a_cache_session(config, tmp_path):
    place = Place(tmp_path, config)
    place.cached(4)
    for path in (place.outputs[0] / "oof/demo/cache/fine").iterdir():
        path.unlink()
    report = place.session(1.0)
    assert report.next == "cache" and report.left == "4 fine volumes of 4 are left"
    assert not report.fault and len(list(place.outputs[1].rglob("weights.safetensors"))) == 2


@pytest.mark.slow
def test_sessions_with_little_room_train_one_fold_model_each_to_the_same_weights(
    config, whole, tmp_path
):
    """Twice a checkpoint and the weights of one network fit, a second one's beside them do not."""
    place = Place(tmp_path, config)
    place.cached(6)
    little = 1.05 * room_for(config, ["vertebra"], jobs=1)
    reports = [place.session(1.0, output_gb=little) for _ in range(4)]
    assert [report.next for report in reports] == ["train", "train", "train", None]
    why = "there is no room for more"
    assert reports[0].left == f"{why}: 1 fold models are left, vertebra fold 1 among them"
    assert reports[1].left == f"{why}: 2 fold models are left, a fold 0 among them"
    assert [size_gb(out) < little for out in place.outputs[1:]] == [True] * 4
    assert not any(report.fault for report in reports) and VARIABLE_ROOM not in os.environ
    assert weights_of(place) == weights_of(whole)


def test_an_error_costs_the_session_and_not_what_it_did(config, tmp_path, monkeypatch):
    place = Place(tmp_path, config)
    place.cached(4)

    def broken(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("cspine_kit.vision.oof.run.run_oof", broken)
    report = place.session(1.0)
    assert report.fault == "RuntimeError: the disk is full" and report.next is None
    assert len(list(place.outputs[1].rglob("weights.safetensors"))) == 2
    monkeypatch.undo()
    assert place.session(1.0).next is None
    assert len(list(place.outputs[2].rglob("weights.safetensors"))) == 2


def test_a_changed_output_is_not_mounted(config, tmp_path):
    place = Place(tmp_path, config)
    place.cached(4)
    (place.outputs[0] / "oof/demo/folds.csv").write_text("study_uid,fold\n")
    with pytest.raises(ArtifactError, match=r"folds\.csv is missing, or not what session"):
        place.session(1.0)


@pytest.mark.parametrize(
    "place", ["../outside.json", "/etc/x.json", "models/../../x.json", "a//b.json", ".hidden.json"]
)
def test_a_place_outside_is_refused(tmp_path, place):
    entry = {"sha256": "0" * 64, "bytes": 1}
    write_json(tmp_path / "session.json", NOTHING.model_dump() | {"files": {place: entry}})
    with pytest.raises(ArtifactError, match="is no place in a run folder"):
        read_report(tmp_path / "session.json")


def test_only_plain_data_is_taken_and_only_whole(tmp_path):
    folder, paths = tmp_path / "fetched", RunPaths(tmp_path / "run")
    report = first_output(folder, 2)
    (folder / "oof/demo/models").mkdir()
    (folder / "oof/demo/models/checkpoint.pt").write_bytes(b"pickled")
    (folder / "oof/demo/more.json").write_text("{}")
    report = leave(RunPaths(folder / "oof" / "demo"), report, folder)
    assert {"models/checkpoint.pt", "more.json"} < set(report.files)
    studies = folder / "oof/demo/tables/studies.parquet"
    kept = studies.read_bytes()
    studies.write_bytes(kept[:-1])
    with pytest.raises(ArtifactError, match=r"studies\.parquet is missing, or not"):
        take(folder, report, paths)
    assert not paths.root.exists()
    studies.write_bytes(kept)
    take(folder, report, paths)
    assert (paths.root / "more.json").exists() and paths.table("studies").read_bytes() == kept
    assert not list(paths.root.rglob("*.pt"))


def test_sessions_of_another_run_are_not_taken_up(tmp_path):
    first_output(tmp_path / "a", 2)
    first_output(tmp_path / "b", 2)
    report = json.loads((tmp_path / "b" / "session.json").read_text())
    write_json(tmp_path / "b" / "session.json", report | {"name": "other"})
    [session] = sessions(tmp_path, "demo")
    assert session.folder == tmp_path / "a"


def test_the_dataset_holds_what_the_config_names(config, tmp_path):
    start, folds = tmp_path / "mine.safetensors", tmp_path / "mine.csv"
    start.write_bytes(b"weights")
    folds.write_text("study_uid,fold\n1.2.1,0\n")
    member = config.members["a"].model_copy(update={"weights": start})
    named = config.model_copy(
        update={
            "members": {**config.members, "a": member},
            "folds": config.folds.model_copy(update={"file": folds}),
        }
    )
    parcel = write_dataset(named, tmp_path / "d", wheels=[], pretrained={"timm/x": start}, hours=2)
    assert {"folds.csv", "start__a.safetensors", "hub__timm__x.safetensors"} < set(parcel.sizes)
    text = (parcel.folder / "config.yaml").read_text()
    assert str(tmp_path) not in text and "no-scans-here" in text
    manifest = read_dataset(parcel.folder)
    assert manifest["hub"] == {"hub__timm__x.safetensors": "timm/x"} and manifest["hours"] == 2
    stamp = (parcel.folder / "manifest.json").stat().st_mtime_ns
    again = write_dataset(named, tmp_path / "d", wheels=[], pretrained={"timm/x": start}, hours=2)
    assert again == parcel and (parcel.folder / "manifest.json").stat().st_mtime_ns == stamp
    (parcel.folder / "folds.csv").write_text("study_uid,fold\n1.2.1,1\n")
    with pytest.raises(ArtifactError, match=r"folds\.csv is not what its hash says"):
        read_dataset(parcel.folder)


def test_settings_say_what_each_session_sees(config):
    config = config.model_copy(
        update={"bundle": config.bundle.model_copy(update={"owner": "me"}), "name": "my_run"}
    )
    cache = session_settings(config, "cache", 1, [])
    train = session_settings(config, "train", 2, [cache["id"]])
    assert training_ref(config) == "me/cspine-my-run-training"
    assert cache["id"] == "me/cspine-my-run-cache-1" and train["title"] == "cspine my run train 2"
    for settings in (cache, train):
        assert settings["is_private"] and settings["enable_internet"] is False
        assert settings["docker_image_pinning_type"] == "original"
        assert settings["dataset_sources"] == ["me/cspine-my-run-training"]
    assert cache["competition_sources"] == [config.competition.slug] and not cache["enable_gpu"]
    assert "machine_shape" not in cache and cache["kernel_sources"] == []
    assert train["machine_shape"] == "NvidiaTeslaT4" and train["enable_gpu"]
    assert train["competition_sources"] == [] and train["kernel_sources"] == [cache["id"]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phantom": tiny_config().competition.phantom}, "draws its own competition"),
        ({"extra": ("mine",)}, r"competition\.extra: mine is not on Kaggle"),
        ({"dir": "here"}, r"the scans lie here, in .*here"),
    ],
)
def test_what_cannot_be_trained_there_is_refused(config, tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "train_images").mkdir(parents=True)
    changes = {k: tmp_path / v if k == "dir" else v for k, v in changes.items()}
    competition = config.competition.model_copy(update=changes)
    with pytest.raises(ConfigError, match=said):
        check_training(config.model_copy(update={"competition": competition}))
    check_training(config)

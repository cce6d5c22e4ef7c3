"""Trainings with the real client against a service on loopback: sessions sent once, and fetched."""

import hashlib
import json

import pytest
from finished_run import ROOT, make_config
from kaggle_server import CUT_AFTER, Fault, KaggleServer, lone_server

from cspine_kit.cli import main
from cspine_kit.core.config import resolved_yaml
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import read_json, write_json
from cspine_kit.ship.kaggle.process import ServiceError, Waits
from cspine_kit.ship.training import push as pushing
from cspine_kit.ship.training.dataset import write_dataset
from cspine_kit.ship.training.push import dry_run, push_training

FAST = Waits(first_s=0.02, most_s=0.05, attempts=2, call_s=30, dataset_s=20, queue_s=20)
DATASET = "me/cspine-tiny-training"


def entry(data: bytes) -> dict:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


class Sessions:
    """What each session in turn leaves: changes to a report, files by place, and what else."""

    def __init__(self, server: KaggleServer, *planned: dict) -> None:
        self.server, self.planned, self.saved = server, list(planned), []

    def __call__(self, asked: dict) -> dict[str, bytes]:
        self.saved.append(asked)
        plan = self.planned[len(self.saved) - 1]
        files = plan.get("files", {})
        [dataset] = asked["datasetDataSources"]
        manifest = self.server.datasets[dataset][-1]["manifest.json"]
        report = {
            "format": "cspine_kit session 1",
            "name": "tiny",
            "kind": "cache" if "-cache-" in asked["slug"] else "train",
            "number": len(self.saved),
            "dataset": hashlib.sha256(manifest).hexdigest(),
            "next": None,
            "left": "",
            "fault": "",
            "hours": 1.5,
            "volumes": 0,
            "files": {place: entry(data) for place, data in files.items()},
        }
        report |= plan.get("report", {})
        inside = {f"oof/tiny/{place}": data for place, data in files.items()}
        return {**plan.get("others", {}), "session.json": json.dumps(report).encode(), **inside}


TABLES = {f"tables/t{k}.parquet": b"rows %d" % k for k in range(30)}
CACHE = {
    "files": {**TABLES, "tables/t0.parquet.key": b"k\n", "folds.csv": b"study_uid,fold\n"},
    "report": {"next": "train", "left": "8 fold models", "volumes": 9},
    "others": {f"oof/tiny/cache/coarse/1.2.{k}.arrow": b"voxels" for k in range(25)},
}
CUT = {
    "files": {
        "models/vertebra/fold_0/checkpoint.pt": b"half",
        "models/vertebra/fold_0/history.csv": b"epoch\n1\n",
        "index/studies/1.2.3.json": b"{}",
    },
    "report": {"next": "train", "left": "8 fold models, vertebra fold 0 among them"},
}
WHOLE = {"files": {"models/vertebra/fold_0/weights.safetensors": b"whole"}}


@pytest.fixture
def server(tmp_path, monkeypatch):
    with lone_server(tmp_path / "home", monkeypatch) as service:
        yield service
        assert not list(tmp_path.rglob("outside.txt"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The config's networks are looked at in other tests."""
    monkeypatch.setattr("cspine_kit.vision.check.check_config", lambda config: None)
    monkeypatch.setattr(pushing, "check_room", lambda config: None)


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    return RunPaths(tmp_path / "oof" / "tiny")


@pytest.fixture
def uploaded(server, paths) -> RunPaths:
    """A training whose dataset is ready, so that only sessions are to be sent."""
    parcel = write_dataset(make_config(), paths.training, wheels=[], pretrained={})
    server.datasets[DATASET] = [{n: (parcel.folder / n).read_bytes() for n in parcel.sizes}]
    code = {"ref": DATASET, "digest": parcel.digest, "stage": "ready", "version": 1}
    write_json(paths.root / "push_train.json", {"code": code})
    return paths


def go(paths: RunPaths, config=None) -> str:
    config = config or make_config()
    return push_training(config, paths, ROOT / "kernels", wheels=[], waits=FAST)


def test_a_training_goes_on_from_session_to_session(server, paths, tmp_path):
    server.session = ("RUNNING", "COMPLETE")
    sessions = server.work = Sessions(server, CACHE, CUT, WHOLE)
    told = go(paths)
    slugs = ["me/cspine-tiny-cache-1", "me/cspine-tiny-train-2", "me/cspine-tiny-train-3"]
    assert [asked["slug"] for asked in sessions.saved] == slugs
    for k, asked in enumerate(sessions.saved):
        kind = "train" if k else "cache"
        assert asked["text"] == (ROOT / "kernels" / kind / f"{kind}.py").read_text()
        assert asked["datasetDataSources"] == [DATASET]
        assert asked.get("kernelDataSources", []) == slugs[:k]
        assert asked["isPrivate"] and asked["enableInternet"] is False
        assert asked["dockerImagePinningType"] == "original"
    cache, train, _ = sessions.saved
    assert cache["competitionDataSources"] == ["rsna"] and cache["enableGpu"] is False
    assert "machineShape" not in cache and train["machineShape"] == "NvidiaTeslaT4"
    assert train["enableGpu"] and "competitionDataSources" not in train
    assert "8 fold models, vertebra fold 0 among them" in told and "warning" not in told
    assert "3 sessions, 3.0 h of them with GPUs" in told
    made = {p.relative_to(paths.root).as_posix() for p in paths.root.rglob("*") if p.is_file()}
    kept = {"models/vertebra/fold_0/weights.safetensors", "models/vertebra/fold_0/history.csv"}
    assert kept | set(CACHE["files"]) < made
    assert not [name for name in made if name.endswith((".pt", ".arrow"))]
    fetched = {asked["name"] for rpc, asked in server.requests if rpc == "GET"}
    assert not [name for name in fetched if name.endswith((".pt", ".arrow"))]
    assert "oof/tiny/index/studies/1.2.3.json" not in fetched

    [files] = server.datasets[DATASET]
    assert set(files) == {"manifest.json", "config.yaml", "cspine_boot.py"}
    assert str(tmp_path).encode() not in b"".join(files.values())
    manifest = json.loads(files["manifest.json"])
    assert (manifest["hours"], manifest["output_gb"]) == (11.0, 18.0)
    assert manifest["name"] == "tiny"
    before = len(server.requests)
    assert "nothing is left to train" in go(paths)
    assert len(server.requests) == before
    other = make_config().model_copy(update={"seed": 7})
    sessions.planned.append({"report": {"next": None}})
    go(paths, other)
    assert len(server.datasets[DATASET]) == 2
    assert sessions.saved[-1]["slug"] == "me/cspine-tiny-cache-4"
    assert sessions.saved[-1]["kernelDataSources"] == slugs


@pytest.mark.slow
def test_a_save_without_an_answer_is_not_sent_again(server, uploaded):
    server.work = Sessions(server, CACHE, WHOLE)
    server.faults["SaveKernel"] = Fault(CUT_AFTER)
    server.session = ("RUNNING", "RUNNING", "COMPLETE")
    go(uploaded)
    assert server.count("SaveKernel") == 2


@pytest.mark.slow
def test_an_output_that_arrives_damaged_is_fetched_anew_and_nothing_of_it_kept(server, uploaded):
    server.work = Sessions(server, CACHE, WHOLE)
    go_on = server.outputs

    def damaged(ref: str) -> dict[str, bytes]:  # the body of a 404, as the client stores it
        return {**go_on(ref), "oof/tiny/folds.csv": b"<html>Not found</html>"}

    server.outputs = damaged
    with pytest.raises(ServiceError, match=r"did not arrive as it was written: .*folds\.csv"):
        go(uploaded)
    assert not uploaded.folds.exists() and not (uploaded.root / "tables").exists()
    server.outputs = go_on
    other = make_config().model_copy(update={"seed": 7})  # what ran before is taken home first
    go(uploaded, other)
    assert server.count("SaveKernel") == 2 and uploaded.folds.exists()
    assert len(server.datasets[DATASET]) == 2


@pytest.mark.slow
def test_a_session_with_an_error_keeps_what_it_did_and_is_sent_again(server, uploaded):
    broken = {**CUT, "report": {"fault": "DataError: the loss is nan"}}
    sessions = server.work = Sessions(server, CACHE, broken, WHOLE)
    with pytest.raises(ServiceError, match="ended with an error: DataError: the loss is nan"):
        go(uploaded)
    assert (uploaded.model("vertebra", 0) / "history.csv").exists()
    go(uploaded)
    assert sessions.saved[-1]["slug"] == "me/cspine-tiny-train-3"
    assert "me/cspine-tiny-train-2" in sessions.saved[-1]["kernelDataSources"]


@pytest.mark.slow
def test_a_failed_session_is_told_with_its_log_and_sent_again(server, uploaded):
    sessions = server.work = Sessions(server, {}, {"report": {"next": None}})
    server.session, server.failure = ("ERROR",), "the image is gone"
    with pytest.raises(ServiceError, match="ended with ERROR: the image is gone"):
        go(uploaded)
    server.session = ("COMPLETE",)
    server.shown = "COMPLETE"
    go(uploaded)
    assert [asked["slug"] for asked in sessions.saved] == ["me/cspine-tiny-cache-1"] * 2
    assert read_json(uploaded.root / "push_train.json")["done"] == ["me/cspine-tiny-cache-1"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "other"}, "is of cache session 1 of 'other'"),
        ({"files": {"../../x.json": entry(b"")}}, "is no place in a run folder"),
        ({"next": "anything"}, "is no report of a session"),
    ],
)
def test_a_foreign_report_is_refused(server, uploaded, change, said):
    server.work = Sessions(server, {"report": change})
    with pytest.raises(ServiceError, match=said):
        go(uploaded)


@pytest.mark.slow
def test_sessions_that_make_nothing_come_to_an_end(server, uploaded):
    idle = {"report": {"next": "cache", "left": "9 volumes"}}
    server.work = Sessions(server, *[idle] * 5)
    with pytest.raises(ServiceError, match="3 sessions in a row made nothing, and 9 volumes"):
        go(uploaded)
    assert server.count("SaveKernel") == 3


def test_a_dry_run_shows_the_next_session_and_contacts_nothing(
    server, paths, tmp_path, monkeypatch, capsys
):
    text = dry_run(make_config(), paths, wheels=[])
    assert f"dataset {DATASET}, 3 files" in text and '"me/cspine-tiny-cache-1"' in text
    assert "nothing was sent" in text and "would be refused" not in text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(resolved_yaml(make_config()))
    for name in ("fill_wheelhouse", "check_wheels"):
        monkeypatch.setattr(pushing, name, lambda *_: None)
    assert main(["push", "--config", "tiny.yaml", "--train", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "GPU h, assuming" in text and "h of sessions with 2 T4s" in text
    assert main(["push", "--config", "tiny.yaml", "--train", "--submit"]) == 1
    assert "--submit would say nothing beside --train" in capsys.readouterr().err
    assert server.requests == []
    nobody = make_config(owner=None)
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    assert "a push would be refused: bundle.owner" in dry_run(nobody, paths, wheels=[])


def test_a_phantom_is_not_sent(paths):
    config = make_config()
    phantom = config.competition.model_copy(update={"phantom": True})
    with pytest.raises(ConfigError, match="draws its own competition"):
        go(paths, config.model_copy(update={"competition": phantom}))

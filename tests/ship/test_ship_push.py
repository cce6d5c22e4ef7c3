"""Pushes with the real client against a service on loopback: what is sent, once, whatever fails."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from finished_run import Run, make_config, make_run
from kaggle_server import CUT_AFTER, CUT_BEFORE, KEY, USER, Fault, KaggleServer, lone_server

from cspine_kit.cli import main
from cspine_kit.core.config import resolved_yaml
from cspine_kit.core.errors import ArtifactError, ConfigError, SubmissionError
from cspine_kit.core.runs import file_hash, read_json, write_json
from cspine_kit.ship.bundle.build import build_bundle
from cspine_kit.ship.kaggle.output import check_output
from cspine_kit.ship.kaggle.parcels import write_parcels
from cspine_kit.ship.kaggle.process import ClientProcess, NoAnswer, ServiceError, Waits
from cspine_kit.ship.kaggle.push import dry_run, fetch_scores, push

FAST = Waits(first_s=0.02, most_s=0.05, attempts=2, call_s=30, dataset_s=20, queue_s=20)
DATASET, KERNEL = "me/cspine-kit-tiny-bundle", "me/cspine-kit-tiny-submit"
WEIGHTS = "me/cspine-kit-tiny-weights"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, chain) -> Run:
    run = make_run(tmp_path_factory.mktemp("finished"), chain)
    build_bundle(run.config, run.paths, run.paths.bundle, proof=run.proof)
    return run


@pytest.fixture
def run(finished, tmp_path) -> Run:
    """A bundle of its own for each test, beside a kernel folder."""
    paths = type(finished.paths)(tmp_path / "oof" / "tiny")
    shutil.copytree(finished.paths.bundle, paths.bundle)
    shutil.copytree(finished.kernel, tmp_path / "submit")
    return Run(finished.config, paths, tmp_path / "submit", finished.proof)


@pytest.fixture
def server(tmp_path, monkeypatch):
    with lone_server(tmp_path / "home", monkeypatch) as service:
        yield service


@pytest.fixture
def uploaded(run, server) -> Run:
    """A run whose bundle is uploaded and ready, so that only the kernel is to be pushed."""
    state = {}
    for parcel in write_parcels(run.config, run.paths.bundle, run.paths.upload):
        server.datasets[parcel.ref] = [{n: (parcel.folder / n).read_bytes() for n in parcel.sizes}]
        stage = {"ref": parcel.ref, "digest": parcel.digest, "stage": "ready", "version": 1}
        state[parcel.part] = stage
    write_json(run.paths.root / "push.json", state)
    return run


@pytest.fixture
def only_upload(monkeypatch):
    """Pushes end when the dataset is ready."""
    monkeypatch.setattr("cspine_kit.ship.kaggle.push.run_session", lambda push: None)


def manifest_of(run: Run) -> str:
    return file_hash(run.paths.bundle / "manifest.json")


def go(run: Run, **options) -> str:
    return push(run.config, run.paths, run.kernel, waits=FAST, **options).told


def state_of(run: Run) -> dict:
    return read_json(run.paths.root / "push.json")


def test_a_push_brings_everything_there_and_the_output_back_once(run, server, tmp_path):
    server.ready_after, server.session = 3, ("QUEUED", "RUNNING", "COMPLETE")
    told = go(run, submitting=True, message="first")
    sent = {p.name: p.read_bytes() for p in run.paths.bundle.iterdir()}
    heavy = {name: sent.pop(name) for name in list(sent) if name.endswith("weights.safetensors")}
    assert server.datasets == {DATASET: [sent], WEIGHTS: [heavy]}
    assert len(heavy) == (1 + len(run.config.members)) * run.config.folds.n
    assert sum(map(len, sent.values())) < sum(map(len, heavy.values()))
    [kernel] = server.kernels[KERNEL]
    assert kernel["text"] == (run.kernel / "submit.py").read_text()
    assert kernel["isPrivate"] and kernel["enableGpu"] and not kernel["enableInternet"]
    assert kernel["machineShape"] == "NvidiaTeslaT4"
    assert kernel["datasetDataSources"] == [DATASET, WEIGHTS]
    assert kernel["dockerImagePinningType"] == "original"
    assert kernel["competitionDataSources"] == ["rsna"]
    output = run.paths.root / "push" / "output"
    assert (output / "submission.csv").read_bytes() == server.submission
    assert not list(tmp_path.rglob("outside.txt"))
    [submission] = server.submissions
    assert (submission["kernelVersion"], submission["fileName"]) == (1, "submission.csv")
    assert submission["submissionDescription"].startswith("first [v1 bundle ")
    assert "2 valid rows" in told and "sources {'priors': 1}" in told and "warning" not in told
    assert {s["stage"] for s in state_of(run).values()} == {"ready", "done"}

    before = len(server.requests)
    assert "already" in go(run, submitting=True, message="first")
    changed = next(run.paths.bundle.glob("*weights.safetensors"))
    changed.write_bytes(b"other")
    with pytest.raises(ArtifactError, match="not what the manifest's hash says"):
        go(run)
    assert len(server.requests) == before


def test_other_code_becomes_a_new_version_and_the_weights_stay(uploaded, server):
    manifest = read_json(uploaded.paths.bundle / "manifest.json")
    for name in ("manifest.json", "manifest.json.copy"):
        write_json(uploaded.paths.bundle / name, manifest | {"kit": "other"})
    told = go(uploaded, message="more folds")
    assert (len(server.datasets[DATASET]), len(server.datasets[WEIGHTS])) == (2, 1)
    asked = next(a for rpc, a in server.requests if rpc == "CreateDatasetVersion")
    assert asked["body"]["versionNotes"] == f"more folds [code {manifest_of(uploaded)[:12]}]"
    assert "is ready (version 2)" in told and "wrote 2 valid rows" in told


def test_a_refused_kernel_is_an_error_although_the_client_ends_with_0(uploaded, server):
    refused = "Maximum batch GPU session count of 2 reached"
    server.faults["SaveKernel"] = Fault((200, {"error": refused}))
    with pytest.raises(ServiceError, match=refused):
        go(uploaded)


def test_a_kernel_saved_without_its_dataset_is_an_error(uploaded, server):
    answer = {"url": "u", "versionNumber": 1, "invalidDatasetSources": [DATASET]}
    server.faults["SaveKernel"] = Fault((200, answer))
    with pytest.raises(ServiceError, match="not valid dataset sources"):
        go(uploaded)


@pytest.mark.slow
def test_a_file_that_did_not_arrive_is_sent_again_in_a_version(run, server, only_upload):
    server.faults["PUT priors.json"] = Fault((400, {}))
    go(run)
    *partial, whole = server.datasets[DATASET]
    assert "priors.json" in whole
    # kaggle 2.2.4 makes a dataset without the file, 2.2.5 makes none.
    assert [set(whole) - set(made) for made in partial] == (
        [{"priors.json"}] if version("kaggle") == "2.2.4" else []
    )


@pytest.mark.slow
def test_a_dataset_that_never_gets_whole_stops_before_the_kernel(run, server):
    server.faults["PUT priors.json"] = Fault((400, {}), times=10)
    with pytest.raises(ServiceError, match=r"not complete after 2 attempts; missing: priors\.json"):
        go(run)
    assert server.count("SaveKernel") == 0


def test_wrong_credentials_are_named_and_not_shown(run, server, monkeypatch, caplog):
    wrong = "feedfacefeedfacefeedfacefeedface"
    monkeypatch.setenv("KAGGLE_KEY", wrong)
    with pytest.raises(ServiceError, match="refused the credentials") as error:
        go(run)
    written = [p.read_text() for p in run.paths.root.glob("push*/**/*") if p.is_file()]
    assert all(wrong not in text for text in [str(error.value), caplog.text, *written])
    assert server.datasets == {} and len(server.requests) == 1


@pytest.mark.slow
def test_a_dataset_that_is_not_ready_in_time_is_waited_for_by_the_next_push(
    run, server, only_upload
):
    server.ready_after = 10**6
    impatient = Waits(first_s=0.02, attempts=2, call_s=30, dataset_s=0.1)
    with pytest.raises(ServiceError, match=r"not ready after 0 s \(last: blobs_received"):
        push(run.config, run.paths, run.kernel, waits=impatient)
    server.waiting = server.ready_after = 0
    go(run)
    assert len(server.datasets[DATASET]) == 1


def test_a_failed_session_gives_its_message_and_log_and_may_be_pushed_again(uploaded, server):
    server.session, server.failure = ("RUNNING", "ERROR"), "Your notebook tried to allocate 40 GB"
    with pytest.raises(ServiceError, match=r"(?s)ended with ERROR: .*allocate 40 GB.*bundle mani"):
        go(uploaded)
    assert state_of(uploaded)["kernel"]["stage"] == "failed"
    server.session, server.stale_after = ("COMPLETE",), 1
    assert "version 2 wrote" in go(uploaded)


def test_the_output_must_be_of_this_bundle_and_valid(uploaded, server):
    server.submission = b"row_id,fractured\n1.2.3_C1,1.5\n"
    manifest = server.datasets[DATASET][0]["manifest.json"]
    server.datasets[DATASET][0]["manifest.json"] = b"older"
    with pytest.raises(ServiceError, match="ran on another bundle"):
        go(uploaded)
    server.datasets[DATASET][0]["manifest.json"] = manifest
    with pytest.raises(SubmissionError, match=r"1 rows outside \[0, 1\]: 1\.2\.3_C1"):
        go(uploaded)
    assert server.count("SaveKernel") == 1


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([{"event": "models_unusable", "cause": "no GPU"}], "models_unusable: no GPU"),
        (
            [{"event": "proof", "ok": False, "faults": ["device_lost cuda:0: no kernel image"]}],
            "the proof failed: .*no kernel image",
        ),
        ([{"event": "end", "sources": {"priors": 3}}], "nothing but priors, and no proof"),
        ([{"event": "end", "sources": {"header": 0}}], "nothing but priors, and no proof"),
        ([{"event": "end"}], "nothing but priors, and no proof"),
        ([{"event": "end", "sources": {"priors": 2, "image": 1}}], None),
        ([{"event": "end", "sources": {"priors": 3}}, {"event": "proof", "ok": True}], None),
    ],
)
def test_a_session_whose_networks_do_not_work_is_refused(uploaded, server, events, words):
    server.events = events
    if words is None:
        assert "wrote 2 valid rows" in go(uploaded)
        return
    with pytest.raises(ServiceError, match=f"must not be submitted: .*{words}"):
        go(uploaded, submitting=True)
    assert server.submissions == []
    assert state_of(uploaded)["kernel"]["stage"] == "failed"


def test_a_dry_run_loads_every_model_once(run):
    assert "every model of the bundle loads and runs" in dry_run(run.config, run.paths, run.kernel)
    weights = next(run.paths.bundle.glob("*vertebra*weights.safetensors"))
    other = next(run.paths.bundle.glob("*efficientnet*weights.safetensors"))
    weights.write_bytes(other.read_bytes())
    manifest = read_json(run.paths.bundle / "manifest.json")
    manifest["files"][weights.name]["sha256"] = file_hash(weights)
    for name in ("manifest.json", "manifest.json.copy"):
        write_json(run.paths.bundle / name, manifest)
    with pytest.raises(ArtifactError, match=r"vertebra.*does not fit its model\.json"):
        dry_run(run.config, run.paths, run.kernel)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "wrote no"),
        ("", "cannot be read"),
        ("row_id,fractured\n", "no rows"),
        ('{"code": 404}', "cannot be read"),
        ("row_id,fractured\n../../etc_C1,0.5\n", "not <study>_<target>"),
        ("row_id,fractured\n1.2_C1,0.5\n1.2_C1,0.5\n", "1 duplicate rows"),
    ],
)
def test_what_is_no_submission(tmp_path, text, words):
    if text is not None:
        (tmp_path / "submission.csv").write_text(text)
    with pytest.raises(SubmissionError, match=words):
        check_output(make_config(), tmp_path / "submission.csv")


def test_a_local_listing_of_the_competition_decides_the_rows(tmp_path):
    config = make_config()
    competition = config.competition.model_copy(update={"dir": tmp_path})
    config = config.model_copy(update={"competition": competition})
    (tmp_path / "submission.csv").write_text("row_id,fractured\n1.2_C1,0.5\n")
    rows = "row_id,StudyInstanceUID,prediction_type\n1.2_C1,1.2,C1\n"
    (tmp_path / "test.csv").write_text(rows)
    assert check_output(config, tmp_path / "submission.csv") == 1
    (tmp_path / "test.csv").write_text(rows + "1.2_C2,1.2,C2\n")
    with pytest.raises(SubmissionError, match=r"1 missing rows: 1\.2_C2"):
        check_output(config, tmp_path / "submission.csv")


@pytest.mark.slow
def test_a_network_that_drops_costs_nothing_twice(run, server):
    """Cut off: a status, an upload, and the requests that must never be served twice."""
    server.faults = {
        "GetDatasetStatus": Fault(CUT_BEFORE),
        "PUT priors.json": Fault(CUT_BEFORE),
        "CreateDataset": Fault(CUT_AFTER),
        "SaveKernel": Fault(CUT_AFTER),
        "CreateCodeSubmission": Fault(CUT_AFTER),
    }
    with pytest.raises(ServiceError, match="never said which version"):
        go(run, submitting=True)
    assert server.count("SaveKernel") == 1
    state = state_of(run)
    assert (state["code"]["version"], state["kernel"]["stage"]) == (1, "done")
    state["kernel"]["version"] = 1
    write_json(run.paths.root / "push.json", state)
    assert "submitted version 1" in go(run, submitting=True)
    assert len(server.submissions) == 1


@pytest.mark.slow
def test_a_session_that_ended_unseen_after_a_lost_answer_is_recognized(uploaded, server):
    """The service shows COMPLETE before and after: another log tells that there was a session."""
    server.kernels[KERNEL] = [{}]
    server.faults["SaveKernel"] = Fault(CUT_AFTER)
    go(uploaded)
    assert server.count("SaveKernel") == 1


@pytest.mark.slow
def test_a_push_cut_off_before_it_was_served_is_sent_again(uploaded, server):
    server.faults["SaveKernel"] = Fault(CUT_BEFORE)
    go(uploaded)
    assert len(server.kernels[KERNEL]) == 1


KILLED = """
import os, sys
from pathlib import Path
from finished_run import make_config
from cspine_kit.core.paths import RunPaths
from cspine_kit.ship.kaggle.process import Waits
from cspine_kit.ship.kaggle.push import push
root, kernel = map(Path, sys.argv[1:])
push(make_config(), RunPaths(root), kernel, waits=Waits(first_s=0.02, attempts=3))
"""


def kill_at(rpc: str, run: Run, server: KaggleServer) -> None:
    """Start a push in a process of its own; kill it and its client when the service hears `rpc`."""
    command = [sys.executable, "-c", KILLED, str(run.paths.root), str(run.kernel)]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while server.count(rpc) == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert server.count(rpc) == 1 and server.count("SaveKernel") == 0


@pytest.mark.slow
def test_a_push_killed_while_its_dataset_was_made_does_not_make_it_twice(run, server, only_upload):
    kill_at("CreateDataset", run, server)
    assert "is ready (version 1)" in go(run)
    assert len(server.datasets[DATASET]) == 1


@pytest.mark.slow
def test_a_push_killed_between_dataset_and_kernel_goes_on_with_the_kernel(uploaded, server):
    kill_at("GetKernelSessionStatus", uploaded, server)
    told = go(uploaded)
    assert "already (version 1)" in told and "wrote 2 valid rows" in told
    assert [server.count(rpc) for rpc in ("StartBlobUpload", "SaveKernel")] == [0, 1]


def test_a_dry_run_contacts_nothing_and_says_why_a_push_would_be_refused(
    run, server, tmp_path, monkeypatch, capsys
):
    (tmp_path / "tiny.yaml").write_text(resolved_yaml(run.config))
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", "tiny.yaml", "--kernel-folder", str(run.kernel), "--dry-run"]
    assert main(["push", *arguments]) == 0
    text = capsys.readouterr().out
    for path in run.paths.bundle.iterdir():
        assert path.name in text
    assert '"enable_internet": false' in text and "nothing was sent" in text
    assert "message: tiny" in text and "a submission to" not in text
    assert main(["push", *arguments, "--submit", "--message", "more folds"]) == 0
    text = capsys.readouterr().out
    assert "a submission to rsna" in text and "message: more folds" in text
    assert "would be refused" not in text
    phantom = run.config.competition.model_copy(update={"phantom": True})
    config = run.config.model_copy(update={"competition": phantom})
    text = dry_run(config, run.paths, run.kernel, submitting=True)
    assert "a push would be refused: config 'tiny' was trained on a phantom" in text
    assert server.requests == []


def test_the_owner_is_who_the_client_is_logged_in_as(run, server, monkeypatch, tmp_path):
    nobody = make_config(owner=None)
    told = dry_run(nobody, run.paths, run.kernel)
    assert f"dataset {USER}/cspine-kit-tiny-bundle" in told
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    assert "would be refused: bundle.owner is not known" in dry_run(nobody, run.paths, run.kernel)
    settings = tmp_path / "settings"
    write_json(settings / "kaggle.json", {"username": "somebody", "key": KEY})
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(settings))
    told = dry_run(nobody, run.paths, run.kernel)
    assert "dataset somebody/cspine-kit-tiny-bundle" in told and KEY not in told


def test_scores_are_waited_for_and_asked_for(uploaded, server):
    with pytest.raises(ServiceError, match="nothing was submitted"):
        fetch_scores(uploaded.config, uploaded.paths, uploaded.kernel, waits=FAST)
    server.scored = {"status": "COMPLETE", "publicScore": "0.4123", "privateScore": "0.4567"}
    assert "the submission: COMPLETE, public 0.4123, private 0.4567" in go(
        uploaded, submitting=True, wait=True
    )
    sent = len([rpc for rpc, _ in server.requests if rpc == "CreateCodeSubmission"])
    found = fetch_scores(uploaded.config, uploaded.paths, uploaded.kernel, waits=FAST)
    assert (found.public, found.private, sent) == (0.4123, 0.4567, 1)


def test_the_plain_client_pushes_the_kernel_folder_by_hand(run, server):
    dry_run(run.config, run.paths, run.kernel)
    command = [str(Path(sys.executable).with_name("kaggle")), "kernels", "push", "-p", run.kernel]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Kernel version 1 successfully pushed" in done.stdout
    assert "does not resolve" not in done.stdout


def test_a_phantoms_models_are_not_submitted(run, server):
    phantom = run.config.competition.model_copy(update={"phantom": True})
    config = run.config.model_copy(update={"competition": phantom})
    with pytest.raises(ConfigError, match="trained on a phantom"):
        push(config, run.paths, run.kernel, submitting=True)
    assert server.requests == []


def test_two_pushes_of_one_config_do_not_run_at_once(uploaded, server):
    folder = uploaded.paths.root / "push"
    folder.mkdir()
    with (folder / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ServiceError, match="another push of this config runs"):
            go(uploaded)
    assert server.requests == []


def test_a_client_that_cannot_start_is_named(tmp_path, monkeypatch):
    (tmp_path / "kaggle").write_text(f"#!{sys.executable}\nimport no_such_module_as_six\n")
    (tmp_path / "kaggle").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ServiceError, match=r"cannot start \(ModuleNotFoundError: .*_as_six"):
        ClientProcess(tmp_path).run(["--version"])


def test_the_client_sees_only_what_it_needs_and_its_time_is_limited(tmp_path, monkeypatch):
    monkeypatch.setenv("UNRELATED_TOKEN", "secret")
    process = ClientProcess(tmp_path, Waits(call_s=0.01))
    assert "UNRELATED_TOKEN" not in process.child_environment
    assert process.child_environment["TMPDIR"].startswith(str(tmp_path))
    with pytest.raises(NoAnswer, match="gave no answer"):
        process.run(["--version"])
    with pytest.raises(ServiceError, match="KAGGLE_API_ENVIRONMENT"):
        ClientProcess(tmp_path, environment={"KAGGLE_API_ENVIRONMENT": "TEST"})


def test_what_the_client_prints_is_told_without_credentials(tmp_path):
    environment = {"HOME": str(tmp_path), "KAGGLE_USERNAME": "me", "KAGGLE_KEY": KEY}
    redact = ClientProcess(tmp_path, environment=environment).redact
    told = redact(f"key {KEY}, Authorization: Basic bWU6MDEyMzQ1Njc4OWFiY2RlZg==, ok")
    assert KEY not in told and "bWU6" not in told and told.endswith("ok")

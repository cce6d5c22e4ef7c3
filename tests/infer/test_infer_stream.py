"""A run from bundle to answers: what is damaged costs its own part, and time ends everything."""

import shutil
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from cells_models import GPUS, flip, two_devices
from faults import IMAGE, Ground, Result, read_result

from cspine_kit.infer import manifest
from cspine_kit.infer.chains.ensemble import Ensemble
from cspine_kit.infer.log import KernelLog
from cspine_kit.infer.patience import Patience
from cspine_kit.infer.run import run_kernel
from cspine_kit.infer.studies.pulse import pulse
from cspine_kit.stack.external.extras import Extras
from cspine_kit.vision import predict


@pytest.fixture(scope="module", name="ground")
def _ground(run, tmp_path_factory) -> Ground:
    work = tmp_path_factory.mktemp("stream")
    studies = tuple(
        Path(shutil.copytree(source, work / "studies" / source.name))
        for source in sorted((run / "competition" / "test_images").iterdir())
    )
    return Ground(run / "oof" / "tiny" / "bundle", studies, work)


def go(ground: Ground, bundle: Path, studies: int = 2, **options) -> Result:
    competition = ground.competition("competition", studies)
    out = competition / "out" / "submission.csv"
    run_kernel(competition, bundle, out, **options)
    return read_result(competition, out)


def faults_of(result: Result) -> dict[str, str]:
    """Stage (and file) to cause of every fault that is no study's."""
    own = [e for e in result.events.others if e["event"] == "fault" and "study_uid" not in e]
    return {f"{e['stage']} {e.get('file', '')}".strip(): e["cause"] for e in own}


def test_one_byte_of_one_fold_costs_that_fold_of_that_member(ground):
    bundle = ground.bundle_copy("one_byte")
    flip(next(bundle.glob("*efficientnet__fold_1*weights*")))
    result = go(ground, bundle)
    assert set(result.sources().values()) == {IMAGE}
    faults = faults_of(result)
    assert set(faults) == {
        "bundle models/efficientnet/fold_1/weights.safetensors",
        "efficientnet fold 1",
    }
    assert "not what the manifest's hash says" in next(iter(faults.values()))
    [event] = [e for e in result.events.others if e["event"] == "bundle"]
    assert "2 folds, 3 members" in event["efforts"][0]


def test_the_log_says_how_the_run_stands_and_holds_no_bar(ground, capfd):
    result = go(ground, ground.bundle)
    told = capfd.readouterr().err.splitlines()
    assert not any("\r" in line or "study/s" in line for line in told)
    line = next(line for line in reversed(told) if line.startswith("studies done"))
    assert line.startswith("studies done 2 of 2; seconds left ")
    assert "1 views, 2 folds, 3 members" in line
    assert "bundle tiny, out-of-fold A 0." in line
    assert line.endswith("sources {'image': 2}")
    last = [e for e in result.events.others if e["event"] == "pulse"][-1]
    assert last["sources"] == {"image": 2}


def test_a_pulse_beats_while_nothing_ends(tmp_path):
    log = KernelLog(tmp_path / "log.jsonl")
    with pulse(lambda: {"studies done": "0 of 9"}, log, every_s=0.01):
        time.sleep(0.2)
    assert log.path.read_text().count("0 of 9") > 3


def test_a_chain_without_its_vertebra_model_falls_out(ground):
    bundle = ground.bundle_copy("no_vertebra")
    flip(next(bundle.glob("*vertebra__fold_0*weights*")))
    result = go(ground, bundle)
    assert set(result.sources().values()) == {IMAGE}
    [event] = [e for e in result.events.others if e["event"] == "bundle"]
    assert "1 folds" in event["efforts"][0]


def test_without_its_manifest_and_its_copy_nothing_can_be_told_sound(ground):
    bundle = ground.bundle_copy("no_manifest")
    for name in ("manifest.json", "manifest.json.copy"):
        flip(bundle / name)
        (bundle / name).write_text((bundle / name).read_text(errors="replace")[:100])
    result = go(ground, bundle)
    assert result.rows is not None and set(result.sources().values()) == {"priors"}
    assert "no manifest" in result.events.first("models_unusable")["cause"]


def test_headers_speak_where_no_network_is_sound(ground):
    bundle = ground.bundle_copy("no_networks")
    for weights in bundle.glob("*weights*"):
        flip(weights)
    result = go(ground, bundle)
    assert set(result.sources().values()) == {"header"}
    assert "no chain" in result.events.first("models_unusable")["cause"]


@pytest.mark.slow
def test_a_driver_that_hangs_leaves_the_cpu(ground):
    hang = threading.Event()
    real = predict.devices
    with mock.patch.object(predict, "devices", lambda: hang.wait() and real()):
        result = go(ground, ground.bundle, patience=Patience(load_s=5.0))
    hang.set()
    assert set(result.sources().values()) == {IMAGE}
    assert "no answer within" in faults_of(result)["devices"]


def test_a_gpu_takes_several_studies_and_each_gets_its_rows(ground, monkeypatch):
    """Two GPUs that are the CPU: while they are at their first study others are read."""
    expected = go(ground, ground.bundle, 8)
    real, sizes = Ensemble.predict_all, []

    def slow(self, questions):
        sizes.append(len(questions))
        if len(sizes) <= len(GPUS):
            time.sleep(2.0)
        return real(self, questions)

    monkeypatch.setattr(Ensemble, "predict_all", slow)
    with two_devices():
        result = go(ground, ground.bundle, 8)
    assert max(sizes) > 1 and sum(sizes) == 8
    assert set(result.sources().values()) == {IMAGE}
    np.testing.assert_allclose(result.rows, expected.rows, atol=1e-5)


def test_after_the_deadline_nothing_is_read_any_more(ground, monkeypatch):
    """Headers speak for all studies; the run ends within seconds of its limit."""
    real = Ensemble.predict_all

    def slow(self, questions):
        time.sleep(0.2)  # 60 studies take longer than the limit on any machine
        return real(self, questions)

    monkeypatch.setattr(Ensemble, "predict_all", slow)
    start = time.monotonic()
    result = go(ground, ground.bundle, 60, hours=4.0 / 3600)
    assert time.monotonic() - start < 20.0
    sources = result.sources()
    assert len(sources) == 60 and "header" in sources.values()
    late = result.events.studies[result.events.studies["source"] == "header"]
    assert late["cause"].str.contains("no time for the networks").any()


def test_a_bundle_on_a_dead_disk_costs_the_wait(ground, monkeypatch):
    monkeypatch.setattr(manifest, "file_hash", lambda path: threading.Event().wait())
    start = time.monotonic()
    result = go(ground, ground.bundle, patience=Patience(bundle_s=1.0))
    assert time.monotonic() - start < 10.0
    assert set(result.sources().values()) == {"priors"}
    assert "could not be read in time" in result.events.first("models_unusable")["cause"]


def test_an_absent_file_of_a_partner_is_said_in_the_log(ground, monkeypatch):
    absent = Extras(problems=("external member 'theirs': no file",))
    monkeypatch.setattr(Extras, "load", classmethod(lambda cls, folder: absent))
    result = go(ground, ground.bundle)
    assert set(result.sources().values()) == {IMAGE}
    event = result.events.first("external_absent")
    assert event["cause"] == "external member 'theirs': no file" and event["device"] == "cpu"

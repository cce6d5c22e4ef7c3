"""What holds a session of a training: its hours, the room for its output, what is not attached."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_sessions import Place, two_steps

from cspine_kit.core import deadline, room
from cspine_kit.core.deadline import clear_deadline, set_deadline, time_is_up
from cspine_kit.core.errors import ConfigError, DataError
from cspine_kit.core.room import clear_room, room_left_gb, set_room
from cspine_kit.ship.training import names
from cspine_kit.ship.training.dataset import write_dataset
from cspine_kit.ship.training.names import check_room
from cspine_kit.ship.training.output import read_report
from cspine_kit.vision.training.room import CHECKPOINT_BYTES, WEIGHT_BYTES, most_gb

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", name="config")
def _config():
    return two_steps()


def test_a_checkpoint_takes_what_is_reckoned_with(config, tmp_path):
    place = Place(tmp_path, config)
    place.cached(4)
    place.session(0.0)
    [checkpoint] = place.outputs[-1].rglob("checkpoint.pt")
    reckoned = most_gb([config.vertebra]) * 1e9
    weights = reckoned / (2 * CHECKPOINT_BYTES + WEIGHT_BYTES)
    assert checkpoint.stat().st_size == pytest.approx(CHECKPOINT_BYTES * weights, rel=0.1)


def test_a_network_without_room_is_refused_beforehand(config, monkeypatch):
    check_room(config)
    monkeypatch.setattr(names, "OUTPUT_GB", 0.02)
    with pytest.raises(ConfigError, match=r"2 fold models of vertebra take 0\.0 GB of checkpoints"):
        check_room(config)


def test_volumes_are_not_made_without_the_scans(config, tmp_path):
    with pytest.raises(DataError, match="the competition is not attached to this session"):
        Place(tmp_path, config).session(1.0, kind="cache")


@pytest.mark.parametrize("kind", ["cache", "train"])
def test_a_kernel_starts_the_session_of_its_kind(config, tmp_path, kind):
    """In a process of its own, on the dataset alone: both end with what they lack."""
    script = ROOT / "kernels" / kind / f"{kind}.py"
    command = [sys.executable, str(script)]
    env = os.environ | {"CSPINE_INPUT": str(tmp_path / "input"), "PYTHONPATH": str(ROOT)}
    (tmp_path / "input").mkdir()
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "no training dataset below" in done.stderr
    parcel = write_dataset(config, tmp_path / "input" / "mine", wheels=[], pretrained={})
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert f"bundle manifest {parcel.digest}" in done.stderr
    if kind == "cache":
        assert done.returncode == 1 and "the competition is not attached" in done.stderr
    else:
        assert done.returncode == 0 and read_report(tmp_path / "session.json").kind == kind
        assert "studies" in read_report(tmp_path / "session.json").fault


def test_a_deadline_is_inherited_and_ends(monkeypatch):
    monkeypatch.delenv(deadline.VARIABLE, raising=False)
    assert not time_is_up()
    set_deadline(60.0)
    assert not time_is_up()
    set_deadline(-1.0)
    assert time_is_up()
    clear_deadline()
    assert not time_is_up()


def test_room_is_what_files_leave_of_it(tmp_path, monkeypatch):
    monkeypatch.delenv(room.VARIABLE, raising=False)
    assert room_left_gb() == float("inf")
    set_room(tmp_path, 1e-6)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").write_bytes(b"x" * 400)
    (tmp_path / "link").symlink_to(tmp_path / "inside" / "file")
    assert room_left_gb() == pytest.approx(600e-9)
    clear_room()
    assert room_left_gb() == float("inf")

"""A training killed at any step ends with the same weights; its checkpoint is plain data."""

import pickle

import pytest
import torch
from safetensors.torch import load_file

from cspine_kit.core.runs import read_json
from cspine_kit.vision.names import WEIGHTS_FILE
from cspine_kit.vision.training import loop, optimizer, state
from cspine_kit.vision.training.loop import train_model
from cspine_kit.vision.training.step import Stepper


@pytest.fixture(autouse=True, scope="module")
def _averaged():
    """Twelve steps are too few for an average by default; here it reaches over half of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "AVERAGED_SHARE", 0.5)
        yield


def fit(data, folder, training, key="k"):
    torch.set_num_threads(1)
    train_model(data, data.config, folder, key=key, training=training, seed=7, title="t", held=data)
    return (folder / WEIGHTS_FILE).read_bytes(), (folder / "history.csv").read_text()


@pytest.fixture(name="often", scope="module")
def _often(config):
    """A checkpoint after every step."""
    return config.training.model_copy(update={"checkpoint_minutes": 1e-9})


@pytest.fixture(name="whole", scope="module")
def _whole(four, config, tmp_path_factory):
    return fit(four, tmp_path_factory.mktemp("whole"), config.training)


def kill_at(monkeypatch, step):
    """The process dies in the midst of a step: its gradients are there, its weights are not."""
    taken, original = [], Stepper._gradients

    def dying(self, batch, weights):
        found = original(self, batch, weights)
        taken.append(1)
        if len(taken) == step:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Stepper, "_gradients", dying)


@pytest.mark.parametrize("step", [3, 6, 7, 11])
def test_a_training_killed_at_any_step_ends_with_the_same_weights(
    four, whole, often, tmp_path, step
):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, step)
        fit(four, tmp_path, often)
    kept = torch.load(tmp_path / state.CHECKPOINT, weights_only=True)
    assert kept["progress"]["step"] == step - 1
    assert fit(four, tmp_path, often) == whole
    assert not (tmp_path / state.CHECKPOINT).exists()


def test_a_training_killed_after_its_last_step_only_writes(four, whole, config, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        fit(four, tmp_path, config.training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "__call__", lambda *_: pytest.fail("a step too many"))
        assert fit(four, tmp_path, config.training) == whole


def test_a_training_killed_twice_between_checkpoints_repeats_the_steps(
    four, whole, config, tmp_path, monkeypatch
):
    """Without a timed checkpoint the last whole epoch counts."""
    for step in (4, 9):
        kill_at(monkeypatch, step)
        with pytest.raises(KeyboardInterrupt):
            fit(four, tmp_path, config.training)
        monkeypatch.undo()
    assert torch.load(tmp_path / state.CHECKPOINT, weights_only=True)["progress"]["step"] == 6
    assert fit(four, tmp_path, config.training) == whole


def test_the_checkpoint_holds_all_that_decides_the_next_step(four, often, tmp_path, monkeypatch):
    kill_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        fit(four, tmp_path, often)
    kept = torch.load(tmp_path / state.CHECKPOINT, weights_only=True)
    assert set(kept) == {"key", "progress", "model", "average", "optimizer", "schedule"}
    assert kept["schedule"]["last_epoch"] == 2 and len(kept["progress"]["losses"]) == 2
    name = "heads.visible.weight"
    assert not torch.equal(kept["model"][name], kept["average"][name])


def test_the_average_is_what_is_kept(four, config, tmp_path, monkeypatch):
    seen = {}

    def look(run, *_, **named):
        seen.update(model=run.stepper.model.state_dict(), average=run.average.module.state_dict())
        return original(run, *_, **named)

    original = loop._Run._end_epoch
    monkeypatch.setattr(loop._Run, "_end_epoch", look)
    fit(four, tmp_path, config.training)
    kept = load_file(tmp_path / WEIGHTS_FILE)
    for name, value in seen["average"].items():  # matrices are kept in half precision
        assert torch.equal(kept[name], value.to(kept[name].dtype))
    assert not all(
        torch.equal(kept[name], value.to(kept[name].dtype)) for name, value in seen["model"].items()
    )


def test_a_checkpoint_that_unpickles_code_is_refused(four, config, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "gone_off"), "w"))

    torch.save({"key": "k", "model": Bomb()}, tmp_path / state.CHECKPOINT)
    with pytest.raises(pickle.UnpicklingError):
        fit(four, tmp_path, config.training)
    assert not (tmp_path / "gone_off").exists()


def test_training_leaves_torch_as_it_was(four, config, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training = config.training.model_copy(update={"deterministic": True})
    fit(four, tmp_path, training)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert read_json(tmp_path / "run.json")["results"]["loss"] > 0

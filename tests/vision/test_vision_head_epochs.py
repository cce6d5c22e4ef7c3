"""Last epochs of the heads alone: the backbone rests, its features stay, and a kill changes
nothing."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cspine_kit.core.config import SlicesConfig
from cspine_kit.core.errors import DataError
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.names import WEIGHTS_FILE
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.training import optimizer, state
from cspine_kit.vision.training.batches import Steps
from cspine_kit.vision.training.loop import train_model
from cspine_kit.vision.training.step import Stepper


@pytest.fixture(name="two", scope="module")
def _two(four):
    """6 steps of everything, then 6 of the heads alone."""
    config = four.config.model_copy(update={"head_epochs": 1, "ema_decay": 0.5})
    return StackDataset(four.views, config)


@pytest.fixture(autouse=True, scope="module")
def _averaged():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "AVERAGED_SHARE", 0.5)
        yield


def fit(data, folder, training):
    torch.set_num_threads(1)
    train_model(data, data.config, folder, key="k", training=training, seed=7, title="t")
    return load_file(folder / WEIGHTS_FILE)


@pytest.fixture(name="seen", scope="module")
def _seen(two, config, tmp_path_factory):
    """The model's weights before each step, whether its backbone then learned, the weight of a
    fracture, and the folder of what came of it."""
    steps, original = [], Stepper.__call__

    def look(self, batch, seed):
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        steps.append((weights, self.model.backbone.training, self.task.config.positive_weight))
        return original(self, batch, seed)

    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "__call__", look)
        fit(two, folder, config.training)
    return steps, folder


def test_the_backbone_rests_in_the_last_epochs_and_is_the_averaged_one(seen, two):
    steps, folder = seen
    assert [learning for _, learning, _ in steps] == [True] * 6 + [False] * 6
    assert [weight for *_, weight in steps] == [1.0] * 6 + [two.config.positive_weight] * 6
    first, last, kept = steps[6][0], steps[11][0], load_file(folder / WEIGHTS_FILE)
    for name, value in first.items():
        resting = name.startswith("backbone.")
        assert torch.equal(last[name], value) or not resting, name
        if resting and value.is_floating_point():
            assert torch.allclose(kept[name].float(), value, rtol=1e-3, atol=1e-3), name
    assert not torch.equal(first["heads.fracture.weight"], last["heads.fracture.weight"])
    moved = [n for n in first if n.startswith("backbone.") and n.endswith("weight")]
    assert any(not torch.equal(steps[5][0][name], steps[4][0][name]) for name in moved)


@pytest.mark.parametrize("step", [4, 7, 8, 12])
def test_a_training_killed_before_or_after_the_change_ends_the_same(
    two, seen, config, tmp_path, step
):
    often = config.training.model_copy(update={"checkpoint_minutes": 1e-9})
    calls, original = [], Stepper._gradients

    def dying(self, batch, weights):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return original(self, batch, weights)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stepper, "_gradients", dying)
        fit(two, tmp_path, often)
    assert (
        torch.load(tmp_path / state.CHECKPOINT, weights_only=True)["progress"]["step"] == step - 1
    )
    again, whole = fit(two, tmp_path, often), load_file(seen[1] / WEIGHTS_FILE)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_before_them_nothing_is_learned_on_the_study(config):
    study = config.members["seven"].model_copy(update={"head_epochs": 4})
    batch = {
        "fracture": torch.ones(2, 7),
        "overall": torch.ones(2, 1),
        "visible": torch.ones(2, 21),
        "present": torch.ones(2, 7),
    }
    said = {**task_of(study).blank(batch), "study": torch.full((2, 8), -3.0)}
    plain, whole = (task_of(c).losses(said, batch) for c in (study.plain, study))
    assert plain["study"][0] == 0.0 < whole["study"][0]
    assert whole["level"][0] == pytest.approx(study.positive_weight * float(plain["level"][0]))


def test_as_many_as_there_are_epochs_are_refused(four):
    raw = four.config.model_dump()
    assert SlicesConfig(**{**raw, "head_epochs": 1}).head_epochs == 1
    with pytest.raises(ValueError, match="head_epochs 2 must lie below epochs 2"):
        SlicesConfig(**{**raw, "head_epochs": 2})


@pytest.mark.parametrize(("asked", "halves"), [("same_half", (0, 0)), ("other_half", (0, 1))])
def test_halves_teach_the_backbone_and_the_heads(two, asked, halves):
    config = two.config.model_copy(update={"head_studies": asked})
    views = [replace(view, half=k % 2) for k, view in enumerate(two.views)]
    steps = Steps(StackDataset(views, config), config, seed=3)
    shown = [
        {views[steps.dataset.rows[i][0]].half for i in steps.items(s)} for s in range(len(steps))
    ]
    heads = steps.heads_from
    assert shown[:heads] == [{halves[0]}] * heads and shown[heads:] == [{halves[1]}] * heads
    assert len(steps) == len(Steps(two, two.config, seed=3)) // 2


def test_halves_of_other_sizes_have_epochs_of_one_length(two):
    config = two.config.model_copy(update={"head_studies": "other_half"})
    views = [replace(view, half=int(k == 3)) for k, view in enumerate(two.views)]
    steps = Steps(StackDataset(views, config), config, seed=3)
    assert [len(steps.items(s)) for s in range(len(steps))] == [config.batch_size] * 2
    with pytest.raises(DataError, match="no study of half 1"):
        Steps(StackDataset(views[:3], config), config, seed=3)

"""Training on a GPU: half precision, resume, memory that runs out; skipped where there is none."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from cspine_kit.vision.names import WEIGHTS_FILE
from cspine_kit.vision.nets.heads import SliceModel
from cspine_kit.vision.predict import predict, predict_all
from cspine_kit.vision.tasks.vertebra import VertebraTask
from cspine_kit.vision.training.loop import train_model
from cspine_kit.vision.training.settings import precision
from cspine_kit.vision.training.state import CHECKPOINT
from cspine_kit.vision.training.step import Stepper

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(name="training", params=["no", "fp16", "bf16"])
def _training(request, config):
    """A checkpoint after every step, the same numbers again."""
    if request.param == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no bf16 of its own")
    AcceleratorState._reset_state(reset_partial_state=True)
    changes = {"precision": request.param, "deterministic": True, "checkpoint_minutes": 1e-9}
    yield config.training.model_copy(update=changes)
    AcceleratorState._reset_state(reset_partial_state=True)


def fit(data, folder, training):
    train_model(data, data.config, folder, key="k", training=training, seed=7, title="t", held=data)
    return load_file(folder / WEIGHTS_FILE)


def test_a_killed_training_ends_with_the_same_weights(four, training, tmp_path):
    whole = fit(four, tmp_path / "whole", training)
    assert all(value.isfinite().all() for value in whole.values())
    calls, original = [], Stepper.__call__

    def dying(self, batch, seed):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(self, batch, seed)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stepper, "__call__", dying)
        fit(four, tmp_path / "killed", training)
    kept = torch.load(tmp_path / "killed" / CHECKPOINT, weights_only=True)
    assert ("scaler" in kept) == (training.precision == "fp16")
    again = fit(four, tmp_path / "killed", training)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_memory_that_runs_out_halves_the_batch_and_the_training_goes_on(
    four, training, tmp_path, caplog
):
    """torch's own error, from an allocation that no card can hold."""
    original = Stepper._gradients

    def greedy(self, batch, weights):
        if self.parts < 2:
            forward = self.model.forward
            self.model.forward = lambda stack: torch.empty(1 << 50, device=stack.device)
            try:
                return original(self, batch, weights)
            finally:
                self.model.forward = forward
        return original(self, batch, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "_gradients", greedy)
        weights = fit(four, tmp_path, training)
    assert all(value.isfinite().all() for value in weights.values())
    assert "the batch is computed in 2 parts from here on" in caplog.text


def test_auto_takes_half_precision_here(config):
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert precision(config.training) == ("bf16" if native else "fp16")


def test_filled_up_batches_change_no_row(tiny, make_volume):
    model = SliceModel(tiny, VertebraTask.heads, pretrained=False).eval().cuda()
    volume = make_volume(0)
    whole = predict({0: model}, volume, None, 64)[0].require()
    for size in (7, 8, 16):
        rows = predict({0: model}, volume, None, size)[0].require()
        assert len(rows) == len(whole)
        np.testing.assert_allclose(rows, whole, atol=0.05)


def test_studies_that_share_batches_get_their_own_rows(tiny, make_volume):
    model = SliceModel(tiny, VertebraTask.heads, pretrained=False).eval().cuda()
    volumes = [make_volume(k, n) for k, n in enumerate((25, 33, 40))]
    said = predict_all({0: model}, [(volume, None) for volume in volumes], 16)
    for volume, own in zip(volumes, said, strict=True):
        alone = predict({0: model}, volume, None, 16)[0].require()
        np.testing.assert_allclose(own[0].require(), alone, atol=0.05)

"""Prediction: batches, halving, views and stride change nothing that they should not."""

import numpy as np
import pytest
import torch

from cspine_kit.vision import predict
from cspine_kit.vision.dataset import StudyView
from cspine_kit.vision.model import SliceModel
from cspine_kit.vision.names import HEADS
from cspine_kit.vision.predict import run_model, vertebra_view


@pytest.fixture(name="model")
def _model(tiny):
    torch.manual_seed(0)
    return SliceModel(tiny, HEADS["fracture"], pretrained=False).eval()


@pytest.fixture(name="view")
def _view(make_volume):
    return vertebra_view(make_volume(0), 1.0)


def same(a, b):
    return all(np.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_the_size_of_batches_changes_nothing(model, view):
    whole = run_model(model, view, len(view))
    assert whole["fracture"].shape == (len(view), 7)
    for size in (1, 3, 64):
        assert same(whole, run_model(model, view, size))


def test_a_batch_without_memory_is_halved_until_it_fits(model, view, monkeypatch):
    expected, sizes = run_model(model, view, 16), []
    original = SliceModel.forward

    def hungry(self, stack):
        sizes.append(len(stack))
        if len(stack) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, stack)

    monkeypatch.setattr(SliceModel, "forward", hungry)
    assert same(expected, run_model(model, view, 16))
    assert max(sizes) > 3 and min(sizes) <= 3


def test_one_slice_without_memory_is_an_error(model, view, monkeypatch):
    def hungry(self, stack):
        raise MemoryError("nothing left")

    monkeypatch.setattr(SliceModel, "forward", hungry)
    with pytest.raises(MemoryError):
        run_model(model, view, 4)


def test_other_errors_are_not_taken_for_missing_memory(model, view, monkeypatch):
    def wrong(self, stack):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(SliceModel, "forward", wrong)
    with pytest.raises(RuntimeError, match="shape"):
        run_model(model, view, 4)


def test_two_views_are_the_mean_of_a_slice_and_its_mirror_image(model, view):
    plain, both = run_model(model, view, 8), run_model(model, view, 8, views=2)
    stacks = torch.from_numpy(np.stack([view.stack(r, model.config) for r in range(len(view))]))
    with torch.inference_mode():
        mirrored = predict.forward(model, stacks.flip(-1))["fracture"].numpy()
    assert np.allclose(both["fracture"], (plain["fracture"] + mirrored) / 2, atol=1e-6)
    assert not np.allclose(both["fracture"], plain["fracture"], atol=1e-6)


def test_a_stride_leaves_out_slices_and_changes_none(model, make_volume):
    model.widths = HEADS["vertebra"]
    vertebra = SliceModel(model.config, HEADS["vertebra"], pretrained=False).eval()
    volume = make_volume(0)
    every = predict.predict_vertebra(vertebra, volume, 8).set_index("position")
    second = predict.predict_vertebra(vertebra, volume, 8, stride=2).set_index("position")
    assert len(second) == -(-len(every) // 2)
    assert np.allclose(every.loc[second.index], second, atol=1e-4)


def test_every_slice_has_its_own_row_whatever_the_order(model, view):
    forward, backward = view, StudyView(view.volume, view.slice_idx[::-1], view.centers_px[::-1])
    a, b = run_model(model, forward, 4), run_model(model, backward, 4)
    assert np.allclose(a["visible"], b["visible"][::-1], atol=1e-6)

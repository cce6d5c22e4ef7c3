"""Prediction: batches, halving, views and stride change nothing that they should not."""

import numpy as np
import pytest
import torch

from cspine_kit.core.errors import StudyError
from cspine_kit.vision.inputs import views
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.nets.heads import SliceModel
from cspine_kit.vision.passes import Drawn, forward, run_model
from cspine_kit.vision.predict import predict, visible_gpus
from cspine_kit.vision.tasks.slices import SlicesTask
from cspine_kit.vision.tasks.vertebra import VertebraTask


@pytest.fixture(name="model")
def _model(tiny):
    torch.manual_seed(0)
    return SliceModel(tiny, SlicesTask.heads, pretrained=False).eval()


@pytest.fixture(name="view")
def _view(make_volume, tiny):
    return VertebraTask(tiny).view(make_volume(0))


def run(model, view, batch_size, **how):
    return run_model(model, Drawn([view], model.config.windows, batch_size, "cpu"), **how)


def same(a, b):
    return all(np.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_the_size_of_batches_changes_nothing(model, view):
    whole = run(model, view, len(view))
    assert whole["fracture"].shape == (len(view), 7)
    for size in (1, 3, 64):
        assert same(whole, run(model, view, size))


def test_a_batch_without_memory_is_halved_until_it_fits(model, view, monkeypatch):
    expected, sizes = run(model, view, 16), []
    original = SliceModel.forward

    def hungry(self, stack):
        sizes.append(len(stack))
        if len(stack) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, stack)

    monkeypatch.setattr(SliceModel, "forward", hungry)
    assert same(expected, run(model, view, 16))
    assert max(sizes) > 3 and min(sizes) <= 3


def test_one_slice_without_memory_is_an_error(model, view, monkeypatch):
    def hungry(self, stack):
        raise MemoryError("nothing left")

    monkeypatch.setattr(SliceModel, "forward", hungry)
    with pytest.raises(MemoryError):
        run(model, view, 4)


def test_other_errors_are_not_taken_for_missing_memory(model, view, monkeypatch):
    def wrong(self, stack):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(SliceModel, "forward", wrong)
    with pytest.raises(RuntimeError, match="shape"):
        run(model, view, 4)


def test_two_views_are_the_mean_of_a_slice_and_its_mirror_image(model, view):
    plain, both = run(model, view, 8), run(model, view, 8, views=(False, True))
    drawn = [view.drawn(row, model.config.windows) for row in range(len(view))]
    stacks = torch.from_numpy(np.stack(drawn))
    with torch.inference_mode():
        mirrored = forward(model, stacks.flip(-1))["fracture"].numpy()
    assert np.allclose(both["fracture"], (plain["fracture"] + mirrored) / 2, atol=1e-6)
    assert not np.allclose(both["fracture"], plain["fracture"], atol=1e-6)


def test_every_second_fold_may_see_patches_mirrored(model, view, config):
    kernel = config.kernel.model_copy(update={"views": "folds"})
    assert [kernel.views_of(fold) for fold in range(3)] == [(False,), (True,), (False,)]
    assert [config.kernel.views_of(fold) for fold in range(2)] == [(False,), (False,)]
    both = config.kernel.model_copy(update={"views": 2})
    assert both.views_of(1) == (False, True) and (both.most_views, kernel.most_views) == (2, 1)
    plain, mirror, mean = (
        run(model, view, 8, views=views)["fracture"]
        for views in ((False,), (True,), both.views_of(0))
    )
    assert np.allclose(mean, (plain + mirror) / 2, atol=1e-6)
    assert not np.allclose(plain, mirror, atol=1e-6)


def test_networks_that_see_the_same_patches_share_them(models, make_volume, monkeypatch):
    volume, drawn = make_volume(0), []
    real = views.draw

    def counted(*arguments):
        drawn.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(views, "draw", counted)
    together = predict(models, volume, None, 8)
    n = len(together["a"].require())
    assert len(drawn) == 2 * n, "a and b share theirs, c sees others"
    assert list(together) == ["a", "b", "c"]
    for name, model in models.items():
        alone = predict({name: model}, volume, None, 8)[name].require()
        assert np.array_equal(alone, together[name].require())
    assert not np.allclose(together["a"].require(), together["b"].require())


def test_a_network_that_fails_costs_no_other(models, make_volume):
    torch.nn.init.constant_(models["a"].heads["box"].bias, float("nan"))
    said = predict(models, make_volume(0), None, 8)
    assert isinstance(said["a"].error, StudyError) and said["a"].rows is None
    with pytest.raises(StudyError, match=r"1\.0.*test_resnet gave NaN in 'box'"):
        said["a"].require()
    assert len(said["b"].require()) == len(said["c"].require()) > 0


def test_without_levels_a_member_says_why(tiny, make_volume):
    model = SliceModel(tiny, SlicesTask.heads, pretrained=False).eval()
    said = predict({0: model}, make_volume(0), None, 8)[0]
    assert said.rows is None and "no levels" in str(said.error)


def test_a_stride_leaves_out_slices_and_changes_none(models, make_volume):
    volume, one = make_volume(0), {"a": models["a"]}
    every = predict(one, volume, None, 8)["a"].require().set_index("position")
    second = predict(one, volume, None, 8, stride=2)["a"].require().set_index("position")
    assert len(second) == -(-len(every) // 2)
    assert np.allclose(every.loc[second.index], second, atol=1e-4)


def test_every_slice_has_its_own_row_whatever_the_order(model, view):
    backward = StudyView(view.volume, view.indices[::-1], view.patches[::-1])
    a, b = run(model, view, 4), run(model, backward, 4)
    assert np.allclose(a["visible"], b["visible"][::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("found", "variable", "named"),
    [
        (["cpu"], None, []),
        (["cuda:0", "cuda:1"], None, ["0", "1"]),
        (["cuda:0", "cuda:1"], "2, 5", ["2", "5"]),
        (["cuda:0"], "GPU-1a2b", ["GPU-1a2b"]),
    ],
)
def test_gpus_are_named_as_their_processes_ask_for_them(monkeypatch, found, variable, named):
    monkeypatch.setattr("cspine_kit.vision.predict.devices", lambda: found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == named

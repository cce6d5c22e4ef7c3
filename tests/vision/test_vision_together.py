"""Studies that share batches: the rows that each would get alone, and what fails costs itself."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.errors import StudyError
from cspine_kit.data.volumes.volume import Held
from cspine_kit.vision import passes
from cspine_kit.vision import predict as room
from cspine_kit.vision.inputs import views
from cspine_kit.vision.nets.heads import SliceModel
from cspine_kit.vision.passes import Drawn, run_model
from cspine_kit.vision.predict import predict, predict_all
from cspine_kit.vision.tasks.slices import SlicesTask
from cspine_kit.vision.tasks.vertebra import VertebraTask

BAD = "1.1"
BRIGHT = 235


@pytest.fixture(name="volumes")
def _volumes(make_volume):
    """Three studies of different heights; the second is bright all over."""
    low, bright, high = (make_volume(k, n) for k, n in enumerate((25, 33, 40)))
    white = Held(np.full((33, 64, 64), 250, np.uint8))
    return [low, replace(bright, voxels=white), high]


def ask(models, volumes, **options):
    return predict_all(models, [(volume, None) for volume in volumes], 8, **options)


def assert_alone(models, volumes, said, **options):
    """Every row is what its study gets without the others."""
    for volume, own in zip(volumes, said, strict=True):
        expected = predict(models, volume, None, 8, **options)
        for name in models:
            rows, alone = own[name].require(), expected[name].require()
            pd.testing.assert_frame_equal(rows, alone, atol=1e-5)


def bright(stack):
    return stack.amax(dim=tuple(range(1, stack.ndim))) > BRIGHT


@pytest.mark.parametrize("options", [{}, {"views": (False, True), "stride": 2}])
def test_rows_are_those_of_each_study_alone(models, volumes, options):
    said = ask(models, volumes, **options)
    lengths = [len(own["a"].require()) for own in said]
    assert sorted(set(lengths)) == lengths, "of three heights"
    assert_alone(models, volumes, said, **options)


def test_members_share_batches_too(tiny, volumes, levels):
    model = SliceModel(tiny, SlicesTask.heads, pretrained=False).eval()
    said = predict_all({0: model}, [(volume, levels) for volume in volumes], 8)
    for volume, own in zip(volumes, said, strict=True):
        alone = predict({0: model}, volume, levels, 8)[0].require()
        pd.testing.assert_frame_equal(own[0].require(), alone, atol=1e-5)


def test_batches_cross_studies_and_only_the_last_is_not_full(tiny, volumes):
    seen = [VertebraTask(tiny).view(volume) for volume in volumes]
    batches = Drawn(seen, tiny.windows, 8, "cpu")
    sizes = [len(batch) for batch, *_ in batches]
    assert sizes == [8] * (batches.count // 8) + [batches.count % 8]
    assert [rows.stop - rows.start for rows in batches.studies] == [len(view) for view in seen]


def test_a_study_with_nan_costs_itself(models, volumes, monkeypatch):
    original = SliceModel.forward

    def poisoned(self, stack, *facts):
        outputs = original(self, stack, *facts)
        outputs["box"][bright(stack)] = float("nan")
        return outputs

    monkeypatch.setattr(SliceModel, "forward", poisoned)
    said = ask(models, volumes)
    for name in models:
        with pytest.raises(StudyError, match=r"1\.1.*test_resnet gave NaN in 'box'"):
            said[1][name].require()
    assert_alone(models, volumes[::2], said[::2])


@pytest.mark.parametrize("what", ["draw", "view"])
def test_a_study_that_cannot_be_drawn_costs_itself(models, volumes, monkeypatch, what):
    real, view = views.draw, VertebraTask.view

    def torn(volume, *arguments):
        if volume.study_uid == BAD:
            raise ValueError("torn voxels")
        return real(volume, *arguments)

    def blind(self, volume, *arguments):
        if volume.study_uid == BAD:
            raise ValueError("torn voxels")
        return view(self, volume, *arguments)

    if what == "draw":
        monkeypatch.setattr(views, "draw", torn)
    else:
        monkeypatch.setattr(VertebraTask, "view", blind)
    said = ask(models, volumes)
    assert all("torn voxels" in str(said[1][name].error) for name in models)
    assert_alone(models, volumes[::2], said[::2])


def test_a_network_that_raises_on_several_studies_is_asked_study_by_study(
    models, volumes, monkeypatch
):
    asked = []

    def picky(model, batches, **options):
        name = next(name for name, one in models.items() if one is model)
        asked.append((name, len(batches.studies)))
        if name == "b" and len(batches.studies) > 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return run_model(model, batches, **options)

    with monkeypatch.context() as patch:
        patch.setattr(room, "run_model", picky)
        said = ask(models, volumes)
    assert asked == [("a", 3), ("b", 3), ("b", 1), ("b", 1), ("b", 1), ("c", 3)]
    assert_alone(models, volumes, said)


def test_a_network_that_always_raises_costs_no_other(models, volumes, monkeypatch):
    def broken(model, batches, **options):
        if model is models["a"]:
            raise RuntimeError("shape mismatch")
        return run_model(model, batches, **options)

    monkeypatch.setattr(room, "run_model", broken)
    said = ask(models, volumes)
    assert all("shape" in str(own["a"].error) for own in said)
    assert all(own[name].rows is not None for own in said for name in "bc")


def test_only_a_study_that_overflows_is_repeated_in_single_precision(models, volumes, monkeypatch):
    """Half precision is acted: a different number, and infinity for the bright study."""
    real, batches = passes.forward, []

    def forward(model, batch, *facts, half=False):
        batches.append((half, int(bright(batch).sum())))
        outputs = real(model, batch, *facts)
        if half:
            outputs["visible"] += 1.0
            outputs["visible"][bright(batch)] = float("inf")
        return outputs

    monkeypatch.setattr(passes, "forward", forward)
    monkeypatch.setattr(passes, "_precisions", lambda model: (True, False))
    model = models["a"]
    seen = [VertebraTask(model.config).view(volume) for volume in volumes]
    drawn = Drawn(seen, model.config.windows, 8, "cpu")
    found = run_model(model, drawn)["visible"]
    assert all(count for half, count in batches if not half), "no other batch is repeated"
    monkeypatch.undo()
    single = run_model(model, drawn)["visible"]
    for k, rows in enumerate(drawn.studies):
        np.testing.assert_allclose(found[rows], single[rows] + (k != 1), atol=1e-5)


def test_seconds_are_shared_by_units(models, volumes):
    said = ask(models, volumes)
    for name in models:
        rates = [own[name].seconds / len(own[name].require()) for own in said]
        assert rates == pytest.approx([rates[0]] * 3)

"""Stacks: neighbors in millimeters, ends clamped, crops centered, draws reproducible."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from whole_view import whole_view

from cspine_kit.data.volumes.patch import draw
from cspine_kit.vision.inputs.augment import augment_batch
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.inputs.views import spaced_slices, study_view


def test_spaced_slices_are_spaced_in_mm():
    z = 50.0 - 0.5 * np.arange(100)
    chosen = spaced_slices(z, 2.0)
    assert np.allclose(np.diff(z[chosen]), -2.0)
    assert chosen[0] == 0
    # Points of the grid are whole multiples of the step.
    assert np.allclose(z[chosen] % 2.0, 0)


def test_a_coarse_study_keeps_all_its_slices_once():
    z = -3.0 * np.arange(20)
    assert spaced_slices(z, 1.0).tolist() == list(range(20))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_short_studies_have_slices(n):
    assert len(spaced_slices(-1.0 * np.arange(n), 2.0)) >= 1


def test_the_choice_of_slices_does_not_depend_on_which_ones_a_volume_keeps():
    z = 103.7 - 0.6 * np.arange(300)
    whole = spaced_slices(z, 2.5)
    for first, last in ((0, 120), (37, 200), (150, 300)):
        part = first + spaced_slices(z[first:last], 2.5)
        inner = (whole > first + 3) & (whole < last - 4)
        assert set(whole[inner]) <= set(part) and len(part) <= inner.sum() + 4
        assert set(part[2:-2]) <= set(whole)


def test_neighbors_are_chosen_by_mm_not_by_index(tiny, make_volume):
    volume = make_volume(1)
    for i in range(len(volume.z_mm)):
        volume.voxels.array[i] = i
    config = tiny.model_copy(update={"stack_step_mm": 4.0, "in_chans": 3})
    view = study_view(volume, np.array([0, 20, 39]), np.tile(volume.middle_mm, (3, 1)), config)
    middles = [draw(volume, patch, config.windows)[:, 16, 16].tolist() for patch in view.patches]
    assert middles == [[0, 0, 2], [18, 20, 22], [37, 39, 39]]


def test_a_view_speaks_of_native_slices(tiny, make_volume):
    fine = replace(make_volume(1), first_slice=7)
    rows, centers = np.array([0, 5]), np.tile(fine.middle_mm, (2, 1))
    view = study_view(fine, rows, centers, tiny)
    assert view.slice_idx.tolist() == [7, 12] and view.at_mm.tolist() == [100.0, 90.0]
    coarse = replace(make_volume(1), group=3)
    assert study_view(coarse, rows, centers, tiny).slice_idx.tolist() == [0, 15]


@pytest.fixture(name="data")
def _data(tiny, make_volume):
    """Three studies with a box 20 px (24 mm) wide and 16 px high; the first slice has none."""
    views = []
    for seed in range(3):
        volume = make_volume(seed)
        rows = np.arange(len(volume.z_mm))
        # Its edges lie between pixels.
        box = volume.to_mm(np.array([[23.5, 19.5], [39.5, 39.5]])).reshape(4)
        targets = {
            "visible": np.zeros((len(rows), 7), np.float32),
            "fracture": np.zeros((len(rows), 7), np.float32),
            "box": np.tile(box, (len(rows), 1)).astype(np.float32),
        }
        targets["box"][0] = np.nan
        views.append(whole_view(volume, tiny, **targets))
    return StackDataset(views, tiny)


def test_box_becomes_shares_of_the_crop(data):
    sample = data[1]
    # The field of 64 px is the whole volume.
    assert sample["box"].tolist() == pytest.approx([20 / 64, 24 / 64, 40 / 64, 40 / 64])
    assert float(sample["box_weight"]) == 1
    assert float(data[0]["box_weight"]) == 0


def batch_of(data, config, generator_seed=0, **strengths):
    """The augmented batch of slice 20 of each study."""
    still = dict.fromkeys(type(config.augment).model_fields, 0.0)
    config = config.model_copy(
        update={"augment": config.augment.model_copy(update=still | strengths)}
    )
    samples = [data[20], data[60], data[100]]
    batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    generator = torch.Generator().manual_seed(generator_seed)
    return batch, augment_batch(batch, config, generator)


def test_no_strength_changes_nothing(data, tiny):
    before, after = batch_of(data, tiny)
    assert torch.allclose(after["stack"], before["stack"].float(), atol=1e-3)
    assert torch.allclose(after["box"], before["box"], atol=1e-6)


def test_flip_moves_stack_and_box(data, tiny):
    before, after = batch_of(data, tiny, flip_x=1.0)
    assert torch.allclose(after["stack"], before["stack"].float().flip(-1), atol=1e-3)
    x0, y0, x1, y1 = before["box"].T
    assert torch.allclose(after["box"], torch.stack([1 - x1, y0, 1 - x0, y1], dim=1), atol=1e-6)


def test_a_vertebra_network_also_learns_from_stacks_seen_from_the_feet(config):
    still = dict.fromkeys(type(config.vertebra.augment).model_fields, 0.0)
    still = config.vertebra.augment.model_copy(update=still)
    windows = ((-500.0, 1500.0), (-100.0, 300.0))
    network = config.vertebra.model_copy(update={"augment": still, "windows": windows})
    stack = torch.randint(0, 256, (64, 1, 10, 8, 8), dtype=torch.uint8)
    for share, few, many in ((0.0, 0, 0), (0.5, 16, 48), (1.0, 64, 64)):
        turned = network.model_copy(update={"upside_down": share})
        found = augment_batch({"stack": stack}, turned, torch.Generator().manual_seed(1))["stack"]
        planes = stack.view(64, 5, 2, 8, 8).float()
        same, other = (
            (found.view(planes.shape) - at).abs().amax(dim=(1, 2, 3, 4)) < 0.01
            for at in (planes, planes.flip(1))
        )
        assert (same ^ other).all() and few <= int(other.sum()) <= many


@pytest.mark.parametrize("strength", [{"shift_mm": 12.0}, {"scale": 0.3}, {"rotate_deg": 20.0}])
def test_the_box_follows_a_marked_square(tiny, strength):
    stack = torch.zeros(16, 1, 3, 64, 64, dtype=torch.uint8)
    stack[..., 24:40, 20:44] = 255
    box = torch.tensor([20 / 64, 24 / 64, 44 / 64, 40 / 64]).repeat(16, 1)
    still = dict.fromkeys(type(tiny.augment).model_fields, 0.0)
    config = tiny.model_copy(update={"augment": tiny.augment.model_copy(update=still | strength)})
    moved = augment_batch({"stack": stack, "box": box}, config, torch.Generator().manual_seed(3))
    assert (moved["box"] - box).abs().max() > 0.02
    for image, (x0, y0, x1, y1) in zip(
        moved["stack"][:, 0, 0] > 60, moved["box"] * 64, strict=True
    ):
        ys, xs = (torch.nonzero(image.any(dim=d)).flatten() for d in (1, 0))
        found = torch.stack([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]).float()
        assert (found - torch.stack([x0, y0, x1, y1])).abs().max() < 2.5


def test_augmentation_follows_the_generator(data, tiny):
    strengths = {"noise": 0.1, "contrast": 0.2, "brightness": 0.1, "rotate_deg": 10.0}
    one, two, other = (batch_of(data, tiny, s, **strengths)[1]["stack"] for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.min() >= 0 and one.max() <= 255


def test_draws_are_balanced_and_reproducible(data):
    first = data.draw(np.random.default_rng(5))
    assert first == data.draw(np.random.default_rng(5))
    assert first != data.draw(np.random.default_rng(6))
    studies = [data.rows[i][0] for i in first]
    assert [studies.count(s) for s in range(3)] == [12, 12, 12]


def test_draws_favor_slices_that_show_a_fracture(data):
    view = data.views[1]
    view.targets["fracture"][:, 2] = 1
    view.targets["visible"][10:16, 2] = 1
    drawn = [data.rows[i] for i in data.draw(np.random.default_rng(0))]
    rows = [r for v, r in drawn if v == 1]
    assert len(rows) == len(set(rows)) == 12
    assert sum(10 <= r < 16 for r in rows) == 6

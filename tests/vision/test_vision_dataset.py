"""Stacks: neighbors in millimeters, ends clamped, crops centered, draws reproducible."""

import numpy as np
import pytest
import torch

from cspine_kit.vision.dataset import StackDataset, StudyView, nearest_slices, spaced_slices
from cspine_kit.vision.predict import to_cached_px, to_native_px


def test_spaced_slices_are_spaced_in_mm():
    z = 50.0 - 0.5 * np.arange(100)
    chosen = spaced_slices(z, 2.0)
    assert np.allclose(np.diff(z[chosen]), -2.0)
    assert chosen[0] == 0


def test_a_coarse_study_keeps_all_its_slices_once():
    z = -3.0 * np.arange(20)
    assert spaced_slices(z, 1.0).tolist() == list(range(20))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_short_studies_have_slices(n):
    assert len(spaced_slices(-1.0 * np.arange(n), 2.0)) >= 1


def test_nearest_slices_clamps_at_both_ends():
    z = np.array([10.0, 8.0, 6.0])
    assert nearest_slices(z, np.array([99.0, 10.0, 8.9, 6.1, -50.0])).tolist() == [0, 0, 1, 2, 2]


def test_neighbors_are_chosen_by_mm_not_by_index(tiny, make_volume):
    volume = make_volume(1)
    for i in range(len(volume.z_mm)):
        volume.voxels[i] = i
    config = tiny.model_copy(update={"stack_step_mm": 4.0, "in_chans": 3})
    view = StudyView(volume, np.array([0, 20, 39]), np.full((3, 2), 31.5))
    assert view.stack(1, config)[:, 16, 16].tolist() == [18, 20, 22]
    assert view.stack(0, config)[:, 16, 16].tolist() == [0, 0, 2]
    assert view.stack(2, config)[:, 16, 16].tolist() == [37, 39, 39]


def test_a_crop_over_the_edge_is_padded(tiny, make_volume):
    volume = make_volume(1)
    view = StudyView(volume, np.array([5]), np.array([[0.0, 0.0]]))
    stack = view.stack(0, tiny)
    assert stack.shape == (3, 32, 32)
    assert (stack[:, :15, :15] == 0).all() and (stack[:, 17:, 17:] > 0).all()


def test_native_and_cached_pixels_are_inverse(make_volume):
    volume = make_volume(1)
    points = np.array([[0.0, 0.0], [31.5, 7.25]])
    native = to_native_px(volume, points)
    assert native[0].tolist() == [10.0, 20.0]
    assert np.allclose(to_cached_px(volume, native), points)


def dataset(tiny, make_volume, train=True):
    views = []
    for seed in range(3):
        volume = make_volume(seed)
        rows = np.arange(len(volume.z_mm))
        targets = {
            "visible": np.zeros((len(rows), 7), np.float32),
            "box": np.tile(np.float32([24, 20, 40, 44]), (len(rows), 1)),
        }
        targets["box"][0] = np.nan
        views.append(StudyView(volume, rows, np.full((len(rows), 2), 31.5), targets))
    return StackDataset(views, tiny, train=train)


def test_box_becomes_shares_of_the_crop(tiny, make_volume):
    sample = dataset(tiny, make_volume, train=False)[1]
    # The crop starts at pixel 0 (64 px field around 31.5) and is halved to 32 px.
    assert sample["box"].tolist() == pytest.approx([20 / 64, 24 / 64, 44 / 64, 40 / 64])
    assert float(sample["box_weight"]) == 1
    assert float(dataset(tiny, make_volume, train=False)[0]["box_weight"]) == 0


def test_box_moves_with_the_stack(tiny, make_volume):
    config = tiny.model_copy(
        update={"augment": tiny.augment.model_copy(update={"flip_x": 1.0, "noise": 0.0,
                "rotate_deg": 0.0, "shift_mm": 0.0, "scale": 0.0})}
    )  # fmt: skip
    plain, flipped = dataset(config, make_volume, False)[1], dataset(config, make_volume)[1]
    assert flipped["box"][0] == pytest.approx(1 - float(plain["box"][2]))
    assert flipped["box"][1] == pytest.approx(float(plain["box"][1]))


def test_draws_are_balanced_and_reproducible(tiny, make_volume):
    data = dataset(tiny, make_volume)
    first = data.draw(12, np.random.default_rng(5))
    assert first == data.draw(12, np.random.default_rng(5))
    assert first != data.draw(12, np.random.default_rng(6))
    studies = [data.rows[i][0] for i in first]
    assert [studies.count(s) for s in range(3)] == [12, 12, 12]
    torch.manual_seed(0)
    one = data[first[0]]["stack"]
    torch.manual_seed(0)
    assert torch.equal(one, data[first[0]]["stack"])

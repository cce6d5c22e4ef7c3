"""Ordered levels: whatever the scores say, C1..C7 come in order, seven of them."""

import numpy as np
import pytest

from cspine_kit.core.errors import DataError
from cspine_kit.data.crops import crop_centers, decode_levels, decode_path, spine_slices


def scores(n_per_level=8, above=5, below=5, strength=3.0):
    """Clean logits of a scan that shows all seven levels, each overlapping the next by a slice."""
    n = above + 7 * n_per_level + below
    logits = np.full((n, 7), -strength)
    for level in range(7):
        first = above + level * n_per_level
        logits[first : first + n_per_level + 1, level] = strength
    return logits


def decode(logits, spacing=2.0):
    n = len(logits)
    z = 100.0 - spacing * np.arange(n)
    boxes = np.column_stack([np.full(n, 40.0), np.arange(n), np.full(n, 80.0), np.arange(n) + 40])
    return decode_levels(z, logits, boxes, 3 * np.arange(n))


def test_clean_scores_give_clean_levels():
    crops = decode(scores())
    assert crops["level"].tolist() == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    assert (crops["source"] == "model").all()
    assert crops["z0"].tolist() == [3 * (5 + 8 * k) for k in range(7)]
    assert (crops["z1"] - crops["z0"] == 3 * 8).all()
    assert np.allclose(np.diff(crops["center_z_mm"]), -16, atol=1)
    assert np.allclose(crops["center_y_px"], 60)


def test_order_survives_a_confident_lie():
    logits = scores()
    logits[50:53, 0] = 30.0
    path = decode_path(logits)
    assert (np.diff(path) >= 0).all()
    centers = decode(logits)["center_z_mm"].to_numpy()
    assert (np.diff(centers) < 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_order_survives_noise(seed):
    logits = scores(strength=1.0) + np.random.default_rng(seed).normal(0, 2, (66, 7))
    crops = decode(logits)
    assert len(crops) == 7
    assert (np.diff(crops["center_z_mm"]) < 0).all()
    assert np.isfinite(crops["center_x_px"]).all()
    assert ((crops["z1"] >= crops["z0"]) & (crops["z0"] >= 0)).all()


def test_a_scan_that_ends_at_c5_has_interpolated_levels_below():
    crops = decode(scores()[: 5 + 5 * 8])
    assert crops["source"].tolist() == ["model"] * 5 + ["interpolated"] * 2
    assert (np.diff(crops["center_z_mm"]) < 0).all()
    assert (crops["confidence"][5:] == 0).all()


def test_a_hidden_level_is_put_between_its_neighbors():
    logits = scores()
    logits[:, 3] = -6.0
    crops = decode(logits).set_index("level")
    assert crops.loc["C4", "source"] == "interpolated"
    z = crops["center_z_mm"]
    assert z["C3"] > z["C4"] > z["C5"]


@pytest.mark.parametrize("n", [1, 3])
def test_tiny_studies_still_have_seven_levels(n):
    logits = np.full((n, 7), -3.0)
    logits[:, 4] = 2.0
    crops = decode(logits)
    assert len(crops) == 7
    assert crops.set_index("level").loc["C5", "source"] == "model"
    assert crops["z0"].max() <= 3 * (n - 1)


def test_no_neck_is_an_error():
    with pytest.raises(DataError, match="neck"):
        decode(np.full((10, 7), -4.0))
    with pytest.raises(DataError, match="no slice"):
        decode(np.zeros((0, 7)))


def test_centers_follow_the_spine_and_slices_stay_inside():
    crops = decode(scores())
    z = crops["center_z_mm"].to_numpy()
    centers = crop_centers(crops, z)
    assert np.allclose(centers, crops[["center_y_px", "center_x_px"]])
    beyond = crop_centers(crops, np.array([1e3, -1e3]))
    assert np.allclose(beyond, centers[[0, -1]])
    chosen = spine_slices(crops, np.arange(0, 400, 7))
    assert chosen.min() >= crops["z0"].min() and chosen.max() <= crops["z1"].max()


def test_a_ring_around_the_dens_is_not_swallowed_by_c2():
    logits = scores()
    logits[5 : 5 + 9, 1] = 4.0
    crops = decode(logits).set_index("level")
    assert crops.loc["C1", "source"] == "model"
    assert (crops.loc["C1", "z0"], crops.loc["C1", "z1"]) == (15, 39)
    assert crops.loc["C2", "z0"] <= 24


def test_an_unsure_network_is_still_decoded_with_low_confidence():
    crops = decode(scores() - 4.0)
    sure = decode(scores())
    assert crops["z0"].tolist() == sure["z0"].tolist()
    assert (crops["confidence"] < 0.5).all() and (crops["source"] == "model").all()

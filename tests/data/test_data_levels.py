"""Ordered levels: whatever the scores say, C1..C7 come in order, seven of them, well spaced."""

import numpy as np
import pytest

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.errors import DataError
from cspine_kit.data.crops import crop_centers, spine_slices
from cspine_kit.data.levels import LEVEL_EXTENT_MM, LEVEL_PITCH_MM, decode_chain, decode_levels

TOP_MM = 100.0


def neck(size=1.0, spacing=2.0, strength=3.0, margin=30.0):
    """Positions, clean logits and true centers of a scan that shows all seven levels."""
    centers = TOP_MM - margin - size * np.cumsum([0.0, *LEVEL_PITCH_MM])
    z = np.arange(TOP_MM, centers[-1] - margin, -spacing)
    shown = np.abs(z[:, None] - centers) <= size * LEVEL_EXTENT_MM / 2
    return z, np.where(shown, strength, -strength), centers


def decode(z, logits):
    n = len(z)
    boxes = np.column_stack([np.full(n, 40.0), np.arange(n), np.full(n, 80.0), np.arange(n) + 40])
    return decode_levels(z, logits, boxes, 3 * np.arange(n))


@pytest.mark.parametrize("size", [0.85, 1.0, 1.25])
@pytest.mark.parametrize("spacing", [0.6, 3.0])
def test_clean_scores_give_clean_levels(size, spacing):
    z, logits, centers = neck(size, spacing)
    crops = decode(z, logits)
    assert crops["level"].tolist() == list(LEVELS)
    assert (crops["source"] == "model").all()
    assert np.abs(crops["center_z_mm"] - centers).max() < 2.0
    shown = logits > 0
    assert crops["z0"].tolist() == [3 * int(np.flatnonzero(column)[0]) for column in shown.T]
    assert crops["z1"].tolist() == [3 * int(np.flatnonzero(column)[-1]) for column in shown.T]
    assert np.allclose(crops["center_y_px"], 60)


def test_levels_that_look_alike_are_placed_by_counting():
    z, logits, centers = neck(1.15)
    alike = logits[:, 2:6].max(axis=1)
    logits[:, 2:6] = 0.3 * alike[:, None]
    assert np.abs(decode_chain(z, logits).center_mm - centers).max() < 5.0


def test_order_survives_a_confident_lie():
    z, logits, centers = neck()
    logits[50:53, 0] = 30.0
    found = decode(z, logits)["center_z_mm"].to_numpy()
    assert (np.diff(found) < 0).all()
    assert np.abs(found - centers).max() < 4.0


def test_noise_alone_still_gives_ordered_levels():
    noise = np.random.default_rng(3)
    z = np.arange(0.0, -200.0, -2.5)
    for _ in range(20):
        chain = decode_chain(z, noise.normal(0, 4, (len(z), 7)))
        assert np.isfinite(chain.center_mm).all()
        assert (np.diff(chain.center_mm) < -3.0).all()
        assert (chain.spread_mm > 0).all()


def test_a_clear_study_is_surer_than_a_vague_one():
    z, logits, _ = neck()
    assert (decode_chain(z, logits).spread_mm < decode_chain(z, 0.2 * logits).spread_mm).all()


def test_a_scan_that_ends_below_c5_has_interpolated_levels_below():
    z, logits, centers = neck()
    kept = z > centers[4] - 4.0
    crops = decode(z[kept], logits[kept])
    assert (crops["source"][:4] == "model").all()
    assert crops["source"][6] == "interpolated"
    assert crops["confidence"][6] == 0
    assert (np.diff(crops["center_z_mm"]) < 0).all()
    assert np.abs(crops["center_z_mm"] - centers).max() < 8.0
    assert crops["z1"].max() <= 3 * (kept.sum() - 1)


def test_a_hidden_level_is_put_between_its_neighbors():
    z, logits, centers = neck()
    logits[:, 3] = -6.0
    crops = decode(z, logits)
    assert crops["source"][3] == "interpolated"
    assert abs(crops["center_z_mm"][3] - centers[3]) < 4.0


@pytest.mark.parametrize("n", [1, 3])
def test_tiny_studies_still_have_seven_levels(n):
    z = 100.0 - 2.0 * np.arange(n)
    logits = np.full((n, 7), -3.0)
    logits[:, 4] = 2.0
    crops = decode(z, logits)
    assert len(crops) == 7
    assert crops["source"][4] == "model"
    assert abs(crops["center_z_mm"][4] - z.mean()) < LEVEL_EXTENT_MM[4] / 2
    assert np.isfinite(crops["center_z_mm"]).all()
    assert crops["z0"].min() >= 0 and crops["z1"].max() <= 3 * (n - 1)


def test_no_neck_is_an_error():
    with pytest.raises(DataError, match="neck"):
        decode(np.arange(0.0, -20.0, -2.0), np.full((10, 7), -4.0))
    with pytest.raises(DataError, match="no slice"):
        decode(np.zeros(0), np.zeros((0, 7)))


def test_centers_follow_the_spine_and_slices_stay_inside():
    z, logits, _ = neck()
    crops = decode(z, logits)
    at = crops["center_z_mm"].to_numpy()
    centers = crop_centers(crops, at)
    assert np.allclose(centers, crops[["center_y_px", "center_x_px"]])
    assert np.allclose(crop_centers(crops, np.array([1e3, -1e3])), centers[[0, -1]])
    chosen = spine_slices(crops, np.arange(0, 3 * len(z), 7))
    assert chosen.min() >= crops["z0"].min() and chosen.max() <= crops["z1"].max()


def test_an_unsure_network_is_still_decoded_with_low_confidence():
    z, logits, _ = neck()
    unsure, sure = decode(z, logits - 4.0), decode(z, logits)
    assert np.abs(unsure["center_z_mm"] - sure["center_z_mm"]).max() < 3.0
    assert (unsure["confidence"] < 0.5).all() and (unsure["source"] == "model").all()

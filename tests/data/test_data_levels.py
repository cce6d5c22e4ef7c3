"""Ordered levels: whatever the scores say, C1..C7 come in order, seven of them, well spaced."""

import numpy as np
import pytest

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.errors import DataError
from cspine_kit.data.centers import LEVEL_EXTENT_MM, LEVEL_PITCH_MM, place_centers
from cspine_kit.data.levels import decode_levels
from cspine_kit.data.spine import shows_spine, spine_centers

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
    return decode_levels(z, logits, boxes)


@pytest.mark.parametrize("size", [0.85, 1.0, 1.25])
@pytest.mark.parametrize("spacing", [0.6, 3.0])
def test_clean_scores_give_clean_levels(size, spacing):
    z, logits, centers = neck(size, spacing)
    levels = decode(z, logits)
    assert levels["level"].tolist() == list(LEVELS)
    assert (levels["source"] == "model").all()
    assert np.abs(levels["center_z_mm"] - centers).max() < 2.0
    shown = logits > 0
    assert levels["present"].all()
    assert levels["z_top_mm"].tolist() == [z[column][0] for column in shown.T]
    assert levels["z_bottom_mm"].tolist() == [z[column][-1] for column in shown.T]
    assert np.allclose(levels["center_y_mm"], 60)


def test_levels_that_look_alike_are_placed_by_counting():
    z, logits, centers = neck(1.15)
    alike = logits[:, 2:6].max(axis=1)
    logits[:, 2:6] = 0.3 * alike[:, None]
    assert np.abs(place_centers(z, logits).center_mm - centers).max() < 5.0


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
        chain = place_centers(z, noise.normal(0, 4, (len(z), 7)))
        assert np.isfinite(chain.center_mm).all()
        steps = np.diff(chain.center_mm) * (-1 if not chain.upside_down else 1)
        assert (steps > 3.0).all()
        assert (chain.spread_mm > 0).all()


def test_a_clear_study_is_surer_than_a_vague_one():
    z, logits, _ = neck()
    assert (place_centers(z, logits).spread_mm < place_centers(z, 0.2 * logits).spread_mm).all()


def test_a_scan_that_ends_below_c5_lacks_c6_and_c7():
    z, logits, centers = neck()
    kept = z > centers[4] - 6.0
    levels = decode(z[kept], logits[kept])
    assert levels["present"].tolist() == [True] * 5 + [False] * 2
    assert levels["source"].tolist() == ["model"] * 5 + ["absent"] * 2
    assert (levels["confidence"][5:] == 0).all() and (levels["confidence"][:5] > 0.8).all()
    assert (np.diff(levels["center_z_mm"]) < 0).all()
    assert np.abs(levels["center_z_mm"] - centers).max() < 8.0
    assert levels.loc[:4, "z_bottom_mm"].min() >= z[kept][-1]
    assert (levels["z_top_mm"] > levels["z_bottom_mm"]).all()


def test_a_scan_that_starts_inside_c2_lacks_c1():
    z, logits, centers = neck()
    kept = z < centers[1] + 2.0
    levels = decode(z[kept], logits[kept])
    assert levels["present"].tolist() == [False] + [True] * 6
    assert np.abs(levels["center_z_mm"] - centers).max() < 5.0


@pytest.mark.parametrize("part", ["head", "chest"])
def test_a_scan_of_something_else_shows_no_level(part):
    centers = neck()[2]
    top = centers[0] + 158.0 if part == "head" else centers[6] - 30.0
    far = top - 2.0 * np.arange(70)
    for logit in (-4.0, -2.0):
        levels = decode(far, np.full((len(far), 7), logit))
        assert len(levels) == 7 and not levels["present"].any()
        assert (levels["confidence"] == 0).all() and np.isfinite(levels["center_z_mm"]).all()


def test_the_whole_trunk_has_its_neck_at_its_upper_end():
    z, logits, centers = neck()
    step = z[0] - z[1]
    long_z = z[0] - step * np.arange(300)
    long = np.full((300, 7), -4.0)
    long[: len(z)] = logits
    long[len(z) :, 5:] = -0.5  # the thorax looks a little like C6 and C7
    levels = decode(long_z, long)
    assert levels["present"].all()
    assert np.abs(levels["center_z_mm"] - centers).max() < 3.0


@pytest.mark.parametrize("wrong", [0.45, 2.0])
def test_a_wrong_distance_of_slices_does_not_hide_a_clear_neck(wrong):
    z, logits, centers = neck(strength=4.0)
    levels = decode(wrong * z, logits)
    assert levels["present"].all()
    assert np.abs(levels["center_z_mm"] - wrong * centers).max() < wrong * 6.0


def test_levels_of_a_scan_upside_down_are_where_they_are():
    z, logits, centers = neck()
    turned = z[0] + z[-1] - centers
    levels = decode(z, logits[::-1])
    assert levels["present"].all()
    assert np.abs(levels["center_z_mm"] - turned).max() < 3.0
    assert place_centers(z, logits[::-1]).upside_down and not place_centers(z, logits).upside_down


def test_confidence_tells_a_clear_scan_from_a_vague_one():
    z, logits, _ = neck()
    rng = np.random.default_rng(1)
    clear = decode(z, logits)["confidence"]
    vague = decode(z, 0.1 * logits + rng.normal(0, 1.0, logits.shape))["confidence"]
    assert clear.min() > 0.9 and vague.mean() < clear.mean() - 0.05


def test_a_hidden_level_is_put_between_its_neighbors():
    z, logits, centers = neck()
    logits[:, 3] = -6.0
    levels = decode(z, logits)
    assert levels["source"][3] == "interpolated"
    assert abs(levels["center_z_mm"][3] - centers[3]) < 4.0


@pytest.mark.parametrize("n", [1, 3])
def test_tiny_studies_show_what_they_show(n):
    z = 100.0 - 2.0 * np.arange(n)
    logits = np.full((n, 7), -5.0)
    logits[:, 4] = 5.0
    levels = decode(z, logits)
    assert levels["source"].tolist() == ["absent"] * 4 + ["model"] + ["absent"] * 2
    assert abs(levels["center_z_mm"][4] - z.mean()) < LEVEL_EXTENT_MM[4] / 2
    assert np.isfinite(levels["center_z_mm"]).all()
    assert levels["z_top_mm"][4] == z[0] and levels["z_bottom_mm"][4] == z[-1]


def test_no_slice_is_an_error():
    with pytest.raises(DataError, match="no slice"):
        decode(np.zeros(0), np.zeros((0, 7)))


def test_centers_follow_the_spine_and_slices_stay_inside():
    z, logits, _ = neck()
    levels = decode(z, logits)
    at = levels["center_z_mm"].to_numpy()
    centers = spine_centers(levels, at)
    assert np.allclose(centers, levels[["center_y_mm", "center_x_mm"]])
    assert np.allclose(spine_centers(levels, np.array([1e3, -1e3])), centers[[0, -1]])
    chosen = z[shows_spine(levels, z)]
    assert chosen[0] == levels["z_top_mm"][0] and chosen[-1] == levels["z_bottom_mm"][6]


def test_an_unsure_network_is_still_decoded():
    z, logits, _ = neck()
    unsure, sure = decode(z, logits - 4.0), decode(z, logits)
    assert np.abs(unsure["center_z_mm"] - sure["center_z_mm"]).max() < 3.0
    assert unsure["present"].all() and (unsure["source"] == "model").all()

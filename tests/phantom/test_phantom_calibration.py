"""Drawn labels against the real training table's prevalence and correlation."""

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.phantom.anatomy.spine import draw_neck
from cspine_kit.phantom.calibration import PATTERN_COUNTS, draw_labels
from cspine_kit.phantom.competition.levels import level_rows
from cspine_kit.phantom.scanner.scan import draw_scan


def test_patterns_hold_the_published_counts():
    patterns = np.array([[int(c) for c in p] for p in PATTERN_COUNTS])
    counts = np.array(list(PATTERN_COUNTS.values()))
    assert counts.sum() == 2019
    assert list(counts @ patterns) == [146, 285, 73, 108, 162, 277, 393]
    assert counts[patterns.any(axis=1)].sum() == 961


def test_drawn_labels_match_within_sampling_error():
    drawn = draw_labels(np.random.default_rng(5), 300)
    expected = np.array([146, 285, 73, 108, 162, 277, 393]) / 2019
    error = np.sqrt(expected * (1 - expected) / len(drawn))
    assert (np.abs(drawn.mean(axis=0) - expected) < 2 * error).all()
    assert np.corrcoef(drawn.T)[4, 5] > 0.2  # C5 and C6 break together (0.36 in the real table)


def test_patterns_are_those_of_the_real_table(real_data):
    train = pd.read_csv(real_data / "train.csv")
    real = train[list(LEVELS)].astype(str).agg("".join, axis=1).value_counts()
    assert real.to_dict() == PATTERN_COUNTS


def test_every_encoding_holds_the_whole_hu_range():
    neck = draw_neck(np.random.default_rng(0), variety=1.0)
    hu = np.array([-1024, -100, 0, 60, 1500, 2900], np.int16).reshape(1, 1, 6)
    kinds = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        difficulty = "real" if seed % 2 else "easy"
        scan = draw_scan(rng, neck, size_px=32, difficulty=difficulty, place=seed / 60)
        stored = scan.digitize(hu).astype(int)
        low, high = (-(1 << (scan.bits - 1)), 1 << (scan.bits - 1))
        assert stored.min() >= (low if scan.signed else 0)
        assert stored.max() < (high if scan.signed else 2 * high)
        np.testing.assert_array_equal(stored + scan.intercept, hu)
        kinds.add((scan.signed, scan.bits, scan.intercept))
    assert len(kinds) >= 4


def test_geometry_follows_the_real_headers(real_data):
    headers = pd.read_parquet(real_data / "slice_headers.parquet")
    z = headers.groupby("StudyInstanceUID").ImagePositionPatient_z
    length = z.max() - z.min()
    real = {"slices": z.size(), "length": length, "spacing": length / (z.size() - 1)}
    drawn = {"slices": [], "length": [], "spacing": []}
    neck = draw_neck(np.random.default_rng(0), variety=0.0)
    for seed in range(4000):
        rng = np.random.default_rng(seed)
        place = (seed + 0.5) / 4000
        scan = draw_scan(rng, neck, size_px=512, difficulty="real", place=place)
        count, step = len(scan.grid.z), scan.spacing_mm[0]
        for name, value in (("slices", count), ("length", (count - 1) * step), ("spacing", step)):
            drawn[name].append(value)
    for name, values in real.items():
        for q in (0.1, 0.25, 0.5, 0.75, 0.9):
            here, there = np.quantile(drawn[name], q), np.quantile(values, q)
            assert abs(here / there - 1) <= 0.10, (name, q, here, there)


@pytest.fixture(scope="module")
def levels():
    """Per study: tops, bottoms (7,) of C1..C7, first and last slice, in mm of the frame."""
    found = []
    for seed in range(60):
        neck = draw_neck(np.random.default_rng([9, seed]))
        rng = np.random.default_rng([3, seed])
        scan = draw_scan(rng, neck, size_px=64, difficulty="real", place=(seed + 0.5) / 60)
        rows = level_rows(neck, scan, turned=False)
        frame = float(scan.axes[2] @ np.array(scan.origin_mm))
        ends = [[row[name] for row in rows] for name in ("z_top_mm", "z_bottom_mm")]
        found.append([*np.array(ends), scan.grid.z[0] + frame, scan.grid.z[-1] + frame])
    return [np.array(part) for part in zip(*found, strict=True)]


def test_levels_are_as_tall_and_as_far_apart_as_the_real_ones(levels):
    """Medians of 1,922 training studies whose levels a public 3D U-Net placed."""
    top, bottom, *_ = levels
    extents = [25.6, 42.8, 25.6, 27.1, 29.2, 29.2, 31.2]
    np.testing.assert_allclose(np.median(top - bottom, axis=0), extents, atol=2.0)
    pitches = -np.diff((top + bottom) / 2, axis=1)
    real_pitches = [12.2, 23.1, 15.3, 15.1, 14.8, 14.6]
    np.testing.assert_allclose(np.median(pitches, axis=0), real_pitches, atol=1.0)


def test_scans_hold_the_neck(levels):
    top, bottom, first, last = levels
    assert (top[:, 0] < first).all()
    assert (bottom[:, 6] > last).all()


def test_scans_reach_as_far_beyond_the_neck_as_the_real_ones():
    above, below = [], []
    for seed in range(300):
        neck = draw_neck(np.random.default_rng([9, seed]))
        rng = np.random.default_rng([3, seed])
        scan = draw_scan(rng, neck, size_px=64, difficulty="real", place=(seed + 0.5) / 300)
        above.append(scan.grid.z[0] - neck.bones["C1"].position[2])
        below.append(neck.bones["C7"].position[2] - scan.grid.z[-1])
    assert np.quantile(above, [0.1, 0.5]) == pytest.approx([31, 47.8], abs=6)
    assert np.quantile(below, [0.1, 0.5]) == pytest.approx([33, 51.1], abs=6)


def test_a_tenth_of_the_scans_run_up_in_z():
    neck = draw_neck(np.random.default_rng(0))
    for difficulty in ("easy", "real"):
        reversed_ones = [
            draw_scan(
                np.random.default_rng(seed), neck, size_px=64, difficulty=difficulty, place=0.5
            ).reversed
            for seed in range(1500)
        ]
        assert np.mean(reversed_ones) == pytest.approx(197 / 2019, abs=0.02)

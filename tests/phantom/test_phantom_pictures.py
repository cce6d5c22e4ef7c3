"""What is drawn: injuries change only their vertebra, mimics hold together."""

import numpy as np
import pytest

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.phantom.annotators.boxes import draw_boxes
from cspine_kit.phantom.competition.write import StudyPlan, render_study
from cspine_kit.phantom.injuries.fractures import KINDS


def study(labels, *, difficulty="easy", seed=4, size_px=96):
    plan = StudyPlan("1.2.3", "train", labels, masked=False, boxed=False, seed=seed)
    return render_study(plan, size_px=size_px, difficulty=difficulty)


@pytest.fixture(scope="module")
def healthy():
    return study((0,) * 7)


@pytest.mark.parametrize("index", range(7))
def test_an_easy_break_changes_its_own_vertebra_and_is_plain(healthy, index):
    labels = tuple(int(k == index) for k in range(7))
    hurt = study(labels)
    assert set(np.unique(hurt.damage)) == {0, index + 1}
    assert hurt.truth["injuries"] == {LEVELS[index]: "split"}
    changed = np.abs(hurt.hu.astype(int) - healthy.hu) > 150
    level = (healthy.labels == index + 1) | (hurt.labels == index + 1)
    slices = level.any(axis=(1, 2))
    assert changed[slices].any(axis=(1, 2)).mean() > 0.5
    beside = np.convolve(slices, [1, 1, 1, 1, 1], mode="same") > 0  # voxels partly bone
    assert not changed[~beside].any()


def test_levels_lie_in_order_with_plausible_heights(healthy):
    z = np.arange(len(healthy.hu)) * healthy.scan.spacing_mm[0]
    centers = [np.average(z, weights=(healthy.labels == k).sum(axis=(1, 2))) for k in range(1, 8)]
    steps = np.diff(centers)
    assert (steps > 9).all()
    assert (steps < 26).all()


@pytest.mark.parametrize("level", LEVELS)
def test_every_kind_of_injury_breaks_something(level):
    index = LEVELS.index(level)
    labels = tuple(int(k == index) for k in range(7))
    names = set()
    for seed in range(3):
        hurt = study(labels, difficulty="real", seed=seed, size_px=64)
        assert (hurt.damage == index + 1).any()
        assert set(np.unique(hurt.damage)) <= {0, index + 1}
        names |= set(hurt.truth["injuries"][level].removesuffix(" (line)").split("+"))
    assert names <= {kind.__name__ for kind in KINDS[level]}


def test_boxes_stay_inside_and_follow_file_numbers():
    damage = np.zeros((20, 50, 60), np.uint8)
    damage[5:12, 2:9, 40:59] = 3
    for seed in range(20):
        order = list(range(20))[:: -1 if seed % 2 else 1]
        boxes = np.array(draw_boxes(np.random.default_rng(seed), damage, order, pixel_mm=0.5))
        assert len(boxes) >= 1
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 0] + boxes[:, 2] <= 60).all()
        assert (boxes[:, 1] + boxes[:, 3] <= 50).all()
        assert len(set(boxes[:, 4])) == len(boxes)
        for number in boxes[:, 4]:
            assert damage[order[int(number) - 1]].any()

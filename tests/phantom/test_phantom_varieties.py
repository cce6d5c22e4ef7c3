"""Studies that are no plain, whole neck, and the truth about the levels they show."""

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import PhantomConfig
from cspine_kit.phantom.competition.varieties import HIDDEN
from cspine_kit.phantom.competition.write import (
    StudyPlan,
    plan_studies,
    render_study,
    write_competition,
)

SIZE_PX = 96


def study(variety, *, seed=4, difficulty="easy", size_px=SIZE_PX):
    labels = (0,) * 7
    plan = StudyPlan(
        "1.2.3", "train", labels, masked=False, boxed=False, seed=seed, variety=variety
    )
    return render_study(plan, size_px=size_px, difficulty=difficulty)


@pytest.fixture(scope="module")
def studies():
    return {variety: study(variety) for variety in ("", *HIDDEN)}


def shown_mm(found, label):
    """z of the slices that show a label."""
    frame = float(found.scan.axes[2] @ np.array(found.scan.origin_mm))
    return found.scan.grid.z[(found.labels == label).any(axis=(1, 2))] + frame


@pytest.mark.parametrize("variety", ["", *HIDDEN])
def test_the_truth_is_what_the_voxels_show(studies, variety):
    found = studies[variety]
    rows = found.truth["levels"]
    assert [row["level"] for row in rows] == list(LEVELS)
    step = found.scan.spacing_mm[0]
    pixel = found.scan.spacing_mm[1]
    for label, row in enumerate(rows, start=1):
        z = shown_mm(found, label)
        assert row["present"] == (row["share_inside"] >= 0.3)
        assert row["center_z_mm"] == pytest.approx((row["z_top_mm"] + row["z_bottom_mm"]) / 2)
        assert 15 < row["z_top_mm"] - row["z_bottom_mm"] < 70
        if row["share_inside"] == 0:
            assert len(z) == 0
        elif row["share_inside"] == 1:
            assert row["z_top_mm"] == pytest.approx(z.max(), abs=step + 1)
            assert row["z_bottom_mm"] == pytest.approx(z.min(), abs=step + 1)
            ends = [
                (np.flatnonzero((found.labels == label).any(axis=axes))[[0, -1]]).mean() * pixel
                for axes in ((0, 2), (0, 1))
            ]
            assert [row["center_y_mm"], row["center_x_mm"]] == pytest.approx(ends, abs=2 * pixel)


@pytest.mark.parametrize("variety", [name for name in HIDDEN if HIDDEN[name]])
def test_a_partial_scan_misses_what_it_says(studies, variety):
    present = {row["level"] for row in studies[variety].truth["levels"] if row["present"]}
    assert not present & set(HIDDEN[variety])
    sure = {"starts_in_c2": set(LEVELS[2:]), "ends_at_c5": set(LEVELS[:4])}
    assert present >= sure.get(variety, set())


@pytest.mark.parametrize("variety", ["", "long_field", "coarse", "degenerated", "upside_down"])
def test_other_varieties_show_every_level(studies, variety):
    assert all(row["present"] for row in studies[variety].truth["levels"])


def test_an_upside_down_scan_has_c7_on_top_and_is_not_mirrored(studies):
    turned, plain = studies["upside_down"], studies[""]
    centers = [row["center_z_mm"] for row in turned.truth["levels"]]
    assert (np.diff(centers) > 0).all()
    np.testing.assert_array_equal(turned.labels, plain.labels[::-1, :, ::-1])


def test_a_long_field_holds_head_and_trunk(studies):
    long = studies["long_field"]
    extent = (len(long.scan.grid.z) - 1) * long.scan.spacing_mm[0]
    assert extent > 450
    assert {8, 12, 16} <= set(np.unique(long.labels))


def test_worn_discs_bring_bodies_together(studies):
    def length(found):
        z = [row["center_z_mm"] for row in found.truth["levels"]]
        return z[1] - z[6]

    assert length(studies["degenerated"]) < length(studies[""]) - 3


def test_coarse_slices_are_three_to_five_mm_apart(studies):
    assert 3 <= studies["coarse"].scan.spacing_mm[0] <= 5
    assert studies["coarse"].scan.thickness_mm == studies["coarse"].scan.spacing_mm[0]


def test_varieties_come_in_the_asked_share_and_change_nothing_else():
    spec = PhantomConfig(studies=60, test_studies=20, size_px=64, seed=2)
    plain = plan_studies(spec)
    mixed = plan_studies(spec.model_copy(update={"variety": 0.2}))
    names = [plan.variety for plan in mixed if plan.variety]
    assert len(names) == 16
    assert {names.count(name) for name in HIDDEN} == {2}
    assert not any(plan.variety for plan in plain)
    for before, after in zip(plain, mixed, strict=True):
        if not after.variety:
            assert before == after
        hidden = [LEVELS.index(level) for level in HIDDEN.get(after.variety, ())]
        assert not any(after.labels[k] for k in hidden)


def test_levels_are_written_for_training_and_test(tmp_path):
    spec = PhantomConfig(
        studies=2, test_studies=2, size_px=48, difficulty="easy", masked=1.0, variety=1.0, seed=6
    )
    competition = write_competition(tmp_path / "c", spec, jobs=1)
    table = pd.read_csv(tmp_path / "c" / "truth" / "levels.csv")
    assert len(table) == 4 * 7
    assert list(table["split"].value_counts()) == [14, 14]
    assert set(table["variety"]) <= set(HIDDEN)
    listed = pd.read_csv(competition.train_csv)["StudyInstanceUID"]
    for uid in listed:
        shown = table[(table["study_uid"] == uid)]["share_inside"].any()
        assert competition.segmentation(uid).exists() == shown

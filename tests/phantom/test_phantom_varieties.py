"""Studies that are no plain, whole neck, and the truth about the levels they show."""

from typing import get_args

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydantic import ValidationError

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import USUAL_VARIETIES, PhantomConfig
from cspine_kit.core.config.competition import Variety
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.phantom.anatomy.shapes import Grid
from cspine_kit.phantom.anatomy.spine import draw_neck
from cspine_kit.phantom.anatomy.tissue import draw_body
from cspine_kit.phantom.annotators.masks import write_nifti
from cspine_kit.phantom.competition.varieties import HIDDEN, POSTURE_DEG, STATURE, patient
from cspine_kit.phantom.competition.write import (
    StudyPlan,
    plan_studies,
    render_study,
    write_competition,
)
from cspine_kit.phantom.scanner.files import write_dicom

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
    sure = {
        "starts_in_c2": set(LEVELS[2:]),
        "ends_at_c5": set(LEVELS[:4]),
        "short_field": set(LEVELS[2:5]),
    }
    assert present >= sure.get(variety, set())


@pytest.mark.parametrize("variety", [name for name in ("", *HIDDEN) if not HIDDEN.get(name)])
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


def length(found):
    """C2 to C7 in mm."""
    z = [row["center_z_mm"] for row in found.truth["levels"]]
    return z[1] - z[6]


def test_worn_discs_bring_bodies_together(studies):
    assert length(studies["degenerated"]) < length(studies[""]) - 3


def test_small_and_tall_patients_are_so():
    for variety, (low, high) in STATURE.items():
        drawn = [patient(np.random.default_rng(seed), variety)[0] for seed in range(40)]
        assert low <= min(drawn) < max(drawn) <= high
        mean, other = (length(study("", seed=4)), length(study(variety, seed=4)))
        assert (other < mean) == (variety == "small")


def test_a_tilted_neck_leans_otherwise_than_the_plain_one(studies):
    stature, posture = patient(np.random.default_rng(3), "tilted")
    assert stature is None and (np.abs(posture) <= POSTURE_DEG).all() and any(posture)
    assert patient(np.random.default_rng(3), "prone") == (None, (0.0, 0.0, 0.0))
    straight, leaning = (
        draw_neck(np.random.default_rng(1), posture=(lean, 0.0, 0.0)) for lean in (0.0, 20.0)
    )
    (_, y, z), (_, y_leaning, z_leaning) = (
        np.subtract(neck.axes["C2"][0], neck.axes["C7"][0]) for neck in (straight, leaning)
    )
    turned = np.degrees(np.arctan2(-y_leaning, z_leaning) - np.arctan2(-y, z))
    assert turned == pytest.approx(20.0, abs=1.0)


def test_a_head_and_neck_scan_holds_the_skull_and_c7(studies):
    found = studies["head_and_neck"]
    z = found.scan.grid.z
    c1, c7 = (shown_mm(found, label) for label in (1, 7))
    frame = float(found.scan.axes[2] @ np.array(found.scan.origin_mm))
    assert z[0] + frame > c1.max() + 80 and z[-1] + frame < c7.min()


@pytest.mark.parametrize("files", ["dicom", "nifti"])
def test_a_prone_patient_is_read_as_one_on_the_back(studies, tmp_path, files):
    """The files hold rows and columns the other way round and say so; the reader turns them."""
    found = studies["prone"]
    scan = found.scan
    assert scan.prone and not studies[""].scan.prone
    if files == "nifti":
        write_nifti(tmp_path / "scan.nii", scan, found.hu)
    else:
        write_dicom(tmp_path, "1.2.3", scan, scan.digitize(found.hu))
        first = pydicom.dcmread(tmp_path / "1.dcm")
        assert first.ImageOrientationPatient[0] == -1 and first.ImageOrientationPatient[4] == -1
    read = read_study(tmp_path)
    assert not read.as_stored and read.problems == ("reoriented",)
    np.testing.assert_array_equal(np.maximum(read.hu, -1024), np.maximum(found.hu, -1024))
    row, corner = found.truth["levels"][3], (scan.grid.x[0], scan.grid.y[0])
    at = read.patient_mm(*(row[f"center_{axis}_mm"] for axis in "zyx"))
    there = np.add(corner, [row["center_x_mm"], row["center_y_mm"]]) + scan.origin_mm[:2]
    assert at[:2] == pytest.approx(there, abs=0.01)


def test_the_table_lies_before_a_prone_patient():
    neck = draw_neck(np.random.default_rng(2))
    grid = Grid.make((9, 24, 24), (20.0, 10.0, 10.0), (80.0, -120.0, -120.0))

    def table_mm():
        return draw_body(np.random.default_rng(2), neck, grid, contrast=False).table_y_mm

    c1 = neck.axes["C1"][0][1]
    behind = table_mm() - c1
    neck.prone = True
    assert behind > 100 and table_mm() - c1 == pytest.approx(-behind)


def test_coarse_slices_are_three_to_five_mm_apart(studies):
    assert 3 <= studies["coarse"].scan.spacing_mm[0] <= 5
    assert studies["coarse"].scan.thickness_mm == studies["coarse"].scan.spacing_mm[0]


def test_varieties_come_in_the_asked_share_and_change_nothing_else():
    spec = PhantomConfig(studies=60, test_studies=20, size_px=64, seed=2)
    plain = plan_studies(spec)
    mixed = plan_studies(spec.model_copy(update={"variety": 0.2}))
    names = [plan.variety for plan in mixed if plan.variety]
    assert len(names) == 16
    assert {names.count(name) for name in USUAL_VARIETIES} == {2}
    assert not any(plan.variety for plan in plain)
    for before, after in zip(plain, mixed, strict=True):
        if not after.variety:
            assert before == after
        hidden = [LEVELS.index(level) for level in HIDDEN.get(after.variety, ())]
        assert not any(after.labels[k] for k in hidden)


def test_named_varieties_come_in_turn_in_training_and_in_test():
    names = ("coarse", "prone", "coarse", "tilted")
    spec = PhantomConfig(
        studies=40, test_studies=16, size_px=64, seed=2, variety=0.5, varieties=names
    )
    for split, each in (("train", 5), ("test", 2)):
        found = [plan.variety for plan in plan_studies(spec) if plan.split == split]
        counts = {name: found.count(name) for name in names}
        assert counts == {"coarse": 2 * each, "prone": each, "tilted": each}
        assert found.count("") == len(found) // 2


def test_every_variety_can_be_named_and_others_are_refused():
    assert set(get_args(Variety)) == set(HIDDEN)
    with pytest.raises(ValidationError, match=r"'prone'.*'tall'"):
        PhantomConfig(studies=1, test_studies=1, size_px=64, varieties=("pronate",))


def test_levels_are_written_for_training_and_test(tmp_path):
    spec = PhantomConfig(
        studies=2, test_studies=2, size_px=48, difficulty="easy", masked=1.0, variety=1.0, seed=6
    )
    competition = write_competition(tmp_path / "c", spec, jobs=1)
    table = pd.read_csv(tmp_path / "c" / "truth" / "levels.csv")
    assert len(table) == 4 * 7
    assert list(table["split"].value_counts()) == [14, 14]
    assert set(table["variety"]) <= set(USUAL_VARIETIES)
    listed = pd.read_csv(competition.train_csv)["StudyInstanceUID"]
    for uid in listed:
        shown = table[(table["study_uid"] == uid)]["share_inside"].any()
        assert competition.segmentation(uid).exists() == shown

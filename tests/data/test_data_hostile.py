"""Every defect of the hostile phantom ends as its manifest says."""

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.errors import CSpineError
from cspine_kit.core.paths import is_safe_uid
from cspine_kit.data.index import build_index
from cspine_kit.data.reader.dicom import read_geometry, read_study
from cspine_kit.data.reader.problems import PROBLEMS, falls_back
from cspine_kit.phantom.competition.hostile import write_hostile

EXPECTED = {
    "shuffled_names": "shuffled_files",
    "wrong_instance_number": "shuffled_instances",
    "duplicated_z": "duplicate_position",
    "missing_slices": "gap",
    "two_series": "several_series",
    "mixed_sizes": "mixed_shapes",
    "monochrome1": "monochrome1",
    "monochrome1_inverted": "monochrome1_inverted",
    "own_rescale": "mixed_rescale",
    "sign_bits_cut": "sign_extended",
    "overflow": "excess_bits",
    "no_position": "no_position",
    "some_positions": "missing_position",
    "gantry_tilt": "gantry_tilt",
    "non_square": "nonsquare_pixels",
    "three_slices": "few_slices",
    "one_slice": "few_slices",
    "truncated_file": "undecodable_pixels",
    "zero_byte_file": "unreadable_file",
    "text_file": "unreadable_file",
    "no_pixels": "no_pixels",
    "localizer": "localizer",
    "unknown_syntax": "undecodable_pixels",
    "extra_junk": "unreadable_file",
    "two_phases": "several_scans",
    "another_day": "several_scans",
    "thick_beside_thin": "several_series",
    "no_intercept": "offset_repaired",
    "sign_lost": "sign_repaired",
    "overlay": "excess_bits",
    "left_justified": "left_justified",
    "half_mirrored": "reoriented",
    "moved_center": "moved_frames",
    "sagittal": "resliced",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    competition = write_hostile(tmp_path_factory.mktemp("hostile") / "c", seed=3)
    manifest = pd.read_csv(competition.root / "manifest.csv", dtype={"study_uid": str})
    return competition, manifest.set_index("defect")


def folder_of(hostile, defect):
    competition, manifest = hostile
    return competition.images("test", manifest.loc[defect, "study_uid"])


@pytest.fixture(scope="module")
def clean(hostile):
    return read_study(folder_of(hostile, "clean"))


def test_manifest(hostile, clean):
    assert clean.problems == ()
    for defect, row in hostile[1].iterrows():
        uid = row["study_uid"]
        if row["outcome"] == "fallback" or not is_safe_uid(uid):
            with pytest.raises(CSpineError):
                read_study(hostile[0].images("test", uid))
            continue
        study = read_study(folder_of(hostile, defect))
        assert set(study.problems) <= set(PROBLEMS)
        assert not falls_back(study.problems), defect
        assert defect not in EXPECTED or EXPECTED[defect] in study.problems, defect
        assert np.all(np.diff(study.z_mm) < 0), defect
        if not np.isnan(row["slices"]):
            assert len(study.hu) == row["slices"], defect
        if row["same_as_clean"]:
            assert np.array_equal(study.hu, clean.hu), defect
            if defect != "no_position":
                assert np.allclose(study.z_mm, clean.z_mm), defect


def test_nothing_else_is_reported(hostile):
    plain = ("reversed", "windows", "signed", "jpeg_lossless", "jpeg_2000", "rle")
    for defect in (*plain, "binary_rescale", "one_folder_down", "no_meta_header", "enhanced"):
        assert read_study(folder_of(hostile, defect)).problems == (), defect
    assert read_geometry(folder_of(hostile, "reversed")).reversed


def test_mixed_sizes_are_resampled_where_they_belong(hostile, clean):
    study = read_study(folder_of(hostile, "mixed_sizes"))
    assert study.hu.shape == clean.hu.shape
    assert np.abs(study.hu.astype(int) - clean.hu).max() <= 1


def test_axial_slices_are_cut_out_of_sagittal_ones(hostile, clean):
    study = read_study(folder_of(hostile, "sagittal"))
    assert np.array_equal(study.hu, clean.hu)
    assert np.allclose(study.spacing_mm, clean.spacing_mm)


def test_what_is_no_ct_says_so(hostile):
    with pytest.raises(CSpineError, match="no CT in Hounsfield units"):
        read_geometry(folder_of(hostile, "pet"))


def test_index_survives_it(hostile):
    competition, manifest = hostile
    studies, slices, _, failures, _ = build_index(competition, {}, jobs=1)
    fallback = manifest[manifest["listed"] & (manifest["outcome"] == "fallback")]
    assert set(fallback["study_uid"]) <= set(failures)
    assert set(manifest.loc["extra_folder", ["study_uid"]]).isdisjoint(studies["study_uid"])
    assert slices.groupby("study_uid")["slice_idx"].count().min() >= 1

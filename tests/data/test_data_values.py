"""What stored values mean: sign, offset, bits and padding that a header is wrong about."""

import numpy as np
import pydicom
import pytest
from scans import dataset, neck_hu, positions, write_scan

from cspine_kit.core.errors import StudyError
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.data.reader.problems import PROBLEMS, explain, falls_back

HU = neck_hu()


def write(folder, stored, **changes):
    """One file per slice of `stored` (z, y, x) 16-bit values; `changes` as in `dataset`."""
    folder.mkdir(exist_ok=True)
    own = {"InstanceNumber": 1, "PixelRepresentation": int(stored.dtype.kind == "i"), **changes}
    for z, position in enumerate(positions(len(stored))):
        ds = dataset(HU[z], position, **own)
        ds.PixelData = stored[z].astype(stored.dtype.newbyteorder("<")).tobytes()
        ds.InstanceNumber = z + 1
        ds.save_as(folder / f"{z + 1}.dcm", enforce_file_format=True)


UNSIGNED = (HU + 1024).astype(np.uint16)


@pytest.mark.parametrize(
    ("stored", "changes", "codes"),
    [
        (UNSIGNED, {"RescaleIntercept": 0}, {"offset_repaired"}),
        (UNSIGNED, {"RescaleIntercept": 1024}, {"offset_repaired"}),
        (HU, {"RescaleIntercept": -1024}, {"offset_repaired"}),
        (UNSIGNED, {"RescaleIntercept": None, "RescaleSlope": None}, {"offset_repaired"}),
        (UNSIGNED, {"RescaleIntercept": -1024, "RescaleSlope": 0}, {"missing_rescale"}),
        (HU.view(np.uint16), {}, {"sign_repaired"}),
        (HU.view(np.uint16), {"BitsStored": 12, "HighBit": 11}, {"sign_repaired"}),
        (
            (HU.astype(np.int32) + 32768).astype(np.uint16).view(np.int16),
            {"RescaleIntercept": -32768},
            {"sign_repaired"},
        ),
    ],
    ids=["zero", "inverted", "twice", "missing", "no slope", "sign", "sign of 12 bits", "no sign"],
)
def test_a_constant_offset_and_a_sign_are_repaired(tmp_path, stored, changes, codes):
    write(tmp_path, stored, **changes)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU)
    assert codes <= set(study.problems) and not falls_back(study.problems)


def test_air_that_lies_24_hu_too_high_is_said_and_left(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 12, HU.shape).round().astype(np.int16)
    stored = (HU + noise + 1024).clip(0, 4095).astype(np.uint16)
    for name, intercept in (("right", -1024), ("wrong", -1000)):
        write(tmp_path / name, stored, RescaleIntercept=intercept)
    assert read_study(tmp_path / "right").problems == ()
    wrong = read_study(tmp_path / "wrong")
    assert wrong.problems == ("high_air",) and not falls_back(wrong.problems)
    assert np.array_equal(wrong.hu, stored.astype(np.int16) - 1000)


def test_a_few_files_without_rescale_take_that_of_the_others(tmp_path):
    write(tmp_path, UNSIGNED, RescaleIntercept=-1024)
    for number in (3, 9, 15, 20):
        ds = pydicom.dcmread(tmp_path / f"{number}.dcm")
        del ds.RescaleIntercept, ds.RescaleSlope
        ds.save_as(tmp_path / f"{number}.dcm")
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU)
    assert {"offset_repaired", "missing_rescale"} <= set(study.problems)


def test_bits_above_bits_stored_are_no_values(tmp_path):
    overlay = UNSIGNED.copy()
    overlay[:, 20:60, 30:34] |= 1 << 12
    write(tmp_path, overlay, RescaleIntercept=-1024, BitsStored=12, HighBit=11)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and study.problems == ("excess_bits",)


def test_bits_stored_that_is_too_small_is_not_believed(tmp_path):
    write(tmp_path, UNSIGNED, RescaleIntercept=-1024, BitsStored=10, HighBit=9)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and study.problems == ("bits_repaired",)


def test_left_justified_values_move_down_and_others_stay(tmp_path):
    high = {"RescaleIntercept": -1024, "BitsStored": 12, "HighBit": 15}
    write(tmp_path / "left", UNSIGNED << 4, **high)
    write(tmp_path / "right", UNSIGNED, **high)
    left, right = read_study(tmp_path / "left"), read_study(tmp_path / "right")
    assert np.array_equal(left.hu, HU) and left.problems == ("left_justified",)
    assert np.array_equal(right.hu, HU) and right.problems == ()


def test_padding_inside_tissue_touches_only_the_corners(tmp_path):
    hu = HU.copy()
    hu[:, :10, :10] = 50
    write(tmp_path, hu)
    for path in tmp_path.iterdir():
        ds = pydicom.dcmread(path)
        ds.add_new("PixelPaddingValue", "SS", 50)
        ds.save_as(path)
    study = read_study(tmp_path)
    expected = hu.copy()
    expected[:, :10, :10] = -1024
    assert np.array_equal(study.hu, expected) and study.problems == ("padding_in_tissue",)


def test_what_is_no_ct_falls_back_or_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    # Tissue of all greys, and nothing around it: no offset makes two heaps of it.
    mr = np.where(HU > -300, rng.integers(100, 1600, HU.shape), rng.integers(0, 60, HU.shape))
    write(tmp_path / "mr", mr.astype(np.uint16), RescaleIntercept=None, RescaleSlope=None)
    study = read_study(tmp_path / "mr")
    assert falls_back(study.problems) == ("implausible_hu",)
    picture = ((HU + 200) / 6).clip(0, 255).astype(np.uint16)
    write(tmp_path / "jpg", picture, RescaleIntercept=-1024, BitsStored=8, HighBit=7)
    assert falls_back(read_study(tmp_path / "jpg").problems) == ("eight_bits",)
    for name, changes in {
        "pet": {"Modality": "PT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"},
        "iodine": {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "IODINE"]},
        "units": {"RescaleType": "MGML"},
    }.items():
        write_scan(tmp_path / name, **changes)
        with pytest.raises(StudyError, match=r"no CT in Hounsfield units.*; give the CT series"):
            read_study(tmp_path / name)


@pytest.mark.parametrize("slope", [-1, 10])
def test_a_wrong_slope_falls_back(tmp_path, slope):
    write(tmp_path, UNSIGNED, RescaleIntercept=-1024, RescaleSlope=slope)
    assert falls_back(read_study(tmp_path).problems) == ("implausible_hu",)


def test_a_field_without_air_is_read_and_doubted(tmp_path):
    hu = np.full_like(HU, 40)
    hu[:, 20:60, 20:60] = 400
    hu[:, 4:16, 4:16] = -500
    write(tmp_path, hu)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, hu) and study.problems == ("unverified_hu",)


def test_words_that_only_sound_like_maps_are_none(tmp_path):
    write_scan(tmp_path, ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "LOW_DOSE MONO_70"])
    assert read_study(tmp_path).problems == ()


def test_an_absent_tag_is_no_evidence(tmp_path):
    write_scan(tmp_path, Modality=None, SOPClassUID=None)
    assert read_study(tmp_path).problems == ()


def test_air_alone_and_water_alone_are_no_fault(tmp_path):
    for name, value in (("air", -1000), ("water", None)):
        hu = np.full_like(HU, -1000)
        if value is None:
            hu[:, 30:60, 30:60] = 0
        write(tmp_path / name, hu)
        study = read_study(tmp_path / name)
        assert np.array_equal(study.hu, hu) and not falls_back(study.problems)


def test_problems_are_explained_the_worst_first():
    lines = explain(["gap", "reoriented", "eight_bits", "unknown"])
    assert [line.split(":")[0] for line in lines] == ["eight_bits", "gap", "reoriented"]
    assert lines[0].endswith(f"[falls back]: {PROBLEMS['eight_bits'].to_do}")
    assert falls_back(["gap", "eight_bits"]) == ("eight_bits",)

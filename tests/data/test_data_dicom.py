"""Reading studies: order, orientation, grey values and defects."""

import subprocess
import sys

import numpy as np
import pydicom
import pytest
from scans import PITCH, STEP, dataset, neck_hu, positions, write_scan

from cspine_kit.core.errors import StudyError
from cspine_kit.data.reader.dicom import read_geometry, read_study
from cspine_kit.data.reader.problems import PROBLEMS


def rewrite(path, **changes):
    ds = pydicom.dcmread(path)
    for name, value in changes.items():
        if value is None:
            delattr(ds, name)
        elif name == "PixelPaddingValue":
            ds.add_new(name, "US", value)
        else:
            setattr(ds, name, value)
    ds.save_as(path)


def test_plain_study(tmp_path):
    hu = write_scan(tmp_path)
    study = read_study(tmp_path, "1.2.3")
    assert np.array_equal(study.hu, hu) and study.hu.dtype == np.int16
    assert study.spacing_mm == (STEP, PITCH, PITCH)
    assert np.allclose(study.z_mm, [p[2] for p in positions(len(hu))])
    assert study.files[0] == "1.dcm" and not study.reversed and not study.irregular
    assert study.problems == ()


def test_reversed_study_reads_the_same(tmp_path):
    hu = write_scan(tmp_path, reverse=True)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, hu) and study.reversed
    assert study.slice_numbers[0] == len(hu)


def test_shuffled_names_are_ordered_by_position(tmp_path):
    hu = write_scan(tmp_path / "a")
    order = np.random.default_rng(3).permutation(len(hu))
    (tmp_path / "b").mkdir()
    for z, number in enumerate(order):
        (tmp_path / "a" / f"{z + 1}.dcm").rename(tmp_path / "b" / f"{number + 1}.dcm")
    study = read_study(tmp_path / "b")
    assert np.array_equal(study.hu, hu)
    assert "shuffled_files" in study.problems and not study.reversed


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        ([-1, 0, 0, 0, 1, 0], lambda f: f[:, ::-1]),
        ([1, 0, 0, 0, -1, 0], lambda f: f[::-1]),
        ([-1, 0, 0, 0, -1, 0], lambda f: f[::-1, ::-1]),
        ([0, 1, 0, 1, 0, 0], lambda f: f.T),
        ([0, -1, 0, 1, 0, 0], lambda f: f.T[:, ::-1]),
    ],
)
def test_orientation_is_made_standard(tmp_path, orientation, undo):
    """`undo` makes the stored frame whose standard view is the plain one."""
    hu = neck_hu(size=64)
    hu[:, 3, 5] = 2000
    row, col = np.array(orientation[:3]), np.array(orientation[3:])
    tmp_path.mkdir(exist_ok=True)
    for z, position in enumerate(positions(len(hu))):
        frame = np.ascontiguousarray(undo(hu[z]))
        corner = np.array(position)
        for axis in (row, col):
            if axis.sum() < 0:
                corner = corner - axis * PITCH * 63
        ds = dataset(frame, tuple(corner), ImageOrientationPatient=orientation)
        ds.save_as(tmp_path / f"{z + 1}.dcm", enforce_file_format=True)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, hu)
    assert "reoriented" in study.problems
    assert np.allclose(study.axes, [[0, 1, 0], [1, 0, 0]])
    assert np.allclose(study.origins_mm, positions(len(hu)))


def test_rescale_and_padding_per_file(tmp_path):
    hu = write_scan(tmp_path)
    stored = (hu[2].astype(np.int32) + 1024).clip(0).astype("<u2")
    stored[0, 0] = 63536
    rewrite(
        tmp_path / "3.dcm",
        PixelRepresentation=0,
        RescaleIntercept=-1024,
        PixelPaddingValue=63536,
        PixelData=stored.tobytes(),
    )
    rewrite(tmp_path / "4.dcm", RescaleSlope=2, PixelData=(hu[3] // 2).astype("<i2").tobytes())
    study = read_study(tmp_path)
    expected = hu.copy()
    expected[2, 0, 0] = -1024
    assert np.array_equal(study.hu, expected)
    assert "mixed_rescale" in study.problems


@pytest.mark.parametrize("inverted", [True, False])
def test_monochrome1_is_turned_back_only_where_values_are_inverted(tmp_path, inverted):
    hu = neck_hu()
    stored = (hu + 1024).astype(np.uint16)
    frames = 4095 - stored if inverted else stored
    for z, position in enumerate(positions(len(hu))):
        ds = dataset(frames[z], position, PhotometricInterpretation="MONOCHROME1")
        ds.PixelRepresentation, ds.BitsStored, ds.HighBit, ds.RescaleIntercept = 0, 12, 11, -1024
        ds.PixelData = frames[z].astype("<u2").tobytes()
        ds.save_as(tmp_path / f"{z + 1}.dcm", enforce_file_format=True)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, hu)
    assert ("monochrome1_inverted" if inverted else "monochrome1") in study.problems


def test_missing_positions_fall_back_to_numbers(tmp_path):
    hu = write_scan(tmp_path, ImagePositionPatient=None)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, hu)
    assert {"no_position", "ordered_by_instance"} <= set(study.problems)
    assert study.spacing_mm[0] == STEP
    for path in tmp_path.iterdir():
        rewrite(path, InstanceNumber=None)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, hu) and "ordered_by_file_number" in study.problems


def test_a_few_missing_positions_are_filled(tmp_path):
    hu = write_scan(tmp_path)
    rewrite(tmp_path / "7.dcm", ImagePositionPatient=None)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, hu) and "missing_position" in study.problems
    assert not study.irregular


def test_duplicates_gaps_and_damage(tmp_path):
    hu = write_scan(tmp_path)
    (tmp_path / "90.dcm").write_bytes((tmp_path / "5.dcm").read_bytes())
    (tmp_path / "10.dcm").unlink()
    (tmp_path / "91.dcm").write_bytes(b"")
    (tmp_path / "92.dcm").write_text("no DICOM at all")
    whole = (tmp_path / "20.dcm").read_bytes()
    (tmp_path / "20.dcm").write_bytes(whole[: len(whole) // 2])
    study = read_study(tmp_path)
    keep = [z for z in range(len(hu)) if z not in (9, 19)]
    assert np.array_equal(study.hu, hu[keep])
    codes = {"duplicate_position", "gap", "unreadable_file", "undecodable_pixels"}
    assert codes <= set(study.problems) and study.irregular
    assert set(study.problems) <= set(PROBLEMS)


def test_duplicate_stands_in_for_an_undecodable_slice(tmp_path):
    hu = write_scan(tmp_path)
    whole = (tmp_path / "5.dcm").read_bytes()
    (tmp_path / "90.dcm").write_bytes(whole)
    (tmp_path / "5.dcm").write_bytes(whole[:-500])
    assert np.array_equal(read_study(tmp_path).hu, hu)


def test_localizer_and_second_series_are_left_out(tmp_path):
    hu = write_scan(tmp_path)
    other = neck_hu(8)
    for z in range(8):
        ds = dataset(other[z], (-70, -60, 99 - z), SeriesInstanceUID="1.2.3.2")
        ds.save_as(tmp_path / f"{200 + z}.dcm", enforce_file_format=True)
    scout = dataset(hu[0], (0, 0, 0), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.save_as(tmp_path / "300.dcm", enforce_file_format=True)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, hu)
    assert {"localizer", "several_series"} <= set(study.problems)


def test_mixed_shapes_land_in_place(tmp_path):
    """A slice on twice the matrix over the same field, and one shifted by five pixels."""
    hu = write_scan(tmp_path)
    big = np.kron(hu[4], np.ones((2, 2), np.int16))
    corner = np.array(positions(24)[4]) - [PITCH / 4, PITCH / 4, 0]
    rewrite(
        tmp_path / "5.dcm",
        Rows=192,
        Columns=192,
        PixelSpacing=[PITCH / 2, PITCH / 2],
        ImagePositionPatient=list(corner),
        PixelData=big.tobytes(),
    )
    small = np.ascontiguousarray(hu[8][5:, 5:])
    corner = np.add(positions(24)[8], [5 * PITCH, 5 * PITCH, 0])
    rewrite(
        tmp_path / "9.dcm",
        Rows=91,
        Columns=91,
        ImagePositionPatient=list(corner),
        PixelData=small.tobytes(),
    )
    study = read_study(tmp_path)
    assert "mixed_shapes" in study.problems
    assert np.array_equal(study.hu[4], hu[4])
    assert np.array_equal(study.hu[8][5:, 5:], hu[8][5:, 5:])


def test_tilted_gantry_is_ordered_along_its_normal(tmp_path):
    hu = neck_hu()
    angle = np.deg2rad(20)
    down = np.array([0, np.cos(angle), -np.sin(angle)])
    normal = np.cross([1, 0, 0], down)
    for z in range(len(hu)):
        ds = dataset(hu[z], tuple(np.array([-70, -60, 100]) - STEP * z * normal))
        ds.ImageOrientationPatient = [1, 0, 0, *down]
        ds.save_as(tmp_path / f"{z + 1}.dcm", enforce_file_format=True)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, hu) and "gantry_tilt" in study.problems
    assert study.spacing_mm[0] == pytest.approx(STEP)


def test_nothing_readable_is_an_error_that_names_the_study(tmp_path):
    (tmp_path / "1.dcm").write_text("no")
    with pytest.raises(StudyError, match=r"study 9\.9: none of its 1 files"):
        read_study(tmp_path, "9.9")
    with pytest.raises(StudyError, match="no folder"):
        read_geometry(tmp_path / "absent")
    (tmp_path / "1.dcm").unlink()
    with pytest.raises(StudyError, match="no readable slice"):
        read_study(tmp_path)


def test_geometry_equals_study_without_pixels(tmp_path):
    write_scan(tmp_path, neck_hu(3))
    geometry, study = read_geometry(tmp_path), read_study(tmp_path)
    assert geometry.files == study.files and np.array_equal(geometry.z_mm, study.z_mm)
    assert geometry.problems == study.problems == ("few_slices",)


def test_real_ct(real_data):
    study = read_study(real_data / "head_neck_ct")
    assert study.hu.shape == (90, 511, 511) and study.spacing_mm == (3.0, 1.0, 1.0)
    assert study.problems == () and not study.reversed
    assert study.files[0] == "IMG_00000.dcm"
    # The skull's ring is on the first slices, not on the last.
    bone = [(study.hu[z] > 700).sum() for z in (15, 85)]
    assert bone[0] > 3 * bone[1]


def test_kernel_path_imports_no_heavy_package():
    code = (
        "import sys; import cspine_kit.data.reader.dicom, cspine_kit.data.volumes.volume; "
        "heavy = {'kaggle','matplotlib','nibabel','wandb','sklearn','torch','pandera'}; "
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""One scan whole: several in one series, one in several, and which of them is read."""

import numpy as np
import pytest
from scans import PITCH, STEP, dataset, neck_hu, positions

from cspine_kit.data.reader.dicom import read_geometry, read_study

HU, OTHER = neck_hu(), neck_hu(shift=(6, -5))


def write(folder, hu, *, first=1, dz=0.0, **changes):
    """Files first.dcm ... of a scan moved by dz mm; callable changes get the slice index."""
    folder.mkdir(exist_ok=True)
    for z, (x, y, at) in enumerate(positions(len(hu))):
        own = {k: v(z) if callable(v) else v for k, v in changes.items()}
        ds = dataset(hu[z], (x, y, at + dz), **{"InstanceNumber": first + z, **own})
        ds.save_as(folder / f"{first + z}.dcm", enforce_file_format=True)


def clock(hour):
    """A time for each slice, a second apart."""
    return lambda z: f"{hour}00{z:02d}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
        ({"AcquisitionDate": "20240101"}, {"AcquisitionDate": "20240301"}),
        ({"SeriesNumber": 2}, {"SeriesNumber": 3}),
        ({"ConvolutionKernel": "BONE"}, {"ConvolutionKernel": "SOFT"}),
        ({"SeriesDescription": "bone 3.0"}, {"SeriesDescription": "soft 3.0"}),
        ({"KVP": 80}, {"KVP": 140}),
        ({}, {"SliceThickness": 2 * STEP}),
        ({"ImageType": ["ORIGINAL", "PRIMARY"]}, {"ImageType": ["DERIVED", "SECONDARY"]}),
        ({}, {"PixelSpacing": [PITCH / 2, PITCH / 2]}),
        ({"AcquisitionTime": clock(10)}, {"AcquisitionTime": clock(11)}),
        ({"ContentTime": clock(10)}, {"ContentTime": clock(11)}),
        ({}, {}),
    ],
    ids=[
        *("acquisition", "date", "series number", "kernel", "description", "voltage", "thickness"),
        *("image type", "field", "time"),
        *("content time", "numbers alone"),
    ],
)
@pytest.mark.parametrize("dz", [0.0, -1.0])
def test_two_scans_in_one_series_are_never_mixed(tmp_path, one, other, dz):
    write(tmp_path, HU, **one)
    write(tmp_path, OTHER, first=25, dz=dz, **other)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU)
    assert "several_scans" in study.problems and "duplicate_position" not in study.problems
    assert len(study.left_out) == 1 and study.left_out[0].startswith("24 slices, 3.00 mm apart")


def test_the_thinnest_of_those_that_cover_enough(tmp_path):
    write(tmp_path, HU)
    thick = [HU[z] for z in range(0, 24, 2)]
    for k, frame in enumerate(thick):
        ds = dataset(frame, (-70, -60, 101.0 - 2 * STEP * k), SeriesInstanceUID="1.2.3.9")
        ds.save_as(tmp_path / f"{100 + k}.dcm", enforce_file_format=True)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and "several_series" in study.problems


def test_a_few_slices_far_apart_cover_little(tmp_path):
    write(tmp_path, HU)
    for k in range(3):
        ds = dataset(HU[8 * k], (-70, -60, 130.0 - 50 * k), SeriesInstanceUID="1.2.3.9")
        ds.save_as(tmp_path / f"{100 + k}.dcm", enforce_file_format=True)
    assert np.array_equal(read_study(tmp_path).hu, HU)


def test_slabs_are_taken_only_alone_and_named(tmp_path):
    slabs = {"SeriesInstanceUID": "1.2.3.9", "ImageType": ["DERIVED", "SECONDARY", "MIP"]}
    write(tmp_path / "alone", OTHER, **slabs)
    study = read_study(tmp_path / "alone")
    assert np.array_equal(study.hu, OTHER) and study.problems == ("projection",)
    write(tmp_path / "beside", OTHER, **slabs)
    write(tmp_path / "beside", HU, first=25)
    assert np.array_equal(read_study(tmp_path / "beside").hu, HU)


def test_one_scan_in_several_series(tmp_path):
    write(tmp_path / "blocks", HU, SeriesInstanceUID=lambda z: f"1.2.3.{z // 8}")
    write(tmp_path / "rotations", HU, AcquisitionNumber=lambda z: z // 4)
    write(tmp_path / "odd", HU, SeriesInstanceUID=lambda z: f"1.2.3.{z % 2}")
    for name in ("blocks", "rotations", "odd"):
        study = read_study(tmp_path / name)
        assert np.array_equal(study.hu, HU) and study.problems == ("joined_series",), name
    write(tmp_path / "each", HU, SeriesInstanceUID=lambda z: f"1.2.3.{z}")
    assert np.array_equal(read_study(tmp_path / "each").hu, HU)


def test_rotations_of_two_phases_are_joined_phase_by_phase(tmp_path):
    write(tmp_path, HU, AcquisitionNumber=lambda z: z // 5)
    write(tmp_path, OTHER, first=25, AcquisitionNumber=lambda z: 100 + z // 5)
    assert np.array_equal(read_study(tmp_path).hu, HU)


def test_every_second_slice_of_thick_ones_is_no_second_half(tmp_path):
    """Half a step apart and as thick as a step: another scan, not the missing slices."""
    write(tmp_path, HU)
    write(tmp_path, OTHER, first=25, dz=STEP / 2, SeriesInstanceUID="1.2.3.7")
    assert np.array_equal(read_study(tmp_path).hu, HU)


def test_directions_are_compared_by_distance(tmp_path):
    sines = [0.05 + (2e-6 if z % 2 else -2e-6) for z in range(24)]
    ways = [[np.sqrt(1 - s * s), s, 0, -s, np.sqrt(1 - s * s), 0] for s in sines]
    write(tmp_path, HU, ImageOrientationPatient=lambda z: [f"{v:.9g}" for v in ways[z]])
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and study.problems == ()


def test_screens_and_other_modalities_among_slices_are_no_slices(tmp_path):
    write(tmp_path, HU)
    screen = dataset(
        np.full((96, 96), 800, np.int16), (0, 0, 0), ImageType=["DERIVED", "SECONDARY"]
    )
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(screen, name)
    screen.save_as(tmp_path / "90.dcm", enforce_file_format=True)
    pet = dataset(
        OTHER[0], (-70, -60, 200), Modality="PT", SOPClassUID="1.2.840.10008.5.1.4.1.1.128"
    )
    pet.save_as(tmp_path / "91.dcm", enforce_file_format=True)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU)
    assert study.problems == ("other_modality", "no_geometry")
    assert study.left_out == ("2 files that are no slices of a CT",)


def test_a_stack_that_calls_itself_localizer_is_none(tmp_path):
    write(tmp_path, HU, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and study.problems == ("called_localizer",)


def test_the_patient_of_the_folder_is_read_and_others_are_named(tmp_path):
    write(tmp_path / "1.2.3", OTHER, PatientID="a", StudyInstanceUID="1.2.9", dz=0.7)
    write(tmp_path / "1.2.3", HU, first=25, PatientID="b")
    study = read_study(tmp_path / "1.2.3")
    assert np.array_equal(study.hu, HU)
    assert "several_patients" in study.problems and "other_study" not in study.problems
    (tmp_path / "1.2.3").rename(tmp_path / "1.2.4")
    assert "other_study" in read_geometry(tmp_path / "1.2.4").problems
    (tmp_path / "1.2.4").rename(tmp_path / "case 4")
    assert "other_study" not in read_geometry(tmp_path / "case 4").problems

"""A NIfTI file is read as the DICOM files it was made from, in whatever order its axes lie."""

import nibabel
import numpy as np
import pytest
from nibabel import orientations
from scans import NZ, write_scan

from cspine_kit.core.errors import StudyError
from cspine_kit.data.reader.dicom import read_geometry, read_study
from cspine_kit.data.reader.nifti import nifti_of


def image_of(study, axes="RAS"):
    """The study as an image whose axes run as `axes` say."""
    affine = np.eye(4)
    down, right = study.axes
    step = study.origins_mm[-1] - study.origins_mm[0]
    affine[:3, 0] = right * study.spacing_mm[2]
    affine[:3, 1] = down * study.spacing_mm[1]
    affine[:3, 2] = step / (len(study.z_mm) - 1)
    affine[:3, 3] = study.origins_mm[0]
    affine[:2] *= -1
    image = nibabel.Nifti1Image(np.ascontiguousarray(study.hu.transpose(2, 1, 0)), affine)
    ways = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(axes)
    )
    return image.as_reoriented(ways)


@pytest.fixture
def dicom(tmp_path):
    write_scan(tmp_path / "dicom")
    return read_study(tmp_path / "dicom", "1.2")


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR", "PIL", "SRA"])
def test_axes_in_any_order_are_the_dicom_study(dicom, tmp_path, axes):
    nibabel.save(image_of(dicom, axes), tmp_path / "neck.nii.gz")
    found = read_study(tmp_path / "neck.nii.gz")
    assert found.study_uid == "neck"
    assert np.array_equal(found.hu, dicom.hu)
    assert found.spacing_mm == pytest.approx(dicom.spacing_mm, abs=1e-4)
    assert np.allclose(found.z_mm, dicom.z_mm, atol=1e-3)
    here, there = (one.patient_mm(one.z_mm[3], 5.0, 7.0) for one in (found, dicom))
    assert np.allclose(here, there, atol=1e-3)


def test_tilted_slices_keep_their_places(tmp_path):
    way = [1, 0, 0, 0, round(np.cos(0.3), 9), round(np.sin(0.3), 9)]
    write_scan(tmp_path / "dicom", ImageOrientationPatient=way)
    dicom = read_study(tmp_path / "dicom")
    nibabel.save(image_of(dicom), tmp_path / "neck.nii")
    found = read_study(tmp_path / "neck.nii")
    assert "gantry_tilt" in found.problems and np.array_equal(found.hu, dicom.hu)
    assert np.allclose(found.origins_mm, dicom.origins_mm, atol=1e-3)


def test_scaled_and_floating_values_are_hounsfield_units(dicom, tmp_path):
    image = image_of(dicom)
    floats = nibabel.Nifti1Image(image.get_fdata() + 0.2, image.affine)
    floats.header.set_data_dtype(np.float32)
    nibabel.save(floats, tmp_path / "floats.nii")
    assert np.array_equal(read_study(tmp_path / "floats.nii").hu, dicom.hu)
    halves = (np.asarray(image.dataobj) + 1000) // 2
    scaled = nibabel.Nifti1Image(halves.astype(np.int16), image.affine)
    scaled.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(scaled, tmp_path / "scaled.nii")
    assert np.abs(read_study(tmp_path / "scaled.nii").hu - dicom.hu).max() <= 1


def test_a_folder_that_holds_one_file_is_that_file(dicom, tmp_path):
    (tmp_path / "1.2.3").mkdir()
    nibabel.save(image_of(dicom), tmp_path / "1.2.3" / "scan.nii")
    found = read_geometry(tmp_path / "1.2.3")
    assert found.study_uid == "1.2.3" and len(found.z_mm) == NZ
    assert nifti_of(tmp_path / "dicom") is None


def test_what_is_no_volume_says_so(dicom, tmp_path):
    (tmp_path / "cut.nii.gz").write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(StudyError, match=r"study cut: cut\.nii\.gz cannot be read as NIfTI"):
        read_study(tmp_path / "cut.nii.gz")
    four = np.zeros((4, 4, 4, 2), np.int16)
    nibabel.save(nibabel.Nifti1Image(four, np.eye(4)), tmp_path / "four.nii")
    with pytest.raises(StudyError, match=r"shape \(4, 4, 4, 2\)"):
        read_study(tmp_path / "four.nii")

"""`cspine inspect`: facts and picture of one study."""

import hashlib
import json
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pydicom
from scans import STEP, dataset, neck_hu, write_scan

from cspine_kit.cli import main
from cspine_kit.data.inspect import inspect_study
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.data.reader.problems import PROBLEMS
from cspine_kit.show.study import draw_study


def test_facts(tmp_path):
    hu = write_scan(tmp_path / "9.9", reverse=True)
    (tmp_path / "9.9" / "77.dcm").write_text("no")
    facts, _ = inspect_study(tmp_path / "9.9")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["slices"] == 24 and facts["files"] == 25 and facts["reversed"]
    assert facts["spacing_mm"]["z"] == STEP and facts["hu_range"] == [-1000, 900]
    assert facts["hu_sha256"] == hashlib.sha256(hu.astype("<i2").tobytes()).hexdigest()
    assert list(facts["problems"]) == ["other_study", "unreadable_file"]
    assert list(facts["unusable_files"]) == ["77.dcm"]
    assert facts["series"][0]["files"] == 24 and facts["study_uids_in_files"] == ["1.2.3"]


def test_what_is_left_out_and_where_a_tilted_scan_lies(tmp_path, capsys):
    angle = np.deg2rad(20.0)
    way = [1, 0, 0, 0, round(np.cos(angle), 9), round(np.sin(angle), 9)]
    write_scan(tmp_path, ImageOrientationPatient=way)
    other = dataset(neck_hu(1)[0], (-70, -60, 99), ConvolutionKernel="SOFT", InstanceNumber=1)
    other.save_as(tmp_path / "90.dcm", enforce_file_format=True)
    facts, _ = inspect_study(tmp_path)
    assert facts["z_mm"] == {"first": 100.0, "last": 31.0}
    assert facts["left_out"] == ["1 slices, 3.00 mm apart, series 1.2.3.1, ConvolutionKernel SOFT"]
    assert main(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "  1 slices, 3.00 mm apart, series" in said and "  gantry_tilt: slices are" in said
    assert main(["inspect", str(tmp_path), "--png", "/proc/nowhere/a.png"]) == 1
    assert "/proc/nowhere" in capsys.readouterr().err


def test_hash_of_the_real_ct_is_the_common_readers(real_data):
    """Against the plain way: pydicom, sorted by z, rescaled."""
    folder = real_data / "head_neck_ct"
    slices = sorted(
        (pydicom.dcmread(path) for path in folder.iterdir()),
        key=lambda ds: -ds.ImagePositionPatient[2],
    )
    plain = np.stack([ds.pixel_array.astype(np.int16) + int(ds.RescaleIntercept) for ds in slices])
    facts, _ = inspect_study(folder)
    assert facts["hu_sha256"] == hashlib.sha256(plain.astype("<i2").tobytes()).hexdigest()


def test_picture(tmp_path):
    write_scan(tmp_path / "s")
    draw_study(inspect_study(tmp_path / "s")[1], tmp_path / "s.png")
    picture = cv2.imread(str(tmp_path / "s.png"), cv2.IMREAD_GRAYSCALE)
    assert picture.shape == (96, 3 * (96 + 6)) and picture.max() > 100


def test_the_documentation_lists_every_problem():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = [f"| `{code}` | {p.severity} | {p.what} | {p.to_do} |" for code, p in PROBLEMS.items()]
    assert "\n".join(rows) in text


def test_a_nifti_file_is_told_like_a_folder(tmp_path, capsys):
    hu = write_scan(tmp_path / "9.9")
    study = read_study(tmp_path / "9.9")
    right, front, up = (s * mm for s, mm in zip((-1, -1, -1), study.spacing_mm[::-1], strict=True))
    image = nibabel.Nifti1Image(hu.transpose(2, 1, 0), np.diag([right, front, up, 1.0]))
    path = tmp_path / "neck.nii.gz"
    nibabel.save(image, path)
    facts, _ = inspect_study(path)
    plain, _ = inspect_study(tmp_path / "9.9")
    same = ("slices", "rows", "cols", "spacing_mm", "hu_range", "hu_sha256", "unusable_files")
    assert {name: facts[name] for name in same} == {name: plain[name] for name in same}
    assert facts["study_uid"] == "neck" and facts["files"] == 1
    assert main(["inspect", str(path), "--json", "--png", str(tmp_path / "neck.png")]) == 0
    assert json.loads(capsys.readouterr().out) == facts
    assert cv2.imread(str(tmp_path / "neck.png")) is not None
    path.write_bytes(path.read_bytes()[:2000])
    assert main(["inspect", str(path)]) == 1
    assert "cannot be read as NIfTI" in capsys.readouterr().err

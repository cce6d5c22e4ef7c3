"""The phantom competition: layout, orientation, truth, determinism, resume and refusals."""

import hashlib
import shutil
import time

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.config import PhantomConfig
from cspine_kit.core.errors import DataError
from cspine_kit.data.components import keep_vertebrae
from cspine_kit.data.masks import read_mask
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.phantom.annotators.masks import write_nifti
from cspine_kit.phantom.competition import write as writer
from cspine_kit.phantom.competition.write import StudyPlan, write_competition
from cspine_kit.phantom.scanner import scan as scanner
from cspine_kit.phantom.scanner.files import write_dicom

SPEC = PhantomConfig(
    studies=5, test_studies=2, size_px=64, difficulty="easy", masked=1.0, boxed=1.0, seed=3
)


def digest(root):
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def read_by_file_number(folder):
    """HU (z, y, x) and the headers in file-number order."""
    files = sorted(folder.glob("*.dcm"), key=lambda p: int(p.stem))
    headers = [pydicom.dcmread(p) for p in files]
    volume = np.stack(
        [h.pixel_array.astype(float) * h.RescaleSlope + h.RescaleIntercept for h in headers]
    )
    return volume, headers


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_competition(tmp_path_factory.mktemp("phantom") / "c", SPEC, jobs=1)


def test_layout(phantom):
    train, test = pd.read_csv(phantom.train_csv), pd.read_csv(phantom.test_csv)
    solution = pd.read_csv(phantom.solution_csv)
    assert list(train) == ["StudyInstanceUID", OVERALL, *LEVELS] == list(solution)
    assert (train[OVERALL] == train[list(LEVELS)].max(axis=1)).all()
    assert list(test) == ["row_id", "StudyInstanceUID", "prediction_type"]
    assert (test.row_id == test.StudyInstanceUID + "_" + test.prediction_type).all()
    assert len(test) == len(TARGETS) * len(solution)
    sample = pd.read_csv(phantom.sample_submission_csv)
    assert list(sample.row_id) == list(test.row_id)
    assert (sample.fractured == 0.5).all()
    for split, table in (("train", train), ("test", solution)):
        for uid in table.StudyInstanceUID:
            numbers = sorted(int(p.stem) for p in phantom.images(split, uid).iterdir())
            assert numbers == list(range(1, len(numbers) + 1))


def test_masks_lie_on_bone_and_affine_is_physical(phantom):
    for uid in pd.read_csv(phantom.train_csv).StudyInstanceUID:
        volume, headers = read_by_file_number(phantom.images("train", uid))
        image = nibabel.load(phantom.segmentation(uid))
        mask = image.get_fdata()[:, ::-1, ::-1].transpose(2, 1, 0)
        z = [float(h.ImagePositionPatient[2]) for h in headers]
        if z[-1] > z[0]:
            mask = mask[::-1]
        assert mask.shape == volume.shape
        assert set(range(1, 8)) <= set(np.unique(mask).astype(int))
        assert volume[(mask > 0)].mean() > volume[mask == 0].mean() + 300
        # a voxel's position by DICOM (LPS) equals its position by NIfTI (RAS)
        k, j, i = 3, 10, 20
        h = headers[k]
        lps = np.array([float(v) for v in h.ImagePositionPatient])
        lps[:2] += np.array([i, j]) * [float(h.PixelSpacing[1]), float(h.PixelSpacing[0])]
        k_nii = k if z[-1] > z[0] else len(z) - 1 - k
        ras = image.affine @ [i, volume.shape[1] - 1 - j, k_nii, 1]
        np.testing.assert_allclose(ras[:3], lps * [-1, -1, 1], atol=1e-3)


def test_an_oblique_study_is_read_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(scanner, "TILT_SHARE", 1.0)
    plan = StudyPlan("1.2.3", "train", (0,) * 7, masked=True, boxed=False, seed=8)
    study = writer.render_study(plan, size_px=48, difficulty="real")
    assert abs(study.truth["tilt_deg"]) >= 3
    write_dicom(tmp_path / "dicom", "1.2.3", study.scan, study.scan.digitize(study.hu))
    write_nifti(tmp_path / "mask.nii", study.scan, study.labels)
    found = read_study(tmp_path / "dicom", "1.2.3")
    assert "gantry_tilt" in found.problems
    inside = study.hu > -1024
    np.testing.assert_array_equal(found.hu[inside], study.hu[inside])
    expected = study.labels.copy()
    keep_vertebrae(expected, found)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii", found), expected)
    for index, row in enumerate(study.truth["levels"], start=1):
        shown = found.z_mm[(study.labels == index).any(axis=(1, 2))]
        half_px = study.scan.spacing_mm[1] / 2  # voxels mostly outside of bone have no label
        assert row["share_inside"] > 0.9
        assert row["z_top_mm"] == pytest.approx(shown.max(), abs=half_px + 1)
        assert row["z_bottom_mm"] == pytest.approx(shown.min(), abs=half_px + 1)


def test_boxes_hold_the_break(phantom):
    boxes = pd.read_csv(phantom.boxes_csv)
    train = pd.read_csv(phantom.train_csv).set_index("StudyInstanceUID")
    assert set(boxes.StudyInstanceUID) == set(train.index[train[OVERALL] == 1])
    assert not boxes.duplicated(["StudyInstanceUID", "slice_number"]).any()
    for uid, rows in boxes.groupby("StudyInstanceUID"):
        volume, _ = read_by_file_number(phantom.images("train", uid))
        assert rows.slice_number.between(1, len(volume)).all()
        row = rows.iloc[len(rows) // 2]
        y, x = slice(int(row.y), int(row.y + row.height)), slice(int(row.x), int(row.x + row.width))
        assert volume[int(row.slice_number) - 1][y, x].max() > 200


def test_same_seed_same_bytes_whatever_the_jobs(phantom, tmp_path):
    other = write_competition(tmp_path / "c", SPEC, jobs=2)
    assert digest(other.root) == digest(phantom.root)


def test_another_seed_draws_other_studies(phantom, tmp_path):
    spec = SPEC.model_copy(update={"seed": 4, "studies": 1, "test_studies": 1})
    other = write_competition(tmp_path / "c", spec, jobs=1)
    assert not set(pd.read_csv(other.train_csv).StudyInstanceUID) & set(
        pd.read_csv(phantom.train_csv).StudyInstanceUID
    )


def test_finished_is_left_alone_and_half_done_is_resumed(phantom, tmp_path, monkeypatch):
    root = tmp_path / "c"
    shutil.copytree(phantom.root, root)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    start = time.monotonic()
    write_competition(root, SPEC, jobs=1)
    assert time.monotonic() - start < 1.0
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before

    shutil.rmtree(root)
    written = []
    write_dicom = writer.write_dicom

    def dies_at_third(folder, *args, **kwargs):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(folder)
        write_dicom(folder, *args, **kwargs)

    monkeypatch.setattr(writer, "write_dicom", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        write_competition(root, SPEC, jobs=1)
    (root / "train_images" / ".1.2.3.99.tmp").mkdir()
    monkeypatch.setattr(writer, "write_dicom", write_dicom)
    write_competition(root, SPEC, jobs=1)
    assert digest(root) == digest(phantom.root)


def test_foreign_folders_are_refused_and_untouched(phantom, tmp_path):
    held = tmp_path / "thesis.txt"
    held.write_text("mine")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        write_competition(tmp_path, SPEC, jobs=1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="is a file"):
        write_competition(held, SPEC, jobs=1)
    with pytest.raises(DataError, match="another phantom"):
        write_competition(phantom.root, SPEC.model_copy(update={"seed": 9}), jobs=1)

"""Judgments as files: JSON that resumes, and DICOM objects that others can read."""

import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pydicom
import pytest
from tools import needed

from cspine_kit.cli import main
from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.errors import ConfigError, StudyError
from cspine_kit.infer.judgment import USE
from cspine_kit.infer.predictor import Predictor
from cspine_kit.show.explain.bones import bone_labels
from cspine_kit.show.exports import predictions
from cspine_kit.show.exports.dicom import native_labels, write_report, write_segmentation
from cspine_kit.show.exports.predictions import Wanted, predict_folders
from cspine_kit.show.exports.source import source_series

pytestmark = pytest.mark.filterwarnings("ignore:The string .* is unlikely to represent")


@pytest.fixture(scope="module", name="folders")
def _folders(run):
    return sorted((run / "competition" / "test_images").iterdir())


@pytest.fixture(scope="module", name="judgment")
def _judgment(run, folders):
    return Predictor(run / "oof" / "tiny" / "bundle").predict(folders[0])


def test_finished_studies_are_skipped_and_changed_ones_are_not(bundle, folders, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(folders[0], study)
    wanted = Wanted(bundle, tmp_path / "out", phantom_bundle=True)
    first = predict_folders([study, folders[1]], wanted)
    assert [one.skipped for one in first] == [False, False]
    assert [one.skipped for one in predict_folders([study, folders[1]], wanted)] == [True, True]
    (study / "1.dcm").unlink()
    assert [one.skipped for one in predict_folders([study, folders[1]], wanted)] == [False, True]
    rows = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(rows["study"]) == ["study", folders[1].name] and rows[list(TARGETS)].notna().all(
        axis=None
    )


def test_one_bad_folder_costs_itself(bundle, folders, tmp_path, capsys):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "1.dcm").write_bytes(b"no DICOM")
    out = tmp_path / "out"
    command = ["predict", str(bad), str(folders[0]), "--bundle", str(bundle), "--out", str(out)]
    assert main([*command, "--phantom-bundle"]) == 3
    said = capsys.readouterr()
    assert "cannot_judge" in said.out and USE in said.err and "phantoms" in said.err
    assert json.loads((out / "bad.json").read_text())["status"] == "cannot_judge"
    assert json.loads((out / f"{folders[0].name}.json").read_text())["status"] == "ok"
    assert main(["predict", str(folders[0]), "--bundle", str(bundle), "--out", str(out)]) == 0


def test_two_folders_of_one_name_are_refused(bundle, tmp_path):
    folders = [tmp_path / "a" / "scan", tmp_path / "b" / "scan"]
    with pytest.raises(ConfigError, match=r"scan\.json"):
        predict_folders(folders, Wanted(bundle, tmp_path))


def verified(path) -> list[str]:
    """What dicom3tools finds wrong; the test is skipped where it is not installed."""
    program = needed("dicom3tools", "dciodvfy")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line.startswith(("Error", "Abort"))]


@pytest.fixture(scope="module", name="written")
def _written(judgment, folders, tmp_path_factory):
    pytest.importorskip("highdicom")
    out = tmp_path_factory.mktemp("dicom")
    write_segmentation(judgment, folders[0], out / "seg.dcm")
    write_report(judgment, folders[0], out / "sr.dcm")
    return out


def test_segmentation_lies_on_the_source_slices(judgment, folders, written):
    import highdicom as hd

    read = hd.seg.segread(written / "seg.dcm")
    labels = native_labels(judgment.scan, bone_labels(judgment.scan.volumes.fine, judgment.levels))
    series = source_series(folders[0], judgment.scan.geometry)
    assert read.StudyInstanceUID == series[0].StudyInstanceUID and USE in read.ContentDescription
    for k in np.flatnonzero((labels > 0).any(axis=(1, 2)))[::7]:
        source = [series[k].SOPInstanceUID]
        planes = read.get_pixels_by_source_instance(source, combine_segments=False)[0]
        for number in read.segment_numbers:
            level = LEVELS.index(read.get_segment_description(number).segment_label) + 1
            assert (planes[..., number - 1] > 0).tolist() == (labels[k] == level).tolist()


def test_labels_are_bone_in_order(judgment):
    fine = judgment.scan.volumes.fine
    labels = bone_labels(fine, judgment.levels)
    heights = [fine.z_mm[np.nonzero(labels == j + 1)[0]].mean() for j in range(len(LEVELS))]
    assert heights == sorted(heights, reverse=True)
    hu = fine.curve.hu[fine.voxels.slices(range(len(labels)))]
    assert hu[labels > 0].min() >= 200 > hu[labels == 0].mean()


def test_report_names_levels_probabilities_and_key_images(judgment, folders, written):
    import highdicom as hd

    report = hd.sr.srread(written / "sr.dcm")
    groups = report.content.get_image_measurement_groups()
    table = judgment.probabilities.set_index("target")["prob"]
    assert [group.tracking_identifier for group in groups] == list(TARGETS)
    series = source_series(folders[0], judgment.scan.geometry)
    for group in groups:
        target = group.tracking_identifier
        prob = next(m for m in group.get_measurements() if m.name.meaning == "Probability")
        assert prob.value == pytest.approx(table[target], rel=1e-6)
        if target in LEVELS:
            keys = {item.referenced_sop_instance_uid for item in group.source_images}
            assert keys == {series[k].SOPInstanceUID for k in judgment.driving(target)}
    text = (written / "sr.dcm").read_bytes()
    assert judgment.bundle.encode() in text and b"Research use only" in text


@pytest.mark.parametrize("name", ["seg.dcm", "sr.dcm"])
def test_dicom_objects_are_valid(written, name):
    assert verified(written / name) == []


def test_the_same_scan_gives_the_same_ids(judgment, folders, written, tmp_path):
    write_report(judgment, folders[0], tmp_path / "again.dcm")
    first, again = (pydicom.dcmread(p) for p in (written / "sr.dcm", tmp_path / "again.dcm"))
    assert first.SOPInstanceUID == again.SOPInstanceUID


def test_a_dicom_object_that_cannot_be_written_costs_itself(bundle, folders, tmp_path, monkeypatch):
    pytest.importorskip("highdicom")

    def refuse(*_):
        raise StudyError("1.2", "its slices are not files of their own")

    monkeypatch.setattr("cspine_kit.show.exports.dicom.source_series", refuse)
    done = predict_folders(folders[:1], Wanted(bundle, tmp_path, segmentation=True, report=True))
    found = json.loads(done[0].path.read_text())
    assert found["status"] == "ok" and all("not written" in why for why in found["files"].values())
    assert predictions.SUMMARY in {path.name for path in tmp_path.iterdir()}

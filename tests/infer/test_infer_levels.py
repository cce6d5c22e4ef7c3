"""Levels of one study: where they lie, and whether they are to be believed."""

import json

import cv2
import nibabel
import numpy as np
import pandas as pd
import pytest
from scans import neck_hu, write_scan

from cspine_kit import study_levels
from cspine_kit.cli import main
from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import FineConfig, GridConfig, VolumesConfig
from cspine_kit.core.tables import VERTEBRA_COLUMNS
from cspine_kit.data.volumes.read import read_both
from cspine_kit.infer import levels as levels_room
from cspine_kit.infer.levels import StudyLevels
from cspine_kit.show.levels import draw_levels

CONFIG = VolumesConfig(
    curve=((-1000, 0), (1500, 255)),
    coarse=GridConfig(spacing_mm=3.0, field_mm=96.0),
    fine=FineConfig(spacing_mm=2.0, field_mm=60.0, margin_mm=5.0),
)


def levels_of(volume, confidence):
    """Seven levels, one on each third slice."""
    at = 3 * np.arange(len(LEVELS))
    confidence = np.broadcast_to(confidence, len(LEVELS))
    return pd.DataFrame(
        {
            "level": LEVELS,
            "present": np.atleast_1d(confidence) > 0,
            "z_top_mm": volume.z_mm[at],
            "z_bottom_mm": volume.z_mm[at + 2],
            "center_z_mm": volume.z_mm[at],
            "center_y_mm": 60.0,
            "center_x_mm": 30.0,
            "confidence": confidence,
            "source": np.where(np.atleast_1d(confidence) > 0, "model", "absent"),
        }
    )


@pytest.fixture
def found(tmp_path):
    """Levels of a scan that is made with `changes`, at a confidence."""

    def make(confidence=0.9, **changes):
        write_scan(tmp_path / "scan", **changes)
        volumes, geometry = read_both(tmp_path / "scan", CONFIG)
        rows = pd.DataFrame({"at_mm": geometry.z_mm, **dict.fromkeys(VERTEBRA_COLUMNS, -3.0)})
        return StudyLevels(volumes.fine, levels_of(volumes.fine, confidence), geometry, rows)

    return make


def test_places_are_those_of_the_patient(found):
    angle = np.deg2rad(20.0)
    way = [1, 0, 0, 0, round(np.cos(angle), 9), round(np.sin(angle), 9)]
    rows = found(ImageOrientationPatient=way).as_dict()["levels"]
    # Slices lie 3 mm apart from z = 100 down, pixels of 1.5 mm start at x = -70, y = -60.
    for k, level in enumerate(LEVELS):
        z = 100 - 9 * k
        assert (rows[level]["first_slice"], rows[level]["last_slice"]) == (3 * k, 3 * k + 2)
        assert rows[level]["center_z_mm"] == pytest.approx(z, abs=0.01)
        place = (-70 + 30, -60 + 60 * np.cos(angle), z + 60 * np.sin(angle))
        assert rows[level]["center_mm"] == pytest.approx(place, abs=0.01)


def test_what_is_not_to_be_relied_on_says_so(found, tmp_path, monkeypatch, capsys):
    def run(study):
        monkeypatch.setattr(levels_room, "study_levels", lambda folder, bundle: study)
        status = main(["levels", "folder", "--bundle", "bundle"])
        return status, capsys.readouterr()

    status, said = run(found())
    assert status == 0 and not said.err
    status, said = run(found(RescaleIntercept=1024))
    assert status == 0 and "offset_repaired: a constant offset" in said.out
    status, said = run(found(confidence=[0.0] * 2 + [0.9] * 5))
    assert status == 0 and "C2     not in scan" in said.out and "C3     not in scan" not in said.out
    status, said = run(found(confidence=0.0))
    assert status == 1 and "it shows none of C1..C7" in said.err
    blind = found(PixelSpacing=None)
    status, said = run(blind)
    assert status == 1 and "not to be relied on: assumed_spacing: no file tells" in said.err
    assert "assumed_spacing: no file tells" in said.out
    assert list(blind.as_dict()["problems"]) == ["assumed_spacing"]
    assert json.dumps(blind.as_dict()) and len(blind.as_dict()["warnings"]) == 1
    draw_levels(blind, tmp_path / "l.png")
    assert cv2.imread(str(tmp_path / "l.png")) is not None


def test_a_picture_that_cannot_be_written_ends_in_words(found, monkeypatch, capsys):
    study = found()
    monkeypatch.setattr(levels_room, "study_levels", lambda folder, bundle: study)
    place = "/proc/nowhere/l.png"
    assert main(["levels", "folder", "--bundle", "bundle", "--png", place]) == 1
    assert "/proc/nowhere" in capsys.readouterr().err


def test_without_a_bundle_the_shipped_finder_speaks_and_says_so(tmp_path, capsys):
    hu = neck_hu().transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([-1.5, -1.5, -3, 1])), tmp_path / "neck.nii.gz")
    picture = tmp_path / "l.png"
    status = main(["levels", str(tmp_path / "neck.nii.gz"), "--json", "--png", str(picture)])
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert status in (0, 1) and result["study_uid"] == "neck" and result["n_slices"] == len(hu.T)
    sources = {row["source"] for row in result["levels"].values()}
    assert sources <= {"finder", "finder_interpolated", "absent"}
    assert "trained on synthetic scans only" in said.err
    assert cv2.imread(str(picture)) is not None
    found = study_levels(tmp_path / "neck.nii.gz")
    assert found.as_dict() == result

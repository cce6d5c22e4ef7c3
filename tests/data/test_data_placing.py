"""Slices are placed by position and orientation, and so is what lies on them."""

import numpy as np
import pandas as pd
import pytest
from scans import PITCH, STEP, dataset, neck_hu, positions, write_scan

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.paths import Competition
from cspine_kit.data.index import build_index
from cspine_kit.data.reader.dicom import read_geometry, read_study

HU = neck_hu()
NZ, SIZE = HU.shape[0], HU.shape[1]
RIGHT = -70.0 + PITCH * (SIZE - 1)


def write(folder, slices):
    """Files of (frame, position, orientation), from the head down."""
    folder.mkdir(exist_ok=True, parents=True)
    for z, (frame, position, way) in enumerate(slices):
        ds = dataset(np.ascontiguousarray(frame), tuple(position), InstanceNumber=z + 1)
        ds.ImageOrientationPatient = [f"{v:.9g}" for v in way]
        ds.save_as(folder / f"{z + 1}.dcm", enforce_file_format=True)


def test_a_center_that_moves_half_way_is_moved_back(tmp_path):
    moved = [
        (np.roll(HU[z], -20, axis=1), np.add(p, (20 * PITCH, 0, 0)), (1, 0, 0, 0, 1, 0))
        if z >= 14
        else (HU[z], p, (1, 0, 0, 0, 1, 0))
        for z, p in enumerate(positions(NZ))
    ]
    write(tmp_path, moved)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu[:14], HU[:14])
    assert np.array_equal(study.hu[14:, :, 20:], HU[14:, :, 20:])
    assert (study.hu[14:, :, :20] == -1024).all()
    assert study.problems == ("moved_frames",)


def test_a_scan_half_of_which_is_mirrored_stays_whole(tmp_path):
    mirrored = [
        (HU[z][:, ::-1], (RIGHT, *p[1:]), (-1, 0, 0, 0, 1, 0))
        if z % 2
        else (HU[z], p, (1, 0, 0, 0, 1, 0))
        for z, p in enumerate(positions(NZ))
    ]
    write(tmp_path, mirrored)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and "reoriented" in study.problems


def test_turned_frames_are_turned_upright(tmp_path):
    import cv2

    angle = np.deg2rad(40.0)
    row = np.array([np.cos(angle), np.sin(angle), 0])
    col = np.array([-row[1], row[0], 0])
    middle = (SIZE - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), 40, 1.0)
    slices = []
    for z, position in enumerate(positions(NZ)):
        frame = cv2.warpAffine(
            HU[z].astype(np.float32), matrix, (SIZE, SIZE), borderValue=(-1000.0,)
        )
        center = np.add(position, (middle * PITCH, middle * PITCH, 0))
        corner = center - (row + col) * middle * PITCH
        slices.append((np.rint(frame).astype(np.int16), corner, (*row, *col)))
    write(tmp_path, slices)
    study = read_study(tmp_path)
    assert study.problems == ("turned",) and np.allclose(study.axes, [[0, 1, 0], [1, 0, 0]])
    inside = slice(16, 80)
    assert np.median(np.abs(study.hu[:, inside, inside] - HU[:, inside, inside])) <= 1
    assert (
        np.corrcoef(study.hu[:, inside, inside].ravel(), HU[:, inside, inside].ravel())[0, 1] > 0.97
    )


def test_patient_positions_of_a_tilted_scan(tmp_path):
    angle = np.deg2rad(20.0)
    way = (1, 0, 0, 0, np.cos(angle), np.sin(angle))
    write(tmp_path, [(HU[z], p, way) for z, p in enumerate(positions(NZ))])
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and study.problems == ("gantry_tilt",)
    assert study.spacing_mm[0] == pytest.approx(STEP * np.cos(angle))
    for z in (0, 7, NZ - 1):
        assert study.patient_mm(study.z_mm[z]) == pytest.approx(positions(NZ)[z], abs=1e-6)
    x, y, at = positions(NZ)[7]
    expected = (x + 20 * PITCH, y + 40 * PITCH * np.cos(angle), at + 40 * PITCH * np.sin(angle))
    assert study.patient_mm(study.z_mm[7], 40 * PITCH, 20 * PITCH) == pytest.approx(
        expected, abs=1e-6
    )
    beyond = study.patient_mm(study.z_mm[0] + 10.0)
    assert beyond - study.origins_mm[0] == pytest.approx(10 * np.array([0, -way[5], way[4]]))


@pytest.mark.parametrize("plane", ["sagittal", "coronal"])
def test_a_stack_in_another_plane_is_resliced(tmp_path, plane):
    tmp_path.mkdir(exist_ok=True)
    x, y, z = positions(NZ)[0]
    for k in range(SIZE):
        if plane == "sagittal":
            frame, place, way = HU[:, :, k], (x + k * PITCH, y, z), (0, 1, 0, 0, 0, -1)
        else:
            frame, place, way = HU[:, k, :], (x, y + k * PITCH, z), (1, 0, 0, 0, 0, -1)
        ds = dataset(np.ascontiguousarray(frame), place, InstanceNumber=k + 1)
        ds.ImageOrientationPatient, ds.PixelSpacing = list(way), [STEP, PITCH]
        ds.save_as(tmp_path / f"{k + 1}.dcm", enforce_file_format=True)
    study = read_study(tmp_path)
    assert np.array_equal(study.hu, HU) and "resliced" in study.problems
    assert np.allclose(study.origins_mm, positions(NZ)) and study.spacing_mm == (STEP, PITCH, PITCH)
    assert np.allclose(study.axes, [[0, 1, 0], [1, 0, 0]])
    geometry = read_geometry(tmp_path)
    assert geometry.files == study.files and len(set(study.files)) == NZ


def test_boxes_follow_mirrored_frames(tmp_path):
    competition = Competition(tmp_path)
    write_scan(competition.images("train", "1.2.1"))
    mirrored = [
        (HU[z][::-1, ::-1], (RIGHT, -60 + PITCH * (SIZE - 1), p[2]), (-1, 0, 0, 0, -1, 0))
        for z, p in enumerate(positions(NZ))
    ]
    write(competition.images("train", "1.2.2"), mirrored)
    labels = pd.DataFrame({"StudyInstanceUID": ["1.2.1", "1.2.2"], **dict.fromkeys(TARGETS, 1)})
    labels.to_csv(competition.train_csv, index=False)
    boxes = [["1.2.1", 10, 20, 7, 5, 3], ["1.2.2", SIZE - 17, SIZE - 25, 7, 5, 3]]
    columns = ["StudyInstanceUID", "x", "y", "width", "height", "slice_number"]
    pd.DataFrame(boxes, columns=columns).to_csv(competition.boxes_csv, index=False)
    slices = build_index(competition, {}, jobs=1).slices
    drawn = slices[slices["box_x"].notna()]
    assert list(drawn["study_uid"]) == ["1.2.1", "1.2.2"]
    assert np.allclose(drawn[["box_x", "box_y", "box_w", "box_h"]], [[10, 20, 7, 5]] * 2)

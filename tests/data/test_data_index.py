"""Index and masks on a competition of synthetic scans."""

import numpy as np
import pandas as pd
import pytest
from scans import NZ, SIZE, STEP, neck_hu, neck_labels, write_mask, write_scan

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import DataError, StudyError
from cspine_kit.core.paths import Competition
from cspine_kit.core.tables import SPINE_BOX_COLUMNS, check_table
from cspine_kit.data import index as index_room
from cspine_kit.data.index import build_index
from cspine_kit.data.masks import read_mask
from cspine_kit.data.reader.dicom import read_study


@pytest.fixture
def competition(tmp_path):
    root = tmp_path / "comp"
    for uid in ("1.2.1", "1.2.2", "1.2.3"):
        write_scan(root / "train_images" / uid, reverse=uid == "1.2.2")
    write_scan(root / "test_images" / "1.2.7", neck_hu(3))
    labels = pd.DataFrame({"StudyInstanceUID": ["1.2.1", "1.2.2", "1.2.3", "1.2.4"]})
    for target in TARGETS:
        labels[target] = [0, int(target in ("C2", "patient_overall")), 0, 0]
    labels = pd.concat([labels, labels.iloc[[0]]])
    labels.to_csv(root / "train.csv", index=False)
    boxes = [["1.2.2", 1.5, 2, 3, 4, 20], ["1.2.2", 1, 2, 3, 4, 200]]
    columns = ["StudyInstanceUID", "x", "y", "width", "height", "slice_number"]
    pd.DataFrame(boxes, columns=columns).to_csv(root / "train_bounding_boxes.csv", index=False)
    uids = ["1.2.7", "1.2.7", "1.2.8", "../1.2.1"]
    pd.DataFrame({"row_id": range(4), "StudyInstanceUID": uids}).to_csv(
        root / "test.csv", index=False
    )
    for uid in ("1.2.1", "1.2.2"):
        write_mask(root / "segmentations" / f"{uid}.nii", neck_labels(), sagittal=uid == "1.2.1")
    return Competition(root)


def test_tables(competition):
    studies, slices, _, failures, _ = build_index(competition, {"1.2.3": "noisy"}, jobs=1)
    studies, slices = check_table(studies, "studies"), check_table(slices, "slices")
    assert list(studies["study_uid"]) == ["1.2.1", "1.2.2", "1.2.7"]
    assert list(studies["split"]) == ["train", "train", "test"]
    assert list(studies["reversed"]) == [False, True, False]
    assert list(studies["has_boxes"]) == [False, True, False]
    assert list(studies["has_mask"]) == [True, True, False]
    assert studies["C2"].tolist()[:2] == [0, 1] and studies["C2"].isna()[2]
    assert set(failures) == {"1.2.3", "1.2.4", "1.2.8", "../1.2.1"}
    assert "noisy" in failures["1.2.3"] and "no folder" in failures["1.2.8"]
    two = slices[slices["study_uid"] == "1.2.2"].set_index("slice_idx")
    assert two["box_x"].notna().sum() == 1
    # Reversed: file 20 of 24 lies 4 slices below the head.
    assert two.loc[4, "slice_number"] == 20 and two.loc[4, "box_x"] == 1.5
    assert two.loc[0, "file"] == "24.dcm"
    assert np.isnan(two.loc[0, "gap_mm"]) and two.loc[1, "gap_mm"] == STEP
    assert slices[slices["study_uid"] == "1.2.7"]["mask_C1"].isna().all()


def test_masks_agree_in_both_directions(competition):
    _, slices, _, _, _ = build_index(competition, {}, jobs=1)
    for uid in ("1.2.1", "1.2.2"):
        own = slices[slices["study_uid"] == uid].sort_values("slice_idx")
        for level in range(1, 8):
            shown = own[f"mask_C{level}"] > 0
            assert list(np.flatnonzero(shown)) == [3 * level - 3, 3 * level - 2, 3 * level - 1]
            assert own[f"mask_C{level}"].max() == 1.0
        rows, cols = np.nonzero(neck_labels()[0])
        box = own[list(SPINE_BOX_COLUMNS)].iloc[0]
        assert list(box) == [1.5 * v for v in (rows.min(), cols.min(), rows.max(), cols.max())]
        assert own["spine_y0_mm"].isna().iloc[-1]


def test_jobs_do_not_matter_and_finished_studies_are_kept(competition, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    one = build_index(competition, {}, jobs=1, scratch=scratch)
    two = build_index(competition, {}, jobs=2)
    pd.testing.assert_frame_equal(one[0], two[0])
    pd.testing.assert_frame_equal(one[1], two[1])
    asked = []
    real = index_room.index_study
    monkeypatch.setattr(
        index_room, "index_study", lambda job, uid: asked.append(uid) or real(job, uid)
    )
    (competition.images("train", "1.2.3") / "5.dcm").unlink()
    again = build_index(competition, {}, jobs=1, scratch=scratch)
    assert asked == ["1.2.3"]
    assert again[0].set_index("study_uid").loc["1.2.3", "n_slices"] == NZ - 1


def test_mask_follows_the_affine_and_must_sit_on_bone(tmp_path):
    write_scan(tmp_path / "s", reverse=True)
    study = read_study(tmp_path / "s", "1.2.3")
    labels = neck_labels()
    for sagittal in (True, False):
        write_mask(tmp_path / "m.nii", labels, sagittal=sagittal)
        assert np.array_equal(read_mask(tmp_path / "m.nii", study), labels)
    # A header that forgets a flip of the rows: the pixels prove it.
    write_mask(tmp_path / "m.nii", labels[:, ::-1])
    assert np.array_equal(read_mask(tmp_path / "m.nii", study), labels)
    soft = np.zeros_like(labels)
    soft[:, 30:34, 60:64] = 3
    write_mask(tmp_path / "m.nii", soft)
    with pytest.raises(StudyError, match=r"study 1\.2\.3: its mask sits on no bone"):
        read_mask(tmp_path / "m.nii", study)
    (tmp_path / "m.nii").write_bytes(b"broken")
    with pytest.raises(StudyError, match="cannot be read"):
        read_mask(tmp_path / "m.nii", study)


def test_a_bad_mask_costs_only_itself(competition):
    write_mask(competition.segmentation("1.2.1"), np.zeros((NZ, SIZE, SIZE), np.uint8))
    index = build_index(competition, {}, jobs=1)
    studies = index.studies.set_index("study_uid")
    assert set(studies.index) == {"1.2.1", "1.2.2", "1.2.3", "1.2.7"}
    assert set(index.failures) == {"1.2.4", "1.2.8", "../1.2.1"}
    assert index.remarks["1.2.1"] == ["its mask holds no voxel of C1..C7 inside the scan"]
    assert studies.loc["1.2.1", "problems"] == "other_study bad_mask"
    assert not studies.loc["1.2.1", "has_mask"] and studies.loc["1.2.2", "has_mask"]
    assert studies.loc["1.2.2", "problems"] == "other_study bad_boxes", (
        "a box on a slice that is not there"
    )


def test_unusable_train_csv(competition):
    competition.train_csv.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns"):
        build_index(competition, {}, jobs=1)

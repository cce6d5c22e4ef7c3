"""Table contracts: types, keys, ranges, and rows of another fold's model refused."""

import pandas as pd
import pytest

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.errors import ArtifactError, TableError
from cspine_kit.core.tables import (
    FRACTURE_COLUMNS,
    VERTEBRA_COLUMNS,
    check_table,
    read_table,
    write_table,
)


def predictions(**changes) -> pd.DataFrame:
    row = {"model": "stack", "study_uid": "1.2", "target": "C1", "prob": 0.5, "fold": 0}
    return pd.DataFrame([row | changes])


def oof_rows(fold: int, model_fold: int) -> pd.DataFrame:
    row = {"member": "a", "study_uid": "1.2", "plane": "axial", "position": 0, "slice_idx": 0}
    row |= {"model_fold": model_fold, "fold": fold, "at_mm": 1.0}
    row |= dict.fromkeys((*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS), 0.1)
    return pd.DataFrame([row])


def test_round_trip_sorts_by_key(tmp_path):
    frame = pd.concat([predictions(study_uid="2"), predictions(study_uid="1")])
    written = write_table(frame, tmp_path / "p.parquet", "predictions")
    assert written["study_uid"].tolist() == ["1", "2"]
    pd.testing.assert_frame_equal(read_table(tmp_path / "p.parquet", "predictions"), written)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (predictions(prob=1.0), "inside"),
        (predictions(prob=float("nan")), "prob"),
        (predictions(target="C8"), "target"),
        (predictions().drop(columns="fold"), "fold"),
        (predictions(extra=1), "extra"),
        (pd.concat([predictions(), predictions()], ignore_index=True), "unique"),
    ],
)
def test_faults_are_named(frame, said):
    with pytest.raises(TableError, match=said):
        check_table(frame, "predictions")


def test_nothing_is_written_when_the_check_fails(tmp_path):
    with pytest.raises(TableError):
        write_table(predictions(prob=2.0), tmp_path / "p.parquet", "predictions")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_folds_model_are_refused():
    assert len(check_table(oof_rows(1, 1), "oof_slices")) == 1
    with pytest.raises(TableError, match="fold != model_fold"):
        check_table(oof_rows(1, 0), "oof_slices")


def test_a_leaked_table_on_disk_is_refused(tmp_path):
    oof_rows(1, 0).to_parquet(tmp_path / "leak.parquet")
    with pytest.raises(TableError, match="may have seen"):
        read_table(tmp_path / "leak.parquet", "oof_slices")


def test_an_absent_table_names_the_next_step(tmp_path):
    with pytest.raises(ArtifactError, match="make oof"):
        read_table(tmp_path / "none.parquet", "oof_slices")


def test_slices_of_any_plane_keep_their_place(tmp_path):
    axial = oof_rows(0, 0)
    turned = axial.assign(plane="sagittal", slice_idx=pd.NA)
    written = write_table(pd.concat([axial, turned]), tmp_path / "o.parquet", "oof_slices")
    assert written["slice_idx"].isna().tolist() == [False, True]
    pd.testing.assert_frame_equal(read_table(tmp_path / "o.parquet", "oof_slices"), written)
    for wrong in (axial.assign(slice_idx=1), axial.assign(slice_idx=pd.NA)):
        with pytest.raises(TableError, match="in the axial plane slice_idx is the position"):
            check_table(wrong, "oof_slices")
    with pytest.raises(TableError, match="in others it is missing"):
        check_table(turned.assign(slice_idx=0), "oof_slices")
    with pytest.raises(TableError, match="plane"):
        check_table(axial.assign(plane="oblique"), "oof_slices")


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("oof_levels", {"level": list(LEVELS), "fracture": -0.5}),
        ("oof_studies", {"overall": 0.5}),
        (
            "oof_boxes",
            dict.fromkeys(("slice_idx", "n"), 0)
            | dict.fromkeys(("at_mm", "x", "y", "width", "height"), 1.0)
            | {"score": 0.5},
        ),
    ],
)
def test_scores_of_another_folds_model_are_refused(name, own):
    row = {"member": "a", "study_uid": "1.2", "model_fold": 1, "fold": 1} | own
    frame = pd.DataFrame(row, index=range(7 if name == "oof_levels" else 1))
    assert len(check_table(frame, name)) == len(frame)
    with pytest.raises(TableError, match="fold != model_fold"):
        check_table(frame.assign(fold=0), name)


def test_a_study_has_seven_levels_from_top_to_bottom():
    places = ("center_z_mm", "center_y_mm", "center_x_mm", "confidence")
    seven = pd.DataFrame({"study_uid": "1.2", "level": LEVELS, "model_fold": 0, "source": "model"})
    seven = seven.assign(present=True, z_top_mm=2.0, z_bottom_mm=1.0, **dict.fromkeys(places, 0.0))
    assert len(check_table(seven, "levels")) == 7
    for wrong in (seven.drop(index=3), seven.assign(z_bottom_mm=3.0)):
        with pytest.raises(TableError, match=r"table levels: not C1\.\.C7.*'study_uid': '1\.2'"):
            check_table(wrong, "levels")

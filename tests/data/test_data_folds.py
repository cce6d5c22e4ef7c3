"""Folds: groups stay together, labels and masks are balanced, the CSV wins."""

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import LEVELS, OVERALL
from cspine_kit.core.config import FoldsConfig
from cspine_kit.core.errors import DataError
from cspine_kit.data.folds import load_folds, make_folds, settle_folds


def make_studies(n=200, seed=0, groups=None):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"study_uid": [f"1.2.{i}" for i in range(n)]})
    for level, rate in zip(LEVELS, (0.07, 0.14, 0.04, 0.05, 0.08, 0.14, 0.19), strict=True):
        frame[level] = (rng.random(n) < rate).astype(float)
    frame[OVERALL] = frame[list(LEVELS)].max(axis=1)
    frame["has_mask"] = rng.random(n) < 0.1
    frame["has_boxes"] = False
    if groups:
        frame["group"] = [f"g{i % groups}" for i in range(n)]
    return frame


def test_balanced_and_deterministic():
    studies = make_studies()
    folds = make_folds(studies, n=5, seed=1)
    pd.testing.assert_frame_equal(folds, make_folds(studies.sample(frac=1), n=5, seed=1))
    assert (folds["fold"].value_counts() - 40).abs().max() <= 3
    joined = folds.merge(studies, on="study_uid")
    for column in (*LEVELS, OVERALL, "has_mask"):
        counts = joined.groupby("fold")[column].sum()
        assert counts.max() - counts.min() <= 2, column
    assert not folds["fold"].equals(make_folds(studies, n=5, seed=2)["fold"])


def test_groups_stay_together():
    folds = make_folds(make_studies(groups=37), n=4, seed=0)
    assert (folds.groupby("group")["fold"].nunique() == 1).all()
    assert folds["fold"].value_counts().max() <= 66


def test_every_fold_gets_masks_in_a_tiny_set():
    studies = make_studies(12)
    studies["has_mask"] = [True] * 3 + [False] * 9
    folds = make_folds(studies, n=3, seed=0).merge(studies, on="study_uid")
    assert (folds.groupby("fold")["has_mask"].sum() == 1).all()


def test_more_folds_than_groups():
    with pytest.raises(DataError, match="lower folds"):
        make_folds(make_studies(3), n=5, seed=0)
    with pytest.raises(DataError, match=r"3 groups of 30 studies cannot.*10 studies are one group"):
        make_folds(make_studies(30, groups=3), n=5, seed=0)


def test_a_study_that_broke_keeps_its_row_and_stops_nothing(tmp_path):
    studies, config, path = make_studies(30), FoldsConfig(n=3), tmp_path / "folds.csv"
    first = settle_folds(studies, config, path, seed=0)
    lost = {studies["study_uid"][4]: "its folder is gone"}
    left = studies[~studies["study_uid"].isin(lost)]
    pd.testing.assert_frame_equal(settle_folds(left, config, path, 0, lost), first)
    all_of_one = set(first.loc[first["fold"] == 1, "study_uid"])
    left = studies[~studies["study_uid"].isin(all_of_one)]
    with pytest.raises(DataError, match=r"every study of folds \[1\] was left out"):
        settle_folds(left, config, path, 0, all_of_one)


def test_a_folds_csv_from_a_spreadsheet(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text("\ufeffSTUDY_UID ; Fold\r\n1.2 ;0.0\r\n1.3;1\r\n")
    folds = load_folds(path)
    assert folds["study_uid"].tolist() == ["1.2", "1.3"] == folds["group"].tolist()
    assert folds["fold"].tolist() == [0, 1]


def test_csv_wins_and_must_fit(tmp_path):
    studies, config, path = make_studies(30), FoldsConfig(n=3), tmp_path / "folds.csv"
    first = settle_folds(studies, config, path, seed=0)
    pd.testing.assert_frame_equal(load_folds(path), first)
    pd.testing.assert_frame_equal(settle_folds(studies, config, path, seed=99), first)
    with pytest.raises(DataError, match=r"1 studies have no fold \(1\.2\.30\): append a row"):
        settle_folds(make_studies(31), config, path, seed=0)
    with pytest.raises(DataError, match="name studies that are gone"):
        settle_folds(studies.iloc[1:], config, path, seed=0)
    with pytest.raises(DataError, match=r"hold 3 folds, the config asks for folds\.n = 4"):
        settle_folds(studies, FoldsConfig(n=4), path, seed=0)


def test_own_file_wins_over_the_run(tmp_path):
    studies, path = make_studies(6), tmp_path / "folds.csv"
    settle_folds(studies, FoldsConfig(n=2), path, seed=0)
    own = tmp_path / "own.csv"
    pd.DataFrame({"study_uid": studies["study_uid"], "fold": [0, 1] * 3}).to_csv(own, index=False)
    folds = settle_folds(studies, FoldsConfig(n=2, file=own), path, seed=0)
    assert list(folds["fold"]) == [0, 1] * 3 and list(load_folds(path)["fold"]) == [0, 1] * 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,g,s,0\nb,g,s,1\n", "groups lie in two folds"),
        ("a,g,s,0\na,g,s,0\n", "listed twice"),
        ("a,g,s,1\nb,h,s,2\n", "0..n-1"),
        ("a,g,s,0\nb,h,s,\n", r"folds\.csv line 3, column fold: cannot be ''"),
        ("a,g,s,0\nb,h,s,1.5\n", r"line 3, column fold: cannot be '1\.5'"),
        ("a,g,s,0\n,h,s,1\n", r"line 3, column study_uid: cannot be ''"),
        ("a,g,s,0\nb,h,s,1,2\n", r"line 3 has 5 cells, the header names 4"),
    ],
)
def test_broken_csv(tmp_path, rows, message):
    path = tmp_path / "folds.csv"
    path.write_text("study_uid,group,stratum,fold\n" + rows)
    with pytest.raises(DataError, match=message):
        load_folds(path)


def test_known_groups_may_not_be_split_by_a_csv(tmp_path):
    studies, path = make_studies(6, groups=3), tmp_path / "folds.csv"
    pd.DataFrame({"study_uid": studies["study_uid"], "fold": [0, 0, 0, 1, 1, 1]}).to_csv(
        path, index=False
    )
    with pytest.raises(DataError, match="groups lie in two folds"):
        settle_folds(studies, FoldsConfig(n=2), path, seed=0)

"""One's own scans beside the competition's: they join, keep their source, and move no fold."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from scans import neck_labels, write_mask, write_scan
from test_data_folds import make_studies

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import load_config
from cspine_kit.core.errors import DataError
from cspine_kit.core.paths import COMPETITION, Competition
from cspine_kit.data.folds import make_folds
from cspine_kit.data.index import build_index
from cspine_kit.data.sources import check_extra, read_sources

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def write_labels(root, fractured):
    rows = [dict.fromkeys(TARGETS, v) | {"StudyInstanceUID": uid} for uid, v in fractured.items()]
    pd.DataFrame(rows).to_csv(root / "train.csv", index=False)


@pytest.fixture
def both(tmp_path):
    for name, uids in (("comp", ("1.2.1", "1.2.2")), ("mine", ("1.2.2", "1.3.1"))):
        for uid in uids:
            write_scan(tmp_path / name / "train_images" / uid)
    write_labels(tmp_path / "comp", {"1.2.1": 0, "1.2.2": 1})
    write_labels(tmp_path / "mine", {"1.2.2": 0, "1.3.1": 1})
    write_mask(tmp_path / "mine" / "segmentations" / "1.3.1.nii", neck_labels(), sagittal=False)
    return Competition(tmp_path / "comp", (tmp_path / "mine",))


def test_own_scans_join_with_masks_and_their_source(both):
    studies, slices, _, failures, remarks = build_index(both, {}, jobs=1)
    table = studies.set_index("study_uid")
    assert failures == {} and list(table.index) == ["1.2.1", "1.2.2", "1.3.1"]
    mine = str(both.extra[0])
    assert table["source"].tolist() == [COMPETITION, COMPETITION, mine]
    assert table["patient_overall"].tolist() == [0, 1, 1]
    assert table["has_mask"].tolist() == [False, False, True]
    assert slices.loc[slices["study_uid"] == "1.3.1", "mask_C1"].notna().all()
    assert remarks["1.2.2"] == [f"it is in competition and in {mine}; the first counts"]
    assert both.images("train", "1.2.2").is_relative_to(both.root)
    assert both.images("train", "1.3.1").is_relative_to(both.extra[0])


def test_a_folder_without_labels_is_refused(both, tmp_path):
    (tmp_path / "mine" / "train.csv").unlink()
    with pytest.raises(DataError, match=r"mine lacks train.csv; it needs"):
        check_extra(both)
    with pytest.raises(DataError, match=r"mine.train\.csv"):
        read_sources(both)
    with pytest.raises(DataError, match="twice"):
        check_extra(Competition(both.root, both.extra * 2))


def test_the_competitions_folds_do_not_move():
    own = make_studies(60).assign(source=COMPETITION)
    extra = make_studies(31, seed=3).assign(source="mine")
    extra["study_uid"] = "1.1." + extra["study_uid"]
    together = pd.concat([own, extra], ignore_index=True)
    # One of the new ones shows a patient of the competition's, and gives the pair its name.
    together["group"] = together["study_uid"]
    together.loc[together["study_uid"] == "1.2.7", "group"] = extra["study_uid"].iloc[0]
    alone = make_folds(own, n=3, seed=5).set_index("study_uid")["fold"]
    fold = make_folds(together, n=3, seed=5).set_index("study_uid")["fold"]
    pd.testing.assert_series_equal(fold[alone.index], alone)
    assert fold[extra["study_uid"].iloc[0]] == alone["1.2.7"]
    counts = fold[extra["study_uid"]].value_counts()
    assert counts.max() - counts.min() <= 2


def test_few_own_scans_need_not_fill_every_fold():
    own = make_studies(30).assign(source=COMPETITION)
    extra = make_studies(1, seed=3).assign(source="mine", study_uid="1.1.9")
    assert len(make_folds(pd.concat([own, extra]), n=5, seed=0)) == 31


def test_config(tmp_path):
    (tmp_path / "a.yaml").write_text("base: base.yaml\nname: a\ncompetition: {extra: [mine]}\n")
    shutil.copy(CONFIGS / "base.yaml", tmp_path)
    assert [str(p) for p in load_config(tmp_path / "a.yaml").competition.extra] == ["mine"]

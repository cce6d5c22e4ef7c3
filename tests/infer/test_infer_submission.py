"""Submissions: what is wrong is named by row, and a score agrees with the metric."""

import json

import numpy as np
import pandas as pd
import pytest

from cspine_kit.cli import main
from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.errors import DataError, SubmissionError
from cspine_kit.core.metric import evaluate
from cspine_kit.data.labels import read_labels
from cspine_kit.infer.score import truth_row_ids
from cspine_kit.infer.submission import (
    listed_rows,
    prior_probs,
    read_submission,
    read_wanted_rows,
    write_submission,
)

UIDS = ["1.2.826.0.1.3680043.10", "1.2.826.0.1.3680043.9"]


@pytest.fixture(name="files")
def _files(tmp_path):
    """train.csv-shaped truth, the same as rows, and a valid submission in another order."""
    truth = pd.DataFrame({"StudyInstanceUID": UIDS, "patient_overall": [1, 0]})
    for level in LEVELS:
        truth[level] = [int(level in ("C2", "C7")), 0]
    truth.to_csv(tmp_path / "truth.csv", index=False)
    rows = [
        (f"{uid}_{t}", int(truth.set_index("StudyInstanceUID").loc[uid, t]))
        for t in TARGETS
        for uid in UIDS
    ]
    pd.DataFrame(rows, columns=["row_id", "fractured"]).to_csv(tmp_path / "rows.csv", index=False)
    submission = pd.DataFrame({"row_id": [r for r, _ in rows]})
    submission["fractured"] = np.linspace(0.05, 0.8, len(rows))
    submission.sample(frac=1, random_state=1).to_csv(tmp_path / "submission.csv", index=False)
    return tmp_path


def test_both_shapes_of_truth_agree(files):
    pd.testing.assert_frame_equal(read_labels(files / "truth.csv"), read_labels(files / "rows.csv"))


def test_score_is_the_metric_joined_on_row_id(files, capsys):
    arguments = ["score", str(files / "submission.csv"), "--truth", str(files / "rows.csv")]
    assert main([*arguments, "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    truth = read_labels(files / "truth.csv")
    given = pd.read_csv(files / "submission.csv").set_index("row_id")["fractured"]
    probs = given.loc[truth_row_ids(truth)].to_numpy().reshape(2, 8)
    expected = evaluate(truth[list(TARGETS)].to_numpy(), probs)
    assert score["metric_per_exam"] == pytest.approx(expected.per_exam)
    assert score["metric_global"] == pytest.approx(expected.whole)
    assert score["per_target"] == pytest.approx(expected.per_target)
    assert score["n_studies"] == 2
    assert main(arguments) == 0
    assert f"{expected.per_exam:.4f}" in capsys.readouterr().out


def drop_row(frame):
    return frame[frame["row_id"] != f"{UIDS[0]}_C3"]


def add_row(frame):
    return pd.concat([frame, pd.DataFrame({"row_id": ["9.9_C1"], "fractured": ["0.5"]})])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_row, f"1 missing rows: {UIDS[0]}_C3"),
        (add_row, "1 extra rows: 9.9_C1"),
        (lambda f: pd.concat([f, f.tail(1)]), "1 duplicate rows"),
        (lambda f: f.assign(fractured=["nan", *f["fractured"][1:]]), "NaN or not a number"),
        (lambda f: f.assign(fractured=["", *f["fractured"][1:]]), "NaN or not a number"),
        (lambda f: f.assign(fractured=["1.5", *f["fractured"][1:]]), "outside [0, 1]"),
        (lambda f: f.assign(fractured=["inf", *f["fractured"][1:]]), "outside [0, 1]"),
        (lambda f: f.rename(columns={"fractured": "p"}), "columns must be"),
        (lambda f: f.assign(extra=1), "columns must be"),
    ],
)
def test_an_invalid_submission_exits_2_and_names_the_rows(files, capsys, change, said):
    frame = pd.read_csv(files / "submission.csv", dtype=str)
    change(frame).to_csv(files / "bad.csv", index=False)
    status = main(["score", str(files / "bad.csv"), "--truth", str(files / "truth.csv")])
    assert status == 2
    assert said in capsys.readouterr().err


def test_every_fault_is_told_at_once(files):
    frame = add_row(drop_row(pd.read_csv(files / "submission.csv", dtype=str)))
    frame.to_csv(files / "bad.csv", index=False)
    truth = read_labels(files / "truth.csv")
    with pytest.raises(SubmissionError, match=r"missing.*extra"):
        read_submission(files / "bad.csv", truth_row_ids(truth))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("row_id,fractured\n1.2_C1,1\n", "study 1.2: truth.csv has no row for C2"),
        (
            f"study_uid,{','.join(TARGETS)}\n1.2,0,0,0,0,0,0,2,1\n",
            "study 1.2: truth.csv line 2, column C7: '2' is not 0 or 1",
        ),
        ("row_id,fractured\n1.2_C9,1\n", "row ids must end"),
        ("row_id,fractured\n1.2,1\n", "row ids must end"),
        ("a,b\n1,2\n", "lacks columns"),
        ("", "cannot be read"),
    ],
)
def test_unusable_truth_is_an_error(tmp_path, text, said):
    (tmp_path / "truth.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_labels(tmp_path / "truth.csv")


def test_wanted_rows_keep_order_and_drop_repeats(tmp_path):
    test_csv = tmp_path / "test.csv"
    test_csv.write_text(
        "row_id,StudyInstanceUID,prediction_type\n1.3_C2,1.3,C2\n1.2_C1,1.2,C1\n1.3_C2,1.3,C2\n"
    )
    wanted = read_wanted_rows(test_csv)
    assert wanted["row_id"].tolist() == ["1.3_C2", "1.2_C1"]
    test_csv.write_text("row_id,uid\n1,2\n")
    with pytest.raises(DataError, match="lacks columns"):
        read_wanted_rows(test_csv)


def test_priors_cover_unknown_types_and_writing_refuses_nonsense(tmp_path):
    wanted = pd.DataFrame({"row_id": ["a_C1", "a_C9"], "study_uid": "a", "target": ["C1", "C9"]})
    probs = prior_probs(wanted, {"C1": 0.1})
    assert probs.tolist() == [0.1, 0.5]
    write_submission(wanted, probs, tmp_path / "s.csv")
    assert read_submission(tmp_path / "s.csv", wanted["row_id"]).tolist() == [0.1, 0.5]
    for bad in (np.nan, 1.5, np.inf):
        with pytest.raises(SubmissionError, match="a_C1"):
            write_submission(wanted, pd.Series([bad, 0.5]), tmp_path / "s.csv")
    assert read_submission(tmp_path / "s.csv", wanted["row_id"]).tolist() == [0.1, 0.5]


def listing(folder, test_ids, sample_ids):
    rows = [(row, *row.split("_", 1)) for row in test_ids]
    columns = ["row_id", "StudyInstanceUID", "prediction_type"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "test.csv", index=False)
    pd.DataFrame({"row_id": sample_ids, "fractured": 0.5}).to_csv(folder / "s.csv", index=False)
    return listed_rows(folder / "test.csv", folder / "s.csv")


def test_listings_that_agree_give_the_rows_of_test_csv(tmp_path):
    wanted, mismatch = listing(tmp_path, ["1.2_C1", "1.2_C2"], ["1.2_C2", "1.2_C1"])
    assert wanted["row_id"].tolist() == ["1.2_C1", "1.2_C2"] and mismatch is None
    (tmp_path / "s.csv").unlink()
    assert listed_rows(tmp_path / "test.csv", tmp_path / "s.csv")[1] is None


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffrow_id,StudyInstanceUID,prediction_type\n1.2_C1,1.2,C1\n1.2_C2,1.2,C2\n",
        "row_id;StudyInstanceUID;prediction_type\n1.2_C1;1.2;C1\n1.2_C2;1.2;C2\n",
        " Row_ID , StudyInstanceUID, prediction_type\n1.2_C1 , 1.2 ,C1\n\n1.2_C2,1.2, C2 \n,,\n",
    ],
    ids=["byte order mark", "semicolons", "blanks"],
)
def test_a_listing_that_a_spreadsheet_saved_is_read(tmp_path, text):
    for name in ("test.csv", "s.csv"):
        (tmp_path / name).write_text(text)
    wanted, mismatch = listed_rows(tmp_path / "test.csv", tmp_path / "s.csv")
    assert mismatch is None
    expected = [["1.2_C1", "1.2", "C1"], ["1.2_C2", "1.2", "C2"]]
    assert wanted.to_numpy().tolist() == expected


def test_lines_of_the_listing_that_are_none_are_said(tmp_path):
    listing(tmp_path, ["1.2_C1", "1.2_C2"], ["1.2_C1", "1.2_C2"])
    with (tmp_path / "test.csv").open("a") as handle:
        handle.write("1.3_C1,1.3,C1,C2\n,1.4,C1\n")
    wanted, said = listed_rows(tmp_path / "test.csv", tmp_path / "s.csv")
    assert wanted["row_id"].tolist() == ["1.2_C1", "1.2_C2"]
    assert "line 4 has 4 cells" in said and "line 5 has no row_id" in said


def test_rows_of_either_listing_are_predicted_and_the_difference_is_said(tmp_path):
    wanted, mismatch = listing(
        tmp_path, ["1.2_C1", "1.2_C2"], ["1.2_C1", "1.9_patient_overall", "odd"]
    )
    assert wanted["row_id"].tolist() == ["1.2_C1", "1.2_C2", "1.9_patient_overall", "odd"]
    assert wanted.loc[2, ["study_uid", "target"]].tolist() == ["1.9", "patient_overall"]
    assert "1.9_patient_overall" in mismatch and "1.2_C2" in mismatch


def test_a_sample_that_cannot_be_read_is_a_difference_and_no_more(tmp_path):
    listing(tmp_path, ["1.2_C1"], ["1.2_C1"])
    (tmp_path / "s.csv").write_text("nothing\n1\n")
    wanted, mismatch = listed_rows(tmp_path / "test.csv", tmp_path / "s.csv")
    assert len(wanted) == 1 and "cannot be used" in mismatch

"""Submissions: which rows are wanted, which are wrong, and what a file scores.

In: submission, test.csv and truth files. Out: checked frames, scores, an atomically written CSV.
Example::

    wanted = read_wanted_rows(competition.test_csv)
    write_submission(wanted, probs, Path("submission.csv"))
    score_submission(Path("submission.csv"), Path("solution.csv"))

Rows are joined on row_id, never on position: row_id = <study_uid>_<target>.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import OVERALL, TARGETS
from cspine_kit.core.errors import DataError, SubmissionError
from cspine_kit.core.metric import bootstrap_interval, evaluate
from cspine_kit.core.runs import publish

SUBMISSION_COLUMNS = ["row_id", "fractured"]
TEST_COLUMNS = ["row_id", "StudyInstanceUID", "prediction_type"]
SHOWN_ROWS = 5


def _read_csv(path: Path, what: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{what} {path} cannot be read: {error}") from error


def _shown(rows: pd.Series) -> str:
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    return ", ".join(map(str, rows.head(SHOWN_ROWS))) + more


def read_wanted_rows(test_csv: Path) -> pd.DataFrame:
    """Rows to predict, in the order of test.csv: row_id, study_uid, target, as strings.

    Raises:
        DataError: unreadable, wrong columns, no rows or a repeated row_id.
    """
    frame = _read_csv(test_csv, "test listing")
    missing = [column for column in TEST_COLUMNS if column not in frame.columns]
    if missing:
        raise DataError(f"{test_csv} lacks columns {missing}; it has {list(frame.columns)}")
    if frame.empty:
        raise DataError(f"{test_csv} has no rows")
    wanted = frame[TEST_COLUMNS].set_axis(["row_id", "study_uid", "target"], axis=1)
    return wanted.drop_duplicates("row_id", ignore_index=True)


def listed_rows(test_csv: Path, sample_csv: Path) -> tuple[pd.DataFrame, str | None]:
    """Rows of test.csv, then rows that only sample_submission.csv has; and how the two differ.

    Raises:
        DataError: test.csv cannot be used (a sample that cannot be read is only a difference).
    """
    wanted = read_wanted_rows(test_csv)
    if not sample_csv.exists():
        return wanted, None
    try:
        ids = _read_csv(sample_csv, "sample submission")["row_id"].drop_duplicates()
    except (DataError, KeyError) as error:
        return wanted, f"{sample_csv} cannot be used: {error}"
    extra, lost = ids[~ids.isin(wanted["row_id"])], wanted["row_id"][~wanted["row_id"].isin(ids)]
    if extra.empty and lost.empty:
        return wanted, None
    parts = [(row, *(*row.split("_", 1), "")[:2]) for row in extra]
    rows = pd.concat([wanted, pd.DataFrame(parts, columns=wanted.columns)], ignore_index=True)
    return rows, (
        f"only in {sample_csv.name}: {len(extra)} rows ({_shown(extra)}); "
        f"only in {test_csv.name}: {len(lost)} ({_shown(lost)}); all are predicted"
    )


def write_submission(wanted: pd.DataFrame, probs: pd.Series, path: Path) -> None:
    """Write exactly the wanted rows, atomically; `probs` has one value per wanted row, in order."""
    values = np.asarray(probs, dtype=np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()):
        bad = wanted["row_id"][~((values >= 0) & (values <= 1))]
        raise SubmissionError(f"refusing to write probabilities outside [0, 1]: {_shown(bad)}")
    frame = pd.DataFrame({"row_id": wanted["row_id"], "fractured": values})
    with publish(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.8f")


def read_submission(path: Path, row_ids: pd.Series) -> pd.Series:
    """Read and check a submission against the wanted row ids.

    Returns:
        Probabilities float64 indexed by row_id, in the order of `row_ids`.

    Raises:
        SubmissionError: wrong columns, missing, extra or duplicate rows, not a number, NaN, or a
            value outside [0, 1]; names the rows.
    """
    frame = _read_csv(path, "submission")
    if list(frame.columns) != SUBMISSION_COLUMNS:
        raise SubmissionError(
            f"{path}: columns must be {SUBMISSION_COLUMNS}, got {list(frame.columns)}"
        )
    faults = []
    duplicate = frame["row_id"][frame["row_id"].duplicated()].drop_duplicates()
    if len(duplicate):
        faults.append(f"{len(duplicate)} duplicate rows: {_shown(duplicate)}")
    missing = row_ids[~row_ids.isin(frame["row_id"])]
    if len(missing):
        faults.append(f"{len(missing)} missing rows: {_shown(missing)}")
    extra = frame["row_id"][~frame["row_id"].isin(row_ids)]
    if len(extra):
        faults.append(f"{len(extra)} extra rows: {_shown(extra)}")
    values = pd.to_numeric(frame["fractured"], errors="coerce")
    unreadable = frame["row_id"][values.isna()]
    if len(unreadable):
        faults.append(f"{len(unreadable)} rows are NaN or not a number: {_shown(unreadable)}")
    outside = frame["row_id"][(values < 0) | (values > 1)]
    if len(outside):
        faults.append(f"{len(outside)} rows outside [0, 1]: {_shown(outside)}")
    if faults:
        raise SubmissionError(f"{path}: " + "; ".join(faults))
    return pd.Series(values.to_numpy(), index=frame["row_id"]).loc[row_ids]


def read_truth(path: Path) -> pd.DataFrame:
    """Truth of some studies, from train.csv's shape or from `row_id,fractured`.

    Returns:
        Columns study_uid, C1..C7, patient_overall (0 / 1 float64), sorted by study_uid.

    Raises:
        DataError: another shape, a missing row, a repeated study or a label other than 0 and 1.
    """
    frame = _read_csv(path, "truth")
    if list(frame.columns) == SUBMISSION_COLUMNS:
        parts = frame["row_id"].str.split("_", n=1, expand=True)
        if parts.shape[1] != 2 or not parts[1].isin(TARGETS).all():
            bad = frame["row_id"][~parts.reindex(columns=[0, 1])[1].isin(TARGETS)]
            raise DataError(f"{path}: row ids must end in _C1.._C7 or _{OVERALL}: {_shown(bad)}")
        frame = frame.assign(study_uid=parts[0], target=parts[1])
        repeated = frame["row_id"][frame["row_id"].duplicated()]
        if len(repeated):
            raise DataError(f"{path}: repeated rows: {_shown(repeated)}")
        frame = frame.pivot(index="study_uid", columns="target", values="fractured").reset_index()
    else:
        frame = frame.rename(columns={"StudyInstanceUID": "study_uid"})
    absent = [column for column in ("study_uid", *TARGETS) if column not in frame.columns]
    if absent:
        raise DataError(f"{path}: truth lacks {absent}; give train.csv's shape or row_id,fractured")
    repeated = frame["study_uid"][frame["study_uid"].duplicated()]
    if len(repeated):
        raise DataError(f"{path}: repeated studies: {_shown(repeated)}")
    labels = frame[list(TARGETS)].apply(pd.to_numeric, errors="coerce")
    wrong = frame["study_uid"][~labels.isin([0, 1]).all(axis=1)]
    if len(wrong):
        raise DataError(f"{path}: labels must be 0 or 1 for all eight targets: {_shown(wrong)}")
    truth = pd.concat([frame["study_uid"], labels.astype(np.float64)], axis=1)
    return truth.sort_values("study_uid", ignore_index=True)


def truth_row_ids(truth: pd.DataFrame) -> pd.Series:
    """The row ids of a truth frame, study by study in the order of `TARGETS`."""
    return pd.Series([f"{uid}_{target}" for uid in truth["study_uid"] for target in TARGETS])


def score_submission(path: Path, truth_csv: Path) -> dict[str, Any]:
    """Score a submission file.

    Returns:
        metric_per_exam, metric_global, their 95 % bootstrap intervals, per_target (plain log loss)
        and n_studies.

    Raises:
        SubmissionError: the file is not a valid submission for these studies.
        DataError: the truth cannot be used.
    """
    truth = read_truth(truth_csv)
    probs = read_submission(path, truth_row_ids(truth)).to_numpy().reshape(-1, len(TARGETS))
    labels = truth[list(TARGETS)].to_numpy()
    score = evaluate(labels, probs)
    return {
        "metric_per_exam": score.per_exam,
        "metric_per_exam_interval": bootstrap_interval(labels, probs, "per_exam"),
        "metric_global": score.whole,
        "metric_global_interval": bootstrap_interval(labels, probs, "global"),
        "per_target": score.per_target,
        "n_studies": score.n_studies,
    }


def prior_probs(wanted: pd.DataFrame, priors: Mapping[str, float]) -> pd.Series:
    """A prior for every wanted row; an unknown prediction type gets 0.5."""
    return wanted["target"].map(priors).astype(np.float64).fillna(0.5)

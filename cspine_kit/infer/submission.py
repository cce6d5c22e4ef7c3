"""Submissions: which rows are wanted, and which are wrong.

In: submission and test.csv. Out: checked frames, an atomically written CSV. Example::

    wanted = read_wanted_rows(competition.test_csv)
    probs = prior_probs(wanted, {"patient_overall": 0.48})       # 0.5 for every other target
    write_submission(wanted, probs, Path("submission.csv"))
    read_submission(Path("submission.csv"), wanted["row_id"])

A file's rows are joined on row_id, not on their position: row_id = <study_uid>_<target>.
"""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import CSpineError, DataError, SubmissionError
from cspine_kit.core.runs import publish
from cspine_kit.core.sheets import read_sheet
from cspine_kit.data.labels import ROW_COLUMNS
from cspine_kit.infer.answer import Answer, cause_of
from cspine_kit.infer.log import KernelLog

TEST_COLUMNS = ("row_id", "StudyInstanceUID", "prediction_type")
SHOWN_ROWS = 5

WRITE_EVERY_S = 1.0
"""The submission is replaced this often at most while studies finish."""

LAST_WAITS_S = (1.0, 3.0, 6.0)
"""Between tries of the last write."""

WRITTEN_AFTER_S = 0.005
"""A study is logged, then written: a file that is younger than its event holds its rows."""


def _shown(rows: pd.Series) -> str:
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    return ", ".join(map(str, rows.head(SHOWN_ROWS))) + more


def _read_test(test_csv: Path) -> tuple[pd.DataFrame, list[str]]:
    """Rows of `read_wanted_rows`, and lines that cannot be used."""
    sheet = read_sheet(test_csv, TEST_COLUMNS)
    nameless = sheet.rows["row_id"] == ""
    broken = [f"line {line} {why}" for line, why in sheet.broken.items()]
    broken += [f"line {line} has no row_id" for line in sheet.rows.index[nameless]]
    rows = sheet.rows.loc[~nameless, list(TEST_COLUMNS)]
    if rows.empty:
        raise DataError(f"{test_csv} has no rows")
    wanted = rows.set_axis(["row_id", "study_uid", "target"], axis=1)
    return wanted.drop_duplicates("row_id", ignore_index=True), broken


def read_wanted_rows(test_csv: Path) -> pd.DataFrame:
    """Rows to predict, in the order of test.csv: row_id, study_uid, target, as strings.

    Raises:
        DataError: unreadable, wrong columns or no rows. Of a repeated row_id the first row counts.
    """
    return _read_test(test_csv)[0]


def listed_rows(test_csv: Path, sample_csv: Path) -> tuple[pd.DataFrame, str | None]:
    """Rows of test.csv, then rows that only sample_submission.csv has; and how the two differ.

    Raises:
        DataError: test.csv cannot be used (a sample that cannot be read is only a difference).
    """
    wanted, broken = _read_test(test_csv)
    said = [f"{test_csv}: {_shown(pd.Series(broken))}"] if broken else []
    ids = wanted["row_id"]
    if sample_csv.exists():
        try:
            ids = read_sheet(sample_csv, ("row_id",)).rows["row_id"].drop_duplicates()
        except DataError as error:
            said.append(f"{sample_csv} cannot be used: {error}")
    extra, lost = ids[~ids.isin(wanted["row_id"])], wanted["row_id"][~wanted["row_id"].isin(ids)]
    if len(extra) or len(lost):
        said.append(
            f"only in {sample_csv.name}: {len(extra)} rows ({_shown(extra)}); "
            f"only in {test_csv.name}: {len(lost)} ({_shown(lost)}); all are predicted"
        )
    parts = [(row, *(*row.split("_", 1), "")[:2]) for row in extra]
    rows = pd.concat([wanted, pd.DataFrame(parts, columns=wanted.columns)], ignore_index=True)
    return rows, "; ".join(said) or None


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
    try:
        # No repairs here: what Kaggle would not read as it stands is wrong.
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise SubmissionError(f"submission {path} cannot be read: {error}") from error
    if tuple(frame.columns) != ROW_COLUMNS:
        raise SubmissionError(
            f"{path}: columns must be {list(ROW_COLUMNS)}, got {list(frame.columns)}"
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


def prior_probs(wanted: pd.DataFrame, priors: Mapping[str, float]) -> pd.Series:
    """A prior for every wanted row; an unknown prediction type gets 0.5."""
    return wanted["target"].map(priors).astype(np.float64).fillna(0.5)


def finished_rows(
    out: Path, log: Path, wanted: pd.DataFrame
) -> tuple[pd.Series | None, dict[str, str]]:
    """What a run that died had written for good.

    Args:
        out: its submission.
        log: its log; a last line that is cut off counts for nothing.
        wanted: rows of `listed_rows`.

    Returns:
        Probabilities by wanted row, NaN where the study is not finished, and the source of each
        finished study; None and nothing where there is no valid submission.
    """
    try:
        probs = read_submission(out, wanted["row_id"]).to_numpy()
        written = out.stat().st_mtime - WRITTEN_AFTER_S
        lines = log.read_text(errors="replace").splitlines()
    except (CSpineError, OSError):
        return None, {}
    done = {}
    for line in lines:
        try:
            event = json.loads(line)
            if event["event"] == "study" and event["time"] < written:
                done[str(event["study_uid"])] = str(event["source"])
        except (ValueError, KeyError, TypeError):
            continue
    kept = pd.Series(probs, index=wanted.index)
    return kept.where(wanted["study_uid"].isin(list(done))), done


class Submission:
    """The rows wanted, their probabilities so far, and the file that always holds them all."""

    def __init__(self, wanted: pd.DataFrame, probs: pd.Series, out: Path, log: KernelLog) -> None:
        self.wanted, self.probs, self.out, self.log = wanted, probs, out, log
        self.rows_of = {
            str(uid): group.index for uid, group in wanted.groupby("study_uid", sort=False)
        }
        self._written_s = -WRITE_EVERY_S

    def put(self, study_uid: str, probs: pd.Series) -> None:
        """Take the probabilities of one study by target; unknown prediction types stay."""
        rows = self.rows_of[study_uid]
        known = rows[self.wanted.loc[rows, "target"].isin(TARGETS)]
        self.probs.loc[known] = self.wanted.loc[known, "target"].map(probs)
        if time.monotonic() - self._written_s >= WRITE_EVERY_S:
            self.write()

    def put_all(self, answers: Iterable[Answer]) -> None:
        """Take what is known of several studies and write once."""
        self._written_s = time.monotonic()
        for answer in answers:
            if answer.probs is not None:
                self.put(answer.study_uid, answer.probs)
        self.write()

    def write(self) -> bool:
        """Replace the file atomically; where that fails, the complete one before it stands."""
        self._written_s = time.monotonic()
        try:
            write_submission(self.wanted, self.probs, self.out)
        except OSError as error:
            self.log.write("fault", stage="write", cause=cause_of(error))
            return False
        return True

    def finish(self) -> None:
        """The last write: a disk that is full just then is given some time."""
        for wait_s in (*LAST_WAITS_S, None):
            if self.write() or wait_s is None:
                return
            time.sleep(wait_s)

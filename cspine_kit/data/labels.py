"""Labels of studies: the one reader of train.csv, of a truth, and of the `studies` table.

In: train.csv's shape (StudyInstanceUID or study_uid, eight targets), or row_id,fractured.
Out: eight 0 / 1 columns by study. Example::

    labels, reasons = parse_labels(competition.train_csv)     # one bad study costs itself
    truth = read_labels(competition.solution_csv)             # one bad study is an error
"""

from pathlib import Path

import pandas as pd

from cspine_kit.core.anatomy import OVERALL, TARGETS
from cspine_kit.core.errors import DataError

ROW_COLUMNS = ["row_id", "fractured"]
STUDY_COLUMN = "StudyInstanceUID"
SHOWN_ROWS = 5


def read_ids(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A CSV of the competition with its ids as text.

    Raises:
        DataError: absent, unreadable or without these columns.
    """
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys((STUDY_COLUMN, "study_uid", "row_id"), str))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise DataError(f"{path} lacks columns {missing}; it has {list(frame.columns)}")
    return frame


def _shown(names: "pd.Series[str]") -> str:
    more = f" and {len(names) - SHOWN_ROWS} more" if len(names) > SHOWN_ROWS else ""
    return ", ".join(map(str, names.head(SHOWN_ROWS))) + more


def _from_rows(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """train.csv's shape from one row per study and target."""
    parts = frame["row_id"].str.split("_", n=1, expand=True).reindex(columns=[0, 1])
    strange = frame["row_id"][~parts[1].isin(TARGETS)]
    if len(strange):
        raise DataError(f"{path}: row ids must end in _C1.._C7 or _{OVERALL}: {_shown(strange)}")
    repeated = frame["row_id"][frame["row_id"].duplicated()]
    if len(repeated):
        raise DataError(f"{path}: repeated rows: {_shown(repeated)}")
    frame = frame.assign(**{STUDY_COLUMN: parts[0], "target": parts[1]})
    wide = frame.pivot(index=STUDY_COLUMN, columns="target", values="fractured")
    return wide.reindex(columns=list(TARGETS)).rename_axis(columns=None).reset_index()


def parse_labels(path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Labels that can be used, and why those of other studies cannot.

    Returns:
        Eight float64 columns of 0 / 1 in the order of `TARGETS`, indexed by study_uid in the
        file's order; reasons by study_uid.

    Raises:
        DataError: absent, unreadable, or of another shape.
    """
    frame = read_ids(path, ())
    if list(frame.columns) == ROW_COLUMNS:
        frame = _from_rows(frame, path)
    frame = frame.rename(columns={"study_uid": STUDY_COLUMN})
    absent = [column for column in (STUDY_COLUMN, *TARGETS) if column not in frame.columns]
    if absent:
        raise DataError(
            f"{path} lacks columns {absent}; it has {list(frame.columns)}; "
            "give train.csv's shape or row_id,fractured"
        )
    frame = frame[[STUDY_COLUMN, *TARGETS]].drop_duplicates()
    uid = frame[STUDY_COLUMN].astype(str)
    values = frame[list(TARGETS)].apply(pd.to_numeric, errors="coerce")
    twice, known = uid.duplicated(keep=False), values.isin([0, 1])
    reasons = {
        name: f"study {name}: its rows in {path.name} contradict each other"
        for name in uid[twice].unique()
    }
    for row in frame.index[~twice & ~known.all(axis=1)]:
        column = known.columns[~known.loc[row].to_numpy()][0]
        got = frame.loc[row, column]
        reasons[uid[row]] = f"study {uid[row]}: {column} in {path.name} is {got}, not 0 or 1"
    good = ~twice & known.all(axis=1)
    labels = values[good].astype(float).set_index(pd.Index(uid[good], name="study_uid"))
    return labels, reasons


def read_labels(path: Path) -> pd.DataFrame:
    """Labels of every study of a file: study_uid and the eight targets (float64), sorted.

    Raises:
        DataError: as `parse_labels`, or a study whose labels cannot be used; names the first.
    """
    labels, reasons = parse_labels(path)
    if reasons:
        shown = "; ".join(list(reasons.values())[:SHOWN_ROWS])
        raise DataError(f"{path}: labels of {len(reasons)} studies cannot be used: {shown}")
    return labels.reset_index().sort_values("study_uid", ignore_index=True)


def training_labels(studies: pd.DataFrame) -> pd.DataFrame:
    """study_uid and the eight targets of the labelled training rows of table `studies`."""
    return studies.loc[studies["split"] == "train", ["study_uid", *TARGETS]].dropna()

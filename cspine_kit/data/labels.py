"""Labels of studies: the one reader of train.csv, of a truth, and of the `studies` table.

In: train.csv's shape (StudyInstanceUID or study_uid, eight targets), or row_id,fractured.
Out: eight 0 / 1 columns by study. Example::

    labels, reasons = parse_labels(competition.train_csv)     # one bad study costs itself
    truth = read_labels(competition.solution_csv)             # one bad study is an error

A label is 0, 1, 0.0, 1.0, True or False. Anything else, an empty cell, rows that contradict each
other, and a patient_overall that is not the largest of C1..C7 cost the study, and the reason names
line, column and value.
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.errors import DataError
from cspine_kit.core.sheets import Sheet, read_sheet, to_number

ROW_COLUMNS = ("row_id", "fractured")
STUDY_COLUMN, STUDY_COLUMN_OF_KIT = "StudyInstanceUID", "study_uid"
SHOWN_ROWS = 5
WORDS = {"true": 1.0, "false": 0.0}


class Cell(NamedTuple):
    """Where a label stands, and what stands there."""

    line: int
    column: str
    text: str

    @property
    def value(self) -> float | None:
        """0.0 or 1.0, or None where the cell says neither."""
        value = WORDS.get(self.text.casefold(), to_number(self.text))
        return value if value in (0.0, 1.0) else None


Cells = dict[str, dict[str, list[Cell]]]
"""Cells by study and target, in the file's order."""


def _by_study(sheet: Sheet, column: str, name: str) -> tuple[Cells, dict[str, str]]:
    """Cells of train.csv's shape."""
    cells, reasons = Cells(), dict[str, str]()
    for line, row in zip(sheet.rows.index, sheet.rows.to_dict("records"), strict=True):
        uid = row[column]
        if not uid:
            reasons[f"{name} line {line}"] = f"{name} line {line}: {column} is empty"
            continue
        own = cells.setdefault(uid, {target: [] for target in TARGETS})
        for target in TARGETS:
            own[target].append(Cell(line, target, row[target]))
    return cells, reasons


def _by_row(sheet: Sheet, name: str) -> tuple[Cells, dict[str, str]]:
    """Cells of the shape with one row for each study and target."""
    cells, reasons = Cells(), dict[str, str]()
    for line, row in zip(sheet.rows.index, sheet.rows.to_dict("records"), strict=True):
        uid, _, target = row["row_id"].partition("_")
        if target not in TARGETS or not uid:
            reasons[f"{name} line {line}"] = (
                f"{name} line {line}: row ids must end in _C1.._C7 or _{OVERALL}, "
                f"got {row['row_id']!r}"
            )
            continue
        own = cells.setdefault(uid, {each: [] for each in TARGETS})
        own[target].append(Cell(line, "fractured", row["fractured"]))
    return cells, reasons


def _judge(given: dict[str, list[Cell]], name: str) -> dict[str, float] | str:
    """A study's labels, or what is wrong with them."""
    labels: dict[str, float] = {}
    for target, cells in given.items():
        if not cells:
            return f"{name} has no row for {target}"
        for cell in cells:
            if cell.value is None:
                said = f"{cell.text!r} is not 0 or 1" if cell.text else "is empty"
                return f"{name} line {cell.line}, column {cell.column}: {said}"
            labels.setdefault(target, cell.value)
            if cell.value != labels[target]:
                return (
                    f"lines {cells[0].line} and {cell.line} of {name} contradict each other in "
                    f"{target}: {cells[0].text!r} and {cell.text!r}"
                )
    worst = max(LEVELS, key=lambda level: labels[level])
    if labels[OVERALL] != labels[worst]:
        broken = f"{worst} is 1" if labels[worst] else "no level is 1"
        line = given[OVERALL][0].line
        return (
            f"{name} line {line}, column {OVERALL}: {labels[OVERALL]:.0f}, but {broken}; "
            "it must be the largest of C1..C7"
        )
    return labels


def parse_labels(path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Labels that can be used, and why those of other studies cannot.

    Returns:
        Eight float64 columns of 0 / 1 in the order of `TARGETS`, indexed by study_uid in the
        file's order; reasons by study_uid (or by line, where a line names no study).

    Raises:
        DataError: absent, unreadable, of another shape, or without a single row.
    """
    known = (STUDY_COLUMN, STUDY_COLUMN_OF_KIT, *ROW_COLUMNS, *TARGETS)
    sheet, name = read_sheet(path, (), known), path.name
    columns = set(sheet.rows.columns)
    study = STUDY_COLUMN if STUDY_COLUMN in columns else STUDY_COLUMN_OF_KIT
    if columns >= {study, *TARGETS}:
        cells, reasons = _by_study(sheet, study, name)
    elif columns == {*ROW_COLUMNS}:
        cells, reasons = _by_row(sheet, name)
    else:
        absent = [column for column in (STUDY_COLUMN, *TARGETS) if column not in columns]
        raise DataError(
            f"{path} lacks columns {absent}; it has {list(sheet.rows.columns)}; "
            "give train.csv's shape or row_id,fractured"
        )
    reasons |= {f"{name} line {n}": f"{name} line {n} {why}" for n, why in sheet.broken.items()}
    if not cells and not reasons:
        raise DataError(f"{path} lists no study: it has a header and no row")
    labels: dict[str, dict[str, float]] = {}
    for uid, given in cells.items():
        found = _judge(given, name)
        if isinstance(found, str):
            reasons[uid] = f"study {uid}: {found}"
        else:
            labels[uid] = found
    index = pd.Index(list(labels), name="study_uid", dtype=str)
    rows = list(labels.values())
    return pd.DataFrame(rows, index=index, columns=list(TARGETS), dtype=float), reasons


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

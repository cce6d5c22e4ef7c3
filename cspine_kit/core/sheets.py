"""One careful reader of CSV files that people and spreadsheets have had in their hands.

In: a CSV. Out: its cells as stripped text under the header's names, by line of the file. Example::

    sheet = read_sheet(competition.boxes_csv, ("StudyInstanceUID", "x", "y"))
    sheet.rows["x"].head()       # text, by line of the file
    sheet.broken                 # such as {9: "has 4 cells, the header names 3"}

What changes no meaning is read: a byte order mark, UTF-16, semicolons or tabs, quotes, any line
end, spaces around cells and names, another case of names, empty lines. The rest is refused by line.
"""

import codecs
import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cspine_kit.core.errors import DataError

SEPARATORS = (",", ";", "\t")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)


class Sheet(NamedTuple):
    """`rows`: text cells, index = line of the file; `broken`: why other lines cannot be used."""

    rows: pd.DataFrame
    broken: dict[int, str]


def to_number(text: str) -> float:
    """The number a cell holds (a decimal comma counts as a point), NaN where it holds none."""
    return float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else float("nan")


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} cannot be read: it is no UTF-8 text ({error}); save it as CSV (UTF-8)"
        ) from error


def _split(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])


def _names(header: list[str], known: tuple[str, ...], path: Path) -> list[str]:
    """The header's names, spelled as `known` spells them."""
    spelled = {name.casefold(): name for name in known}
    names = [spelled.get(cell.strip().casefold(), cell.strip()) for cell in header]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{path} names columns twice: {twice}; keep one of each")
    return names


def read_sheet(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Sheet:
    """Read a CSV as text.

    Args:
        path: the file.
        required: columns that must be there.
        optional: further columns whose names are known, whatever their case in the file.

    Returns:
        Rows (a cell that its line lacks is ""), and lines with more cells than the header has.

    Raises:
        DataError: absent, no text, empty, a column missing or named twice, a quote left open.
    """
    lines = io.StringIO(_text(path), newline="")
    header = ""
    while not header.strip() and (line := lines.readline()):
        header = line
    if not header.strip():
        raise DataError(f"{path} cannot be read: it is empty")
    start = lines.tell()
    skipped = len(lines.getvalue()[: start - len(header)].splitlines())
    separator = max(SEPARATORS, key=lambda s: len(_split(header, s)))
    names = _names(_split(header, separator), (*required, *optional), path)
    missing = [column for column in required if column not in names]
    if missing:
        raise DataError(f"{path} lacks columns {missing}; it has {names}")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    rows, broken, last = dict[int, list[str]](), dict[int, str](), skipped + 1
    try:
        for cells in reader:
            number = skipped + 1 + reader.line_num
            if number > last + 1:
                raise DataError(
                    f"{path} line {last + 1}: a quote is opened and not closed on its line"
                )
            last = number
            stripped = [cell.strip() for cell in cells]
            if not any(stripped):
                continue
            if any(stripped[len(names) :]):
                broken[number] = f"has {len(stripped)} cells, the header names {len(names)}"
                continue
            rows[number] = (stripped + [""] * len(names))[: len(names)]
    except csv.Error as error:
        raise DataError(f"{path} line {last + 1} cannot be read: {error}") from error
    frame = pd.DataFrame(list(rows.values()), columns=names, index=list(rows), dtype=str)
    return Sheet(frame[[name for name in names if name]], broken)

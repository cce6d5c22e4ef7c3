"""Fracture boxes: a careful look at every row, then a place on the slices of its study.

In: train_bounding_boxes.csv and the `slices` rows of a study. Out: columns box_x .. box_h, and a
remark for each box that was refused. Example::

    boxes, remarks = read_boxes(competition.boxes_csv)
    own = slices.loc[slices["study_uid"] == uid, ["slice_idx", "slice_number"]]
    joined, more = join_boxes(own, boxes.get(uid), (512, 512))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.paths import BOXES_CSV_COLUMNS
from cspine_kit.core.sheets import read_sheet, to_number
from cspine_kit.core.tables import BOX_COLUMNS
from cspine_kit.data.reader.scans.placing import to_grid

BAD_BOXES = "bad_boxes"
"""Problem code of a study some of whose boxes were refused."""

EDGE_PX = 1.0
"""A box may pass the frame by a pixel; what passes it by more is cut there, with a remark."""

Remarks = dict[str, list[str]]
"""What is wrong with studies that are kept, by study_uid."""


def _wrong(row: dict[str, float], cells: dict[str, str]) -> str | None:
    """What makes a row no box: the column and the value."""
    for column, value in row.items():
        if np.isnan(value):
            said = f"{cells[column]!r} is no number" if cells[column] else "is empty"
            return f"column {column}: {said}"
        if column in ("width", "height") and value <= 0:
            return f"column {column}: {cells[column]!r} is not above 0"
    return None


def read_boxes(path: Path) -> tuple[dict[str, pd.DataFrame], Remarks]:
    """Boxes of each study: line, slice_number, box_x, box_y, box_w, box_h (float64).

    Returns:
        Tables by study_uid, empty where there is no file; remarks on rows that were refused.

    Raises:
        DataError: unreadable or without these columns.
    """
    if not path.exists():
        return {}, {}
    sheet = read_sheet(path, BOXES_CSV_COLUMNS)
    numbers = BOXES_CSV_COLUMNS[1:]
    remarks: Remarks = {
        "": [f"{path.name} line {line} {why}" for line, why in sheet.broken.items()]
    }
    kept = []
    for line, cells in zip(sheet.rows.index, sheet.rows.to_dict("records"), strict=True):
        row = {column: to_number(cells[column]) for column in numbers}
        wrong = _wrong(row, cells)
        if wrong is None:
            kept.append({"study_uid": cells[BOXES_CSV_COLUMNS[0]], "line": line, **row})
        else:
            place = f"{path.name} line {line}, {wrong}"
            remarks.setdefault(cells[BOXES_CSV_COLUMNS[0]], []).append(place)
    frame = pd.DataFrame(kept, columns=["study_uid", "line", *numbers])
    frame = frame.rename(columns=dict(zip(numbers[:4], BOX_COLUMNS, strict=True)))
    frame = frame.drop_duplicates(["study_uid", "slice_number", *BOX_COLUMNS])
    # The real table never has two boxes on one slice; of another one's, the first counts.
    second = frame.duplicated(["study_uid", "slice_number"])
    for uid, line in frame.loc[second, ["study_uid", "line"]].itertuples(index=False):
        remarks.setdefault(uid, []).append(f"{path.name} line {line}: a second box on its slice")
    found = {str(uid): rows for uid, rows in frame[~second].groupby("study_uid")}
    return found, {uid: lines for uid, lines in remarks.items() if lines}


def join_boxes(
    slices: pd.DataFrame,
    boxes: pd.DataFrame | None,
    shape: tuple[int, int],
    to_stored: Sequence[Any] | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Put a study's boxes on its slices by the number in the file's name, in the kit's own frame.

    Args:
        slices: rows of one study in slice order, with `slice_number`.
        boxes: its boxes (`read_boxes`), drawn on the files as they are, or None.
        shape: rows and columns of the kit's frame.
        to_stored: `Geometry.to_stored` (slices, 2, 3); None where pixels of files are the frame's.

    Returns:
        The slices with box_x, box_y, box_w, box_h (NaN where there is none), cut at the frame; and
        remarks: boxes on slices that do not exist, boxes outside the frame, boxes that were cut.
    """
    placed = np.full((len(slices), len(BOX_COLUMNS)), np.nan)
    numbers, remarks = slices["slice_number"].to_numpy(), list[str]()
    frame = f"the frame of {shape[0]} x {shape[1]}"
    given = () if boxes is None else boxes[["line", "slice_number", *BOX_COLUMNS]].to_numpy()
    for line, number, *drawn in given:
        places = np.flatnonzero(numbers == number)
        if not len(places):
            remarks.append(f"box of line {line:g}: no slice has the number {number:g}")
        for k in places.tolist():
            box = drawn if to_stored is None else _in_frame(drawn, np.array(to_stored[k]))
            cut = _inside(box, shape)
            if cut is None:
                remarks.append(f"box of line {line:g}: outside {frame}")
                continue
            if max(abs(a - b) for a, b in zip(box, cut, strict=True)) > EDGE_PX:
                remarks.append(f"box of line {line:g}: cut at {frame}")
            placed[k] = cut
    return slices.assign(**dict(zip(BOX_COLUMNS, placed.T, strict=True))), remarks


def _in_frame(box: list[float], to_stored: FloatArray) -> list[float]:
    """x, y, w, h in the kit's frame of a box drawn on a file; `to_stored` (2, 3) is its slice's."""
    x, y, w, h = box
    # Edges of a box lie between pixels, half a pixel before the center of the first one.
    rows, cols = np.array([[y, y + h], [x, x + w]]) - 0.5
    ends = np.array([(r, c, 1.0) for r in rows for c in cols])
    found = ends @ to_grid(to_stored).T + 0.5
    (y0, x0), (y1, x1) = found.min(axis=0), found.max(axis=0)
    return [x0, y0, x1 - x0, y1 - y0]


def _inside(box: list[float], shape: tuple[int, int]) -> list[float] | None:
    """x, y, w, h of the part of a box inside the frame; None where there is none."""
    x, y, w, h = box
    if x >= 0 and y >= 0 and x + w <= shape[1] and y + h <= shape[0]:
        return box
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, shape[1]), min(y + h, shape[0])
    return [x0, y0, x1 - x0, y1 - y0] if x1 > x0 and y1 > y0 else None

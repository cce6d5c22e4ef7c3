"""How well members find fractures that annotators have boxed: out-of-fold, by average precision.

In: tables `oof_boxes`, `slices` and `studies`. Out: a row for each member. Example::

    rows = pd.DataFrame({"member": ["a"], "study_uid": [uid], "slice_idx": [0], "score": [0.5]})
    rows = rows.assign(x=1.0, y=1.0, width=4.0, height=4.0)
    detection(rows, slices, studies)[["member", "boxed_slices", "iou", "precision_30"]]

Counted are boxed slices and those of studies without a fracture; slices without a box of fractured
studies are not, for annotators left gaps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import OVERALL
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.tables import BOX_COLUMNS
from cspine_kit.vision.tasks.boxes import overlaps

DETECTIONS = "boxes.csv"
"""Of a run folder."""

OVERLAPS = (0.3, 0.5)
"""Shares of both areas in either's that make a box right."""

FOUND = ("x", "y", "width", "height")


def detection(boxes: pd.DataFrame, slices: pd.DataFrame, studies: pd.DataFrame) -> pd.DataFrame:
    """One row for each member.

    Args:
        boxes: table `oof_boxes`.
        slices: table `slices`.
        studies: table `studies`.

    Returns:
        member; boxed_slices and sound_slices that it was asked about; iou, of the best box of
        boxed slices, on average; precision_30 and precision_50, average precision where a box is
        right from an overlap of 0.3, of 0.5; NaN where no slice is boxed.
    """
    sound = set(studies.loc[studies[OVERALL] == 0.0, "study_uid"])
    truth = slices[["study_uid", "slice_idx", *BOX_COLUMNS]]
    joined = boxes.merge(truth, on=["study_uid", "slice_idx"], how="left")
    joined["boxed"] = joined[list(BOX_COLUMNS)].notna().all(axis=1)
    joined = joined[joined["boxed"] | joined["study_uid"].isin(sound)]
    joined["iou"] = np.nan_to_num(
        overlaps(*(_corners(joined[list(columns)]) for columns in (FOUND, BOX_COLUMNS)))
    )
    rows = []
    for member, own in joined.groupby("member", sort=True):
        place = own.groupby(["study_uid", "slice_idx"])["boxed"].first()
        best = own[own["boxed"]].sort_values("score", ascending=False, kind="stable")
        best = best.drop_duplicates(["study_uid", "slice_idx"])
        row: dict[str, Any] = {"member": member, "boxed_slices": int(place.sum())}
        row |= {"sound_slices": int((~place).sum()), "iou": best["iou"].mean()}
        for least in OVERLAPS:
            row[f"precision_{100 * least:.0f}"] = _average_precision(
                own, least, row["boxed_slices"]
            )
        rows.append(row)
    columns = ["member", "boxed_slices", "sound_slices", "iou"]
    return pd.DataFrame(rows, columns=[*columns, *(f"precision_{100 * t:.0f}" for t in OVERLAPS)])


def _corners(boxes: pd.DataFrame) -> FloatArray:
    x, y, width, height = boxes.to_numpy(np.float64).T
    return np.stack([x, y, x + width, y + height], axis=1)


def _average_precision(rows: pd.DataFrame, least: float, wanted: int) -> float:
    """Area under the curve of precision over recall; of several right boxes on a slice one is."""
    ordered = rows.sort_values("score", ascending=False, kind="stable")
    right = ordered["boxed"] & (ordered["iou"] >= least)
    again = ordered[right].duplicated(["study_uid", "slice_idx"])
    right[again.index[again]] = False
    hits = right.to_numpy(dtype=bool)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[hits].sum() / wanted) if wanted else float("nan")


def told(table: pd.DataFrame) -> Sequence[str]:
    """The table in lines."""
    return [
        f"boxes of {row['member']}: average precision {row['precision_30']:.3f} from an overlap of "
        f"0.3, {row['precision_50']:.3f} from 0.5; mean overlap {row['iou']:.3f} on "
        f"{row['boxed_slices']} boxed slices ({row['sound_slices']} sound ones)"
        for row in table.to_dict("records")
    ]

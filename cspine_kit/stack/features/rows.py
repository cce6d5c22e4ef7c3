"""Every member's slices of a slice table as plain arrays, ordered and checked.

In: a slice table and its `Units`. Out: `MemberRows` by member. Example::

    from cspine_kit.stack.features.units import find_units

    first, *_ = rows_by_member(oof_slices, find_units(oof_slices)).values()
    first.logits[first.unit.starts]         # of each unit's first slice
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import AXIAL
from cspine_kit.core.errors import TableError
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.stack.features.segments import Segments
from cspine_kit.stack.features.units import SHOWN, Units

ROW_COLUMNS = ("member", "study_uid", "plane", "position", "model_fold", "fold", "at_mm")
WHERE = ["member", "study_uid", "plane", "position"]


@dataclass(frozen=True)
class MemberRows:
    """One member's slices, ordered by unit and position.

    `unit` has one segment per unit; `position` and `at_mm` (mm along the plane's normal) are (n,),
    `logits` (n, 14) holds vertebra_C1..C7, then fracture_C1..C7; `axial` (units,) is true where the
    slices of a unit are axial: there `at_mm` is z, descending.
    """

    unit: Segments
    axial: BoolArray
    position: IntArray
    at_mm: FloatArray
    logits: FloatArray


def rows_by_member(slices: pd.DataFrame, units: Units) -> dict[str, MemberRows]:
    """The rows of each member, in alphabetical order.

    Raises:
        TableError: a unit without rows of some member or with slices of two planes, a slice given
            twice, axial slices that do not descend, NaN, or a position that is not finite. Infinite
            logits pass; they are cut later.
    """
    numbers = _numbers(slices)
    member = slices["member"].to_numpy(dtype=object)
    position = slices["position"].to_numpy(np.int64)
    axial = (slices["plane"] == AXIAL).to_numpy(np.bool_)
    found = {}
    for name in sorted(set(member)):
        own = np.flatnonzero(member == name)
        own = own[np.lexsort((position[own], units.of_row[own]))]
        unit = _segments(name, units, units.of_row[own])
        plane = slices["plane"].to_numpy(dtype=object)[own]
        same = np.diff(unit.of_row) == 0
        _refuse(slices, own, same & (np.diff(position[own]) == 0), "duplicate keys")
        _refuse(slices, own, same & (plane[1:] != plane[:-1]), "more than one plane")
        rising = np.diff(numbers[own, 0]) > 0
        _refuse(slices, own, same & axial[own][1:] & rising, "axial slices that do not descend")
        found[str(name)] = MemberRows(
            unit, axial[own][unit.starts], position[own], numbers[own, 0], numbers[own, 1:]
        )
    return found


def _numbers(slices: pd.DataFrame) -> FloatArray:
    """at_mm, vertebra and fracture logits as (n, 15)."""
    columns = ["at_mm", *VERTEBRA_COLUMNS, *FRACTURE_COLUMNS]
    numbers = slices[columns].to_numpy(np.float64)
    bad = np.isnan(numbers)
    bad[:, 0] |= np.isinf(numbers[:, 0])
    if bad.any():
        row, column = (int(i[0]) for i in np.nonzero(bad))
        raise TableError(
            f"table slices: {columns[column]} is {numbers[row, column]} at "
            f"{slices.iloc[row][WHERE].to_dict()}; predict that study again (make oof)"
        )
    return numbers


def _segments(member: str, units: Units, of_row: IntArray) -> Segments:
    """One segment per unit over a member's ordered rows."""
    present, starts = np.unique(of_row, return_index=True)
    if len(present) < len(units):
        lost = np.setdiff1d(np.arange(len(units)), present)
        raise TableError(
            f"table slices: member {member!r} has no rows for {len(lost)} of {len(units)} "
            f"studies and fold models: {units.describe(lost)}"
        )
    return Segments(starts.astype(np.int64), len(of_row))


def _refuse(slices: pd.DataFrame, own: IntArray, faulty: BoolArray, what: str) -> None:
    """Raise where a row and the one before it do not go together."""
    if faulty.any():
        at = slices.iloc[own[1:][faulty][:SHOWN]][WHERE]
        raise TableError(f"table slices: {what} at {at.to_dict('records')}")

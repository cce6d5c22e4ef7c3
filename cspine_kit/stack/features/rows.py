"""Every member's slices of a slice table as plain arrays, ordered and checked.

In: a slice table and its `Units`. Out: `MemberRows` by member. Example::

    from cspine_kit.stack.features.units import find_units

    first, *_ = rows_by_member(oof_slices, find_units(oof_slices)).values()
    first.logits[first.unit.starts]         # of each unit's first slice
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import AXIAL
from cspine_kit.core.errors import TableError
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.stack.features.segments import Segments
from cspine_kit.stack.features.units import SHOWN, Units, factorize

ROW_COLUMNS = ("member", "study_uid", "plane", "position", "model_fold", "fold", "at_mm")
BLOCK = 16_384
"""Rows whose statistics are computed at once: what is in between stays in the processor's cache."""

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

    def blocks(self) -> Iterator[tuple[slice, "MemberRows"]]:
        """Which units, and their rows: blocks of about `BLOCK` rows, one behind the other."""
        unit = self.unit
        first = np.flatnonzero(np.diff(unit.starts // BLOCK, prepend=-1))
        for start, end in pairwise([*first.tolist(), len(unit.starts)]):
            rows = slice(int(unit.starts[start]), int(unit.ends[end - 1]))
            own = Segments(unit.starts[start:end] - rows.start, rows.stop - rows.start)
            axial, position = self.axial[start:end], self.position[rows]
            block = MemberRows(own, axial, position, self.at_mm[rows], self.logits[rows])
            yield slice(start, end), block


def rows_by_member(slices: pd.DataFrame, units: Units) -> dict[str, MemberRows]:
    """The rows of each member, in alphabetical order.

    Raises:
        TableError: a unit without rows of some member or with slices of two planes, a slice given
            twice, axial slices that do not descend, NaN, or a position that is not finite. Infinite
            logits pass; they are cut later.
    """
    member, names = factorize(slices["member"])
    plane, planes = factorize(slices["plane"])
    position = slices["position"].to_numpy(np.int64)
    numbers = _numbers(slices)
    # One sort of whole numbers for all members; a table in its contract's order needs none.
    span, group = int(np.ptp(position)) + 1, member * len(units) + units.of_row
    place = group * span + (position - position.min())
    order = np.arange(len(place))
    if (np.diff(place) < 0).any():
        order = np.argsort(place)
        numbers = np.take(numbers, order, axis=0)
    of_row, plane, position = units.of_row[order], plane[order], position[order]
    same = np.diff(group[order]) == 0
    _refuse(slices, order, same & (np.diff(position) == 0), "duplicate keys")
    _refuse(slices, order, same & (np.diff(plane) != 0), "more than one plane")
    axial = np.asarray(planes == AXIAL)[plane]
    rising = axial[1:] & (np.diff(numbers[:, 0]) > 0)
    _refuse(slices, order, same & rising, "axial slices that do not descend")
    found = {}
    ends = np.cumsum(np.bincount(member))
    for name, start, end in zip(names, [0, *ends[:-1]], ends, strict=True):
        own = slice(int(start), int(end))
        unit = _segments(name, units, of_row[own])
        found[str(name)] = MemberRows(
            unit, axial[own][unit.starts], position[own], numbers[own, 0], numbers[own, 1:]
        )
    return found


def _numbers(slices: pd.DataFrame) -> FloatArray:
    """at_mm, vertebra and fracture logits as (n, 15)."""
    columns = ["at_mm", *VERTEBRA_COLUMNS, *FRACTURE_COLUMNS]
    numbers = np.stack([slices[c].to_numpy(np.float64) for c in columns]).T
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
    starts = np.flatnonzero(np.diff(of_row, prepend=-1))
    if len(starts) < len(units):
        lost = np.setdiff1d(np.arange(len(units)), of_row)
        raise TableError(
            f"table slices: member {member!r} has no rows for {len(lost)} of {len(units)} "
            f"studies and fold models: {units.describe(lost)}"
        )
    return Segments(starts, len(of_row))


def _refuse(slices: pd.DataFrame, own: IntArray, faulty: BoolArray, what: str) -> None:
    """Raise where a row and the one before it do not go together."""
    if faulty.any():
        at = slices.iloc[own[1:][faulty][:SHOWN]][WHERE]
        raise TableError(f"table slices: {what} at {at.to_dict('records')}")

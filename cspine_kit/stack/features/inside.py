"""Which slices of a study describe a level.

In: one member's rows, how visible each level is on them, where the levels lie. Out: rows, level by
level. Example::

    from cspine_kit.stack.features.rows import rows_by_member
    from cspine_kit.stack.features.units import find_levels, find_units

    units = find_units(oof_slices)
    rows, *_ = rows_by_member(oof_slices, units).values()
    picked, inside = rows_inside(rows, np.exp(rows.logits[:, :7]), find_levels(levels, units))
    inside.mean(rows.at_mm[picked])              # of each level's slices

Axial slices belong to a level by z. Slices of another plane show all levels one above the other:
those belong to a level between which the network sees it.
"""

import numpy as np

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.numbers import FloatArray, IntArray
from cspine_kit.stack.features.rows import MemberRows
from cspine_kit.stack.features.segments import Segments
from cspine_kit.stack.features.units import Levels

SEEN_SHARE = 0.5
"""Off the axial plane a level's slices reach from the first to the last that show it with this
share of its highest visibility."""


def rows_inside(rows: MemberRows, visible: FloatArray, levels: Levels) -> tuple[IntArray, Segments]:
    """Rows of each level, concatenated in the order unit, level; every level has at least one.

    Args:
        rows: of one member.
        visible: (n, 7) probabilities.
        levels: of all units.
    """
    if rows.axial.all():
        first, last = _by_z(rows, levels)
    else:
        first, last = _by_sight(rows.unit, visible)
        if rows.axial.any():
            axial = np.repeat(rows.axial, N_LEVELS)
            first_z, last_z = _by_z(rows, levels)
            first, last = np.where(axial, first_z, first), np.where(axial, last_z, last)
    counts = last - first
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    total = int(counts.sum())
    picked = np.arange(total) - np.repeat(starts - first, counts)
    return picked, Segments(starts, total)


def _by_sight(unit: Segments, visible: FloatArray) -> tuple[IntArray, IntArray]:
    """First row, and one past the last, of every level of slices off the axial plane."""
    shown = visible >= SEEN_SHARE * unit.max(visible)[unit.of_row]
    row = np.arange(unit.size)[:, None]
    first = np.minimum.reduceat(np.where(shown, row, unit.size), unit.starts, axis=0)
    last = np.maximum.reduceat(np.where(shown, row, -1), unit.starts, axis=0)
    return first.ravel(), last.ravel() + 1


def _by_z(rows: MemberRows, levels: Levels) -> tuple[IntArray, IntArray]:
    """First row, and one past the last, of every level of axial slices.

    A range without a slice takes the slice nearest to its middle.
    """
    unit, depth = rows.unit, -rows.at_mm
    low = np.minimum(-levels.z_top_mm, -levels.z_bottom_mm)
    high = np.maximum(-levels.z_top_mm, -levels.z_bottom_mm)
    middle = (low + high) / 2.0
    # Units one behind the other along one axis: then one search serves all of them. Millimeters are
    # moved alike on both sides, so that equal ones stay equal (others blur below 1e-8 mm).
    top = min(depth.min(), low.min())
    span = max(depth.max(), high.max()) - top + 1.0
    base = np.arange(len(unit.starts)) * span - top
    ordered, base = base[unit.of_row] + depth, np.repeat(base, N_LEVELS)
    first = np.searchsorted(ordered, base + low, "left")
    last = np.searchsorted(ordered, base + high, "right")
    empty = np.flatnonzero(first >= last)
    if len(empty):
        owner, wanted = empty // N_LEVELS, middle[empty]
        above = np.searchsorted(ordered, base[empty] + wanted, "left")
        above = np.clip(above, unit.starts[owner], unit.ends[owner] - 1)
        below = np.maximum(above - 1, unit.starts[owner])
        closer = np.abs(depth[below] - wanted) <= np.abs(depth[above] - wanted)
        first[empty] = np.where(closer, below, above)
        last[empty] = first[empty] + 1
    return first, last

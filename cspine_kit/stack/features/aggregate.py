"""From slice tables to one row of statistics per (study, level, model_fold).

In: slice rows of all members (contract `oof_slices`; for test studies the same columns with fold -1
and every model_fold) and where the levels lie (contract `levels`). Out: float32 feature columns
`<member>__<signal>__<statistic>`; member `all` holds what members agree on, neighbors and geometry.
Example::

    from cspine_kit.stack.features.names import feature_columns

    statistics = aggregate(oof_slices, levels)
    statistics[feature_columns(statistics.columns)]

Out-of-fold rows and the kernel's test rows go through this one function. Every value is finite: a
level without a slice in its range is described by the slice nearest to the range's middle.
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.errors import TableError
from cspine_kit.core.numbers import FloatArray, IntArray, logit, sigmoid
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.stack.features.names import ALL, SITE
from cspine_kit.stack.features.positions import position_features
from cspine_kit.stack.features.segments import Segments
from cspine_kit.stack.features.statistics import MAX_STEP_MM, MIN_STEP_MM, STATISTICS, LevelSlices
from cspine_kit.stack.features.units import SHOWN, Levels, Units, find_levels, find_units

SLICE_COLUMNS = ("member", "study_uid", "slice_idx", "model_fold", "fold", "z_mm")
LEVEL_COLUMNS = (
    *("study_uid", "level", "model_fold", "z_top_mm", "z_bottom_mm"),
    *("center_z_mm", "confidence"),
)


def _require(frame: pd.DataFrame, columns: tuple[str, ...], name: str) -> None:
    missing = [c for c in columns if c not in frame]
    if missing or frame.empty:
        raise TableError(f"table {name}: " + (f"no column {missing}" if missing else "no rows"))


def _inside(unit: Segments, z_mm: FloatArray, levels: Levels) -> tuple[IntArray, Segments]:
    """Rows inside each level's range, concatenated in the order unit, level.

    A range without a row takes the row nearest to its middle.
    """
    depth, low, high = -z_mm, -levels.z_top_mm, -levels.z_bottom_mm
    low, high = np.minimum(low, high), np.maximum(low, high)
    middle = (low + high) / 2.0
    # Ranks instead of millimeters: whole numbers order the rows of all units at once, exactly.
    values, rank = np.unique(np.concatenate([depth, low, high, middle]), return_inverse=True)
    of_depth, of_low, of_high, of_middle = np.split(
        rank, np.cumsum([len(depth), len(low), len(high)])
    )
    ordered = unit.of_row * len(values) + of_depth
    base = np.repeat(np.arange(len(unit.starts)), N_LEVELS) * len(values)
    first = np.searchsorted(ordered, base + of_low, "left")
    last = np.searchsorted(ordered, base + of_high, "right")
    empty = np.flatnonzero(first >= last)
    if len(empty):
        owner, wanted = empty // N_LEVELS, middle[empty]
        above = np.searchsorted(ordered, (base + of_middle)[empty], "left")
        above = np.clip(above, unit.starts[owner], unit.ends[owner] - 1)
        below = np.maximum(above - 1, unit.starts[owner])
        closer = np.abs(depth[below] - wanted) <= np.abs(depth[above] - wanted)
        first[empty] = np.where(closer, below, above)
        last[empty] = first[empty] + 1
    counts = last - first
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    total = int(counts.sum())
    rows = np.arange(total) - np.repeat(starts - first, counts)
    return rows, Segments(starts, total)


def _steps_mm(unit: Segments, z_mm: FloatArray) -> FloatArray:
    """Typical slice distance of each unit: its extent over its row count."""
    extent = np.abs(z_mm[unit.starts] - z_mm[unit.ends - 1]) / np.maximum(unit.counts - 1, 1)
    step: FloatArray = np.where(unit.counts > 1, np.clip(extent, MIN_STEP_MM, MAX_STEP_MM), 1.0)
    return step


def _native(unit: Segments, z_mm: FloatArray, slice_idx: IntArray) -> tuple[FloatArray, FloatArray]:
    """Native slices of each study down to the last one predicted, and their distance in mm.

    Members may predict every other millimeter only; the scanner's own spacing tells protocols and
    sites apart.
    """
    first, last = unit.starts, unit.ends - 1
    steps = slice_idx[last] - slice_idx[first]
    distance = np.abs(z_mm[last] - z_mm[first]) / np.maximum(steps, 1)
    step: FloatArray = np.where(steps > 0, np.clip(distance, MIN_STEP_MM, MAX_STEP_MM), 1.0)
    return slice_idx[last].astype(np.float64) + 1.0, step


def _level_slices(
    logits: FloatArray, z_mm: FloatArray, unit: Segments, levels: Levels
) -> LevelSlices:
    """One member's slices (ordered by unit and slice) as the input of every statistic.

    `logits` (n, 14) holds vertebra_C1..C7, then fracture_C1..C7.
    """
    probs = sigmoid(logits)
    v_all, p_all = probs[:, :N_LEVELS], probs[:, N_LEVELS:]
    picked, inside = _inside(unit, z_mm, levels)
    level = np.tile(np.arange(N_LEVELS), len(unit.starts))[inside.of_row]
    joint = p_all * v_all
    visible = unit.sum(v_all)
    return LevelSlices(
        inside=inside,
        p=p_all[picked, level],
        v=v_all[picked, level],
        step_mm=np.repeat(_steps_mm(unit, z_mm), N_LEVELS),
        study_weighted=(unit.sum(joint) / visible).ravel(),
        study_visible=visible.ravel(),
        study_mean=unit.mean(p_all).ravel(),
        study_min=unit.min(p_all).ravel(),
        study_max=unit.max(p_all).ravel(),
        study_peak=unit.max(joint).ravel(),
    )


def _shared(
    members: dict[str, dict[str, FloatArray]],
    levels: Levels,
    native: tuple[FloatArray, FloatArray],
) -> dict[str, FloatArray]:
    """Agreement between members, neighbor levels, the study's other levels, and geometry.

    Log-odds of the members' mean weighted probability are the common currency here.
    """
    odds = {
        name: logit(np.stack([m[name] for m in members.values()], axis=1))
        for name in ("fracture__weighted", "fracture__smooth")
    }
    mean = odds["fracture__weighted"].mean(axis=1).reshape(-1, N_LEVELS)
    top = odds["fracture__smooth"].mean(axis=1).reshape(-1, N_LEVELS)
    edge = np.pad(mean, ((0, 0), (1, 1)), mode="edge")
    doubt = np.log1p(-sigmoid(mean))
    others = logit(-np.expm1(doubt.sum(axis=1, keepdims=True) - doubt))
    ordered = np.sort(mean, axis=1)
    rest = np.where(mean == ordered[:, -1:], ordered[:, -2:-1], ordered[:, -1:])
    z = levels.center_z_mm.reshape(-1, N_LEVELS)
    gap = np.abs(np.diff(z, axis=1))
    wide = np.ones((1, N_LEVELS))
    shared: dict[str, FloatArray] = {
        "fracture__odds": mean,
        "fracture__spread": odds["fracture__weighted"].std(axis=1),
        "smooth__odds": top,
        "smooth__spread": odds["fracture__smooth"].std(axis=1),
        "neighbor__above": edge[:, :-2],
        "neighbor__below": edge[:, 2:],
        "patient__others": others,
        "patient__margin": mean - rest,
        "patient__max": mean.max(axis=1, keepdims=True) * wide,
        "patient__mean": mean.mean(axis=1, keepdims=True) * wide,
        "patient__rank": (mean[:, :, None] < mean[:, None, :]).sum(axis=2).astype(np.float64),
        "level__height": np.abs(levels.z_top_mm - levels.z_bottom_mm),
        "level__confidence": levels.confidence,
        "level__gap_above": np.hstack([gap[:, :1], gap]),
        "level__gap_below": np.hstack([gap, gap[:, -1:]]),
        "study__slices": native[0][:, None] * wide,
        "study__step": native[1][:, None] * wide,
        "study__extent": (z.max(axis=1) - z.min(axis=1))[:, None] * wide,
    }
    return {name: values.ravel() for name, values in shared.items()}


def aggregate(slices: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """Statistics of every level of every study and fold model.

    Args:
        slices: rows (member, study_uid, slice_idx, model_fold), fold, z_mm (mm) and the logits
            vertebra_C1..C7, fracture_C1..C7. Infinite logits are cut, NaN is an error.
        levels: rows (study_uid, level, model_fold), z_top_mm, z_bottom_mm (inclusive), center_z_mm,
            confidence; rows of other studies are ignored.

    Returns:
        Rows sorted by (study_uid, level, model_fold): the key, fold (int64) and float32 features in
        a fixed order (members in alphabetical order, then `all`), every value finite.

    Raises:
        TableError: a missing column, NaN, a member without some study that another member has, a
            level that is missing, doubled keys, or a study with two folds.
    """
    _require(slices, (*SLICE_COLUMNS, *VERTEBRA_COLUMNS, *FRACTURE_COLUMNS), "slices")
    _require(levels, LEVEL_COLUMNS, "levels")
    units = find_units(slices)
    ranges = find_levels(levels, units)
    member = slices["member"].to_numpy(dtype=object)
    slice_idx = slices["slice_idx"].to_numpy(np.int64)
    numbers = _finite_numbers(slices)
    members: dict[str, dict[str, FloatArray]] = {}
    for name in sorted(set(member)):
        own = np.flatnonzero(member == name)
        own = own[np.lexsort((slice_idx[own], units.of_row[own]))]
        unit = _segments_of(name, units, units.of_row[own], slice_idx[own], slices.iloc[own])
        level_slices = _level_slices(numbers[own, 1:], numbers[own, 0], unit, ranges)
        members[name] = {s: compute(level_slices) for s, compute in STATISTICS.items()}
    native = _native(unit, numbers[own, 0], slice_idx[own])
    shared = _shared(members, ranges, native)
    site = position_features(numbers[own, 0], unit, native[1], slice_idx[own])
    shared |= {f"{SITE}__{name}": np.repeat(value, N_LEVELS) for name, value in site.items()}
    columns = {
        f"{m}__{s}": v for m, values in {**members, ALL: shared}.items() for s, v in values.items()
    }
    features = np.column_stack(list(columns.values())).astype(np.float32)
    broken = ~np.isfinite(features).all(axis=0)
    if broken.any():
        names = np.array(list(columns))[broken][:SHOWN].tolist()
        raise TableError(f"features: not finite in {names}")
    level = np.tile(np.arange(N_LEVELS), len(units))
    order = np.lexsort(
        (np.repeat(units.model_fold, N_LEVELS), level, np.repeat(units.study, N_LEVELS))
    )
    unit_of = order // N_LEVELS
    frame = pd.DataFrame(features[order], columns=list(columns))
    frame.insert(0, "study_uid", units.uids[units.study[unit_of]].astype(str))
    frame.insert(1, "level", np.array(LEVELS)[level[order]])
    frame.insert(2, "model_fold", units.model_fold[unit_of])
    frame.insert(3, "fold", units.fold[unit_of])
    return frame


def _finite_numbers(slices: pd.DataFrame) -> FloatArray:
    """z_mm, vertebra and fracture logits as (n, 15); infinite logits pass, they are cut later."""
    columns = ["z_mm", *VERTEBRA_COLUMNS, *FRACTURE_COLUMNS]
    numbers = slices[columns].to_numpy(np.float64)
    bad = np.isnan(numbers)
    bad[:, 0] |= np.isinf(numbers[:, 0])
    if bad.any():
        row, column = (int(i[0]) for i in np.nonzero(bad))
        at = slices.iloc[row][["member", "study_uid", "slice_idx"]].to_dict()
        raise TableError(
            f"table slices: {columns[column]} is {numbers[row, column]} at {at}; "
            "predict that study again (make oof)"
        )
    return numbers


def _segments_of(
    member: str, units: Units, of_row: IntArray, slice_idx: IntArray, rows: pd.DataFrame
) -> Segments:
    """One segment per unit over a member's ordered rows.

    Raises:
        TableError: a unit without rows of this member, or a slice given twice.
    """
    present, starts = np.unique(of_row, return_index=True)
    if len(present) < len(units):
        lost = np.setdiff1d(np.arange(len(units)), present)
        raise TableError(
            f"table slices: member {member!r} has no rows for {len(lost)} of {len(units)} "
            f"studies and fold models: {units.describe(lost)}"
        )
    doubled = (np.diff(of_row) == 0) & (np.diff(slice_idx) == 0)
    if doubled.any():
        at = rows.iloc[1:][doubled].head(SHOWN)[["member", "study_uid", "slice_idx"]]
        raise TableError(f"table slices: duplicate keys {at.to_dict('records')}")
    return Segments(starts.astype(np.int64), len(of_row))

"""From slice tables to one row of statistics per (study, level, model_fold).

In: slice rows of all members (contract `oof_slices`; for test studies the same columns with fold -1
and every model_fold), where the levels lie (contract `levels`), and what members say of more than a
slice. Out: float32 feature columns `<member>__<signal>__<statistic>`; member `all` holds what
members agree on, neighbors and geometry.
Example::

    from cspine_kit.stack.features.names import feature_columns

    statistics = aggregate(oof_slices, levels)
    statistics[feature_columns(statistics.columns)]

Out-of-fold rows and the kernel's test rows go through this one function. A level without a slice in
its range is described by the slice nearest to the range's middle. A level that the scan does not
show is described as one that is not seen, with the lowest fracture probability of the study.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.errors import TableError
from cspine_kit.core.numbers import BoolArray, FloatArray, logit, sigmoid
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.stack.features.inside import rows_inside
from cspine_kit.stack.features.names import ALL, SITE
from cspine_kit.stack.features.positions import position_features
from cspine_kit.stack.features.rows import ROW_COLUMNS, MemberRows, rows_by_member
from cspine_kit.stack.features.scores import MemberScores, score_columns
from cspine_kit.stack.features.segments import Segments
from cspine_kit.stack.features.statistics import MAX_STEP_MM, MIN_STEP_MM, STATISTICS, LevelSlices
from cspine_kit.stack.features.units import SHOWN, Levels, find_levels, find_units

LEVEL_COLUMNS = (
    *("study_uid", "level", "model_fold", "present", "z_top_mm", "z_bottom_mm"),
    *("center_z_mm", "confidence"),
)

UNSEEN = float(sigmoid(np.array(-np.inf)))
"""Visibility of a level that the scan does not show."""


def _require(frame: pd.DataFrame, columns: tuple[str, ...], name: str) -> None:
    missing = [c for c in columns if c not in frame]
    if missing or frame.empty:
        raise TableError(f"table {name}: " + (f"no column {missing}" if missing else "no rows"))


def _steps_mm(unit: Segments, at_mm: FloatArray) -> FloatArray:
    """Typical slice distance of each unit: its extent over its row count."""
    extent = np.abs(at_mm[unit.starts] - at_mm[unit.ends - 1]) / np.maximum(unit.counts - 1, 1)
    step: FloatArray = np.where(unit.counts > 1, np.clip(extent, MIN_STEP_MM, MAX_STEP_MM), 1.0)
    return step


def _native(rows: MemberRows) -> dict[str, FloatArray]:
    """Native slices of each study down to the last one predicted, and their distance in mm.

    Members may predict every other millimeter only; the scanner's own spacing tells protocols and
    sites apart.
    """
    first, last = rows.unit.starts, rows.unit.ends - 1
    steps = rows.position[last] - rows.position[first]
    distance = np.abs(rows.at_mm[last] - rows.at_mm[first]) / np.maximum(steps, 1)
    step: FloatArray = np.where(steps > 0, np.clip(distance, MIN_STEP_MM, MAX_STEP_MM), 1.0)
    return {"study__slices": rows.position[last].astype(np.float64) + 1.0, "study__step": step}


def _level_slices(rows: MemberRows, levels: Levels) -> LevelSlices:
    """One member's slices as the input of every statistic."""
    unit, probs = rows.unit, sigmoid(rows.logits)
    v_all, p_all = probs[:, :N_LEVELS], probs[:, N_LEVELS:]
    picked, inside = rows_inside(rows, v_all, levels)
    at = np.repeat(np.tile(np.arange(N_LEVELS), len(unit.starts)), inside.counts) * len(p_all)
    at += picked
    joint = p_all * v_all
    visible = unit.sum(v_all)
    slices = LevelSlices(
        inside=inside,
        p=p_all.ravel("F")[at],
        v=v_all.ravel("F")[at],
        step_mm=np.repeat(_steps_mm(unit, rows.at_mm), N_LEVELS),
        study_weighted=(unit.sum(joint) / visible).ravel(),
        study_visible=visible.ravel(),
        study_mean=unit.mean(p_all).ravel(),
        study_min=unit.min(p_all).ravel(),
        study_max=unit.max(p_all).ravel(),
        study_peak=unit.max(joint).ravel(),
    )
    return slices if levels.present.all() else _unseen(slices, ~levels.present)


def _unseen(slices: LevelSlices, absent: BoolArray) -> LevelSlices:
    """The same where levels that are absent show nothing that speaks for a fracture."""
    lowest = np.repeat(slices.study_min.reshape(-1, N_LEVELS).min(axis=1), N_LEVELS)
    rows = absent[slices.inside.of_row]

    def least(value: FloatArray) -> FloatArray:
        return np.where(absent, lowest, value)

    return replace(
        slices,
        p=np.where(rows, lowest[slices.inside.of_row], slices.p),
        v=np.where(rows, UNSEEN, slices.v),
        study_weighted=least(slices.study_weighted),
        study_visible=np.where(absent, UNSEEN, slices.study_visible),
        study_mean=least(slices.study_mean),
        study_min=least(slices.study_min),
        study_max=least(slices.study_max),
        study_peak=least(slices.study_peak),
    )


def _shared(
    members: dict[str, dict[str, FloatArray]], levels: Levels, native: dict[str, FloatArray]
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
        "level__length": np.abs(levels.z_top_mm - levels.z_bottom_mm),
        "level__confidence": levels.confidence,
        "level__gap_above": np.hstack([gap[:, :1], gap]),
        "level__gap_below": np.hstack([gap, gap[:, -1:]]),
        **{name: value[:, None] * wide for name, value in native.items()},
        "study__extent": (z.max(axis=1) - z.min(axis=1))[:, None] * wide,
    }
    return {name: values.ravel() for name, values in shared.items()}


def aggregate(
    slices: pd.DataFrame, levels: pd.DataFrame, scores: MemberScores | None = None
) -> pd.DataFrame:
    """Statistics of every level of every study and fold model.

    Args:
        slices: rows (member, study_uid, plane, position, model_fold), fold, at_mm and the logits
            vertebra_C1..C7, fracture_C1..C7. Infinite logits are cut, NaN is an error.
        levels: rows (study_uid, level, model_fold), present, z_top_mm, z_bottom_mm (inclusive),
            center_z_mm, confidence; rows of other studies are ignored.
        scores: what members say of levels, studies and boxes; rows of other studies are ignored.

    Returns:
        Rows sorted by (study_uid, level, model_fold): the key, fold (int64) and float32 features in
        a fixed order (members in alphabetical order, then their scores, then `all`), every value
        finite but for scores that a member did not give.

    Raises:
        TableError: a missing column, NaN, a member without some study that another member has, a
            level that is missing, doubled keys, or a study with two folds.
    """
    _require(slices, (*ROW_COLUMNS, *VERTEBRA_COLUMNS, *FRACTURE_COLUMNS), "slices")
    _require(levels, LEVEL_COLUMNS, "levels")
    units = find_units(slices)
    ranges = find_levels(levels, units)
    rows = rows_by_member(slices, units)
    members: dict[str, dict[str, FloatArray]] = {}
    for name, own in rows.items():
        parts: dict[str, list[FloatArray]] = {s: [] for s in STATISTICS}
        for at, block in own.blocks():
            level_slices = _level_slices(block, ranges.take(at))
            for s, compute in STATISTICS.items():
                parts[s].append(compute(level_slices))
        members[name] = {s: np.concatenate(part) for s, part in parts.items()}
    axial = [own for own in rows.values() if own.axial.all()]
    native = _native(axial[-1]) if axial else {}
    shared = _shared(members, ranges, native)
    if axial:
        at_mm, unit, position = axial[-1].at_mm, axial[-1].unit, axial[-1].position
        site = position_features(at_mm, unit, native["study__step"], position)
        shared |= {f"{SITE}__{name}": np.repeat(value, N_LEVELS) for name, value in site.items()}
    columns = {f"{m}__{s}": v for m, values in members.items() for s, v in values.items()}
    given = score_columns(scores, units, ranges) if scores else {}
    columns |= given
    columns |= {f"{ALL}__{s}": v for s, v in shared.items()}
    features = np.column_stack(list(columns.values())).astype(np.float32)
    broken = ~np.isfinite(features).all(axis=0) & ~np.isin(list(columns), list(given))
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

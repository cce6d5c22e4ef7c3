"""The statistics of `aggregate`, column for column, as vectorized pandas says them.

In: slice rows and levels in which every level's range holds a slice of every member. Out: the frame
of `aggregate`, float64. Example::

    pandas_aggregate(slices, levels).filter(like="__fracture__")

Groups are whole numbers, no Python function runs for a group: the fastest pandas we could write.
Elementwise formulas (sigmoid, logit, decimals) are the kit's own.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.numbers import logit, sigmoid
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.stack.features.positions import decimals
from cspine_kit.stack.features.statistics import MAX_STEP_MM, MIN_STEP_MM, SMOOTH_MM

Columns = dict[str, object]
Pairs = Iterator[tuple[str, object]]
Native = tuple[pd.Series, pd.Series]
UNIT = ["study_uid", "model_fold"]
QUANTILES = {"q25": 0.25, "q50": 0.5, "q75": 0.75, "q90": 0.9}


def pandas_aggregate(slices: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """What `aggregate` gives, sorted by (study_uid, level, model_fold)."""
    units = slices.groupby(UNIT)["fold"].first()
    levels = levels.set_index([*UNIT, "level"]).sort_index()
    wide = {
        name: levels[name].unstack().reindex(index=units.index, columns=list(LEVELS)).to_numpy()
        for name in ("z_top_mm", "z_bottom_mm", "center_z_mm", "confidence")
    }
    columns, members = {}, {}
    for member, rows in slices.groupby("member"):
        own = rows.sort_values([*UNIT, "position"], ignore_index=True)
        unit = own.groupby(UNIT).ngroup()
        members[member] = dict(_member(own, unit, wide))
        columns |= {f"{member}__{name}": value for name, value in members[member].items()}
    ends = own.groupby(unit).agg({"position": ["first", "last"], "at_mm": ["first", "last"]})
    first, last = ends["position", "first"], ends["position", "last"]
    native = last + 1, _steps(ends["at_mm", "first"], ends["at_mm", "last"], last - first)
    shared = dict(_shared(members, wide, native)) | dict(_positions(own, unit, native[1]))
    columns |= {f"all__{name}": value for name, value in shared.items()}
    flat = {name: np.asarray(value, np.float64).ravel() for name, value in columns.items()}
    frame = units.loc[units.index.repeat(N_LEVELS)].reset_index()
    frame.insert(1, "level", np.tile(LEVELS, len(units)))
    frame = pd.concat([frame, pd.DataFrame(flat)], axis=1)
    return frame.sort_values(["study_uid", "level", "model_fold"], ignore_index=True)


def _steps(z_first: pd.Series, z_last: pd.Series, steps: pd.Series) -> pd.Series:
    """Distance in mm of `steps` equal steps; 1 where there is none."""
    distance = ((z_first - z_last).abs() / steps.clip(lower=1)).clip(MIN_STEP_MM, MAX_STEP_MM)
    return distance.where(steps > 0, 1.0)


def _member(own: pd.DataFrame, unit: pd.Series, wide: dict[str, np.ndarray]) -> Pairs:
    """All statistics of one member as (units, 7) or in that order."""
    p = pd.DataFrame(sigmoid(own[list(FRACTURE_COLUMNS)].to_numpy(np.float64)), columns=LEVELS)
    v = pd.DataFrame(sigmoid(own[list(VERTEBRA_COLUMNS)].to_numpy(np.float64)), columns=LEVELS)
    z = own.groupby(unit)["at_mm"].agg(["first", "last", "size"])
    step = _steps(z["first"], z["last"], z["size"] - 1)
    joint, study = (p * v).groupby(unit), p.groupby(unit)
    visible = v.groupby(unit).sum()
    yield "fracture__weighted", joint.sum() / visible
    yield "fracture__peak", joint.max()
    yield "study__mean", study.mean()
    yield "study__min", study.min()
    yield "study__max", study.max()
    yield "vertebra__height", visible.mul(step, axis=0)
    yield "vertebra__slices", visible
    parts = []
    for j, level in enumerate(LEVELS):
        inside = own["at_mm"].between(wide["z_bottom_mm"][unit, j], wide["z_top_mm"][unit, j])
        part = {"key": unit[inside] * N_LEVELS + j, "p": p.loc[inside, level]}
        parts.append(pd.DataFrame({**part, "v": v.loc[inside, level]}))
    rows = pd.concat(parts).sort_values("key", kind="stable", ignore_index=True)
    yield from _inside(rows, step.repeat(N_LEVELS).reset_index(drop=True))


def _inside(rows: pd.DataFrame, step: pd.Series) -> Pairs:
    """Statistics of the slices inside each level's range; `key` numbers units and levels."""
    key, p, v = rows["key"], rows["p"], rows["v"]
    group = rows.groupby("key")
    yield "fracture__mean", group["p"].mean()
    yield "fracture__inside", (p * v).groupby(key).sum() / group["v"].sum()
    yield "fracture__max", group["p"].max()
    yield "fracture__min", group["p"].min()
    yield "fracture__std", group["p"].std(ddof=0)
    quantiles = group["p"].quantile(list(QUANTILES.values()))
    for name, q in QUANTILES.items():
        yield f"fracture__{name}", quantiles.xs(q, level=1)
    descending = rows.sort_values(["key", "p"], ascending=[True, False]).groupby("key")
    for k in (3, 5):
        top = descending.head(k)
        yield f"fracture__top{k}", top.groupby("key")["p"].mean()
    odds = pd.Series(np.exp(logit(p.to_numpy())))
    yield "fracture__logsumexp", np.log(odds.groupby(key).mean())
    yield "fracture__noisyor", -np.log1p(-p * v).groupby(key).sum() * step
    yield "fracture__smooth", _smooth(p * v, key, step).groupby(key).max()
    for name, threshold in (("30", 0.3), ("50", 0.5)):
        over = p > threshold
        run = over.astype(int).groupby([key, (~over).groupby(key).cumsum()]).cumsum()
        yield f"fracture__run{name}", run.groupby(key).max() * step
        yield f"fracture__extent{name}", over.groupby(key).sum() * step
    doubt = -(p * np.log(p) + (1.0 - p) * np.log1p(-p))
    yield "fracture__entropy", doubt.groupby(key).mean()
    size = group["p"].transform("size")
    place = (2.0 * group.cumcount() / (size - 1).clip(lower=1) - 1.0).where(size > 1, 0.0)
    yield "fracture__place", place[group["p"].idxmax()]
    yield "fracture__asymmetry", (p * place).groupby(key).sum() / group["p"].sum()
    yield "vertebra__mean", group["v"].mean()
    yield "vertebra__max", group["v"].max()


def _smooth(values: pd.Series, key: pd.Series, step: pd.Series) -> pd.Series:
    """Centered mean over SMOOTH_MM to either side, cut at the ends of a level."""
    half = (SMOOTH_MM / step).round().astype(int)[key].to_numpy()
    table = pd.DataFrame({"sum": values.groupby(key).cumsum(), "rows": 1})
    table["rows"] = table.groupby(key)["rows"].cumsum()
    smooth = pd.Series(np.nan, index=values.index)
    for width in np.unique(half):
        own = half == width
        part, group = table[own], table[own].groupby(key[own])
        upper = group.shift(-width).fillna(group.transform("last"))
        taken = upper - group.shift(width + 1).fillna(0.0)
        smooth[part.index] = taken["sum"] / taken["rows"]
    return smooth


def _shared(members: dict[str, Columns], wide: dict[str, np.ndarray], native: Native) -> Pairs:
    """Agreement of the members, neighbors, the study's other levels, geometry: (units, 7)."""
    odds = {
        name: np.stack([logit(np.asarray(m[name]).reshape(-1, N_LEVELS)) for m in members.values()])
        for name in ("fracture__weighted", "fracture__smooth")
    }
    mean = pd.DataFrame(odds["fracture__weighted"].mean(axis=0))
    yield "fracture__odds", mean
    yield "fracture__spread", odds["fracture__weighted"].std(axis=0)
    yield "smooth__odds", odds["fracture__smooth"].mean(axis=0)
    yield "smooth__spread", odds["fracture__smooth"].std(axis=0)
    yield "neighbor__above", mean.shift(1, axis=1).bfill(axis=1)
    yield "neighbor__below", mean.shift(-1, axis=1).ffill(axis=1)
    doubt = np.log1p(-sigmoid(mean.to_numpy()))
    yield "patient__others", logit(-np.expm1(doubt.sum(axis=1, keepdims=True) - doubt))
    highest, ordered = mean.max(axis=1), np.sort(mean, axis=1)
    others = mean.where(mean.ne(highest, axis=0)).notna()
    yield "patient__margin", mean - np.where(others, ordered[:, -1:], ordered[:, -2:-1])
    yield "patient__max", np.tile(highest.to_numpy()[:, None], N_LEVELS)
    yield "patient__mean", np.tile(mean.mean(axis=1).to_numpy()[:, None], N_LEVELS)
    yield "patient__rank", mean.rank(axis=1, ascending=False, method="min") - 1
    yield "level__length", wide["z_top_mm"] - wide["z_bottom_mm"]
    yield "level__confidence", wide["confidence"]
    z = pd.DataFrame(wide["center_z_mm"])
    gap = z.diff(axis=1).abs()
    yield "level__gap_above", gap.bfill(axis=1)
    yield "level__gap_below", gap.shift(-1, axis=1).ffill(axis=1)
    extent = z.max(axis=1) - z.min(axis=1)
    for name, value in (("slices", native[0]), ("step", native[1]), ("extent", extent)):
        yield f"study__{name}", np.tile(value.to_numpy()[:, None], N_LEVELS)


def _positions(own: pd.DataFrame, unit: pd.Series, step_mm: pd.Series) -> Pairs:
    """What slice positions say about the protocol, for each of a unit's seven levels."""
    z, group = own["at_mm"], own.groupby(unit)
    gap = group["at_mm"].diff().abs() / group["position"].diff().clip(lower=1)
    gap = gap.groupby(unit).bfill().fillna(step_mm[unit].set_axis(gap.index))
    gaps, step = gap.groupby(unit), gap.groupby(unit).median()
    irregular = (gap - gaps.transform("median")).abs() > 0.05
    first, low, high = (group["at_mm"].agg(how) for how in ("first", "min", "max"))
    digits = pd.Series(decimals(z.to_numpy(np.float64)))
    found = {
        **{"step": step, "step_min": gaps.min(), "step_max": gaps.max()},
        "irregular": irregular.groupby(unit).mean(),
        **{"extent": high - low, "z_min": low, "z_max": high, "z_middle": (low + high) / 2},
        "z_tenths": (first - first.round()).abs(),
        "z_decimals": digits.groupby(unit).mean(),
    }
    for name, value in found.items():
        yield f"site__{name}", value.repeat(N_LEVELS)

"""Figures of the vertebra stage: what its networks see on slices, and the levels made of it.

In: tables `vertebra`, `slices`, `levels`, all out-of-fold. Out: `Figure`s. Example::

    seen = pd.read_parquet(paths.table("vertebra"))
    own = seen[seen["fold"] == seen["model_fold"]]
    table = mask_and_model(own, slices.dropna(subset=["mask_C1"]))
    figure = presence(table)
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.numbers import FloatArray, IntArray, sigmoid
from cspine_kit.core.tables import MASK_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.show.report.figure import (
    ALARM_COLOR,
    LEVEL_COLORS,
    PLAIN_COLOR,
    Figure,
    canvas,
    drawn,
    ending,
    heat,
    level_bands,
)

SHOWN = 0.5
"""Probability from which a level counts as seen on a slice."""

NONE = "none"


def curves(axes: object, rows: pd.DataFrame, place: str = "at_mm") -> None:
    """Probability of each level along z.

    Args:
        axes: of matplotlib.
        rows: of one study and model, with vertebra logits.
        place: column of z, mm.
    """
    ordered = rows.sort_values(place)
    for level, column in zip(LEVELS, VERTEBRA_COLUMNS, strict=True):
        probs = sigmoid(ordered[column].to_numpy(np.float64))
        axes.plot(ordered[place], probs, color=LEVEL_COLORS[level], lw=1.4)  # type: ignore[attr-defined]


def level_curves(vertebra: pd.DataFrame, levels: pd.DataFrame, shown: Sequence[str]) -> Figure:
    """Per-slice curves of some studies under their decoded levels.

    Args:
        vertebra: out-of-fold rows of table `vertebra`.
        levels: rows of table `levels` by the same fold models.
        shown: study_uids.
    """
    sheet = canvas(height_in=1.75 * len(shown) + 0.3)
    panels = sheet.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, uid in zip(panels, shown, strict=True):
        curves(axes, vertebra[vertebra["study_uid"] == uid])
        level_bands(axes, levels[levels["study_uid"] == uid].sort_values("level"))
        axes.set(ylim=(0, 1), ylabel=f"…{ending(uid)}\nprobability")
        axes.invert_xaxis()
    panels[-1].set_xlabel("z along the slices, mm (head on the left)")
    return drawn(
        sheet,
        "What the vertebra network says on each slice (curves) and the seven levels decoded from "
        "it (bars). Good: seven humps in order, each under its bar. A hump that is missing or low "
        "is a level placed by its neighbors.",
    )


def mask_and_model(vertebra: pd.DataFrame, masked: pd.DataFrame) -> pd.DataFrame:
    """Scored slices of masked studies with each level's area in them.

    Args:
        vertebra: out-of-fold rows of table `vertebra`.
        masked: rows of table `slices` that have mask areas.

    Returns:
        The vertebra rows with the mask columns, where the slice lies within half a
        slice of the scored position and its study has a mask.
    """
    found = []
    for uid, rows in vertebra.groupby("study_uid"):
        own = masked[masked["study_uid"] == uid]
        if own.empty:
            continue
        distance = np.abs(rows["at_mm"].to_numpy()[:, None] - own["z_mm"].to_numpy()[None])
        at = own.iloc[distance.argmin(axis=1)]
        areas = at[list(MASK_COLUMNS)].set_axis(rows.index)
        near = distance.min(axis=1) <= np.nanmax(own["gap_mm"].to_numpy(np.float64))
        found.append(rows.join(areas)[near])
    return pd.concat(found, ignore_index=True) if found else vertebra.iloc[:0]


def _named(values: FloatArray, least: float) -> IntArray:
    """Index of the largest of (n, 7) values, 7 where none passes `least`."""
    return np.where(values.max(axis=1) > least, values.argmax(axis=1), len(LEVELS))


def presence(table: pd.DataFrame) -> Figure:
    """Which level a slice shows most, by the mask and by the model; and each level's precision and
    recall.

    Args:
        table: of `mask_and_model`.
    """
    area = table[list(MASK_COLUMNS)].to_numpy(np.float64)
    probs = sigmoid(table[list(VERTEBRA_COLUMNS)].to_numpy(np.float64))
    truth, said = _named(area, 0.0), _named(probs, SHOWN)
    names = [*LEVELS, NONE]
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (truth, said), 1.0)
    with np.errstate(invalid="ignore"):
        share = counts / counts.sum(axis=1, keepdims=True)
    sheet = canvas(height_in=3.2)
    left, right = sheet.subplots(1, 2, width_ratios=[3, 2])
    heat(left, share, rows=names, columns=names, form=".2f")
    left.set(ylabel="largest level of the mask", xlabel="largest level of the model")
    there, seen = area > 0.0, probs > SHOWN
    hits = (there & seen).sum(axis=0)
    with np.errstate(invalid="ignore"):
        right.plot(hits / seen.sum(axis=0), LEVELS, "s", color=PLAIN_COLOR, label="precision")
        right.plot(hits / there.sum(axis=0), LEVELS, "o", color=ALARM_COLOR, label="recall")
    right.set(xlim=(0, 1.02), xlabel="of slices that show the level at all")
    right.invert_yaxis()
    right.grid()
    right.legend(loc="lower left")
    exact = float((truth == said).mean())
    return drawn(
        sheet,
        f"{len(table)} slices of {table['study_uid'].nunique()} masked studies, by networks that "
        f"did not learn from them; {exact:.0%} are named right. Mistakes should stay next to the "
        "diagonal; a column off it means levels are counted wrongly.",
    )


def center_errors(levels: pd.DataFrame, masked: pd.DataFrame) -> pd.DataFrame:
    """Decoded center minus the mask's, along z: study_uid, level, error_mm (positive: too high).

    Args:
        levels: decoded, one fold model per study.
        masked: rows of table `slices` that have mask areas.
    """
    rows = []
    for uid, own in masked.groupby("study_uid"):
        z = own["z_mm"].to_numpy(np.float64)
        for level, column in zip(LEVELS, MASK_COLUMNS, strict=True):
            area = own[column].to_numpy(np.float64)
            # A level cut by the end of the scan has no center of its own.
            if area.sum() > 0.0 and area[0] == 0.0 and area[-1] == 0.0:
                rows.append((uid, level, float(z @ area / area.sum())))
    truth = pd.DataFrame(rows, columns=["study_uid", "level", "truth_mm"])
    joined = levels[levels["present"]].merge(truth, on=["study_uid", "level"])
    return joined.assign(error_mm=joined["center_z_mm"] - joined["truth_mm"])[
        ["study_uid", "level", "error_mm"]
    ]


def centers(errors: pd.DataFrame) -> Figure:
    """How far decoded centers lie from the masks', level by level.

    Args:
        errors: of `center_errors`.
    """
    sheet = canvas(height_in=2.6)
    axes = sheet.subplots()
    rng = np.random.default_rng(0)
    for i, level in enumerate(LEVELS):
        own = errors.loc[errors["level"] == level, "error_mm"].to_numpy(np.float64)
        if len(own) == 0:
            continue
        x = i + rng.uniform(-0.18, 0.18, len(own))
        axes.plot(x, own, "o", color=LEVEL_COLORS[level], ms=4, alpha=0.6, mew=0)
        axes.hlines(np.median(own), i - 0.3, i + 0.3, color="black", lw=1.5)
    axes.axhspan(-5.0, 5.0, color="#009e73", alpha=0.08, lw=0)
    axes.set_xticks(range(len(LEVELS)), LEVELS)
    axes.set(ylabel="decoded minus mask, mm (+ cranial)", xlim=(-0.6, len(LEVELS) - 0.4))
    axes.grid(axis="y")
    away = errors["error_mm"].abs()
    return drawn(
        sheet,
        f"Each dot is one masked study; half lie within {away.median():.1f} mm, nine in ten within "
        f"{away.quantile(0.9):.1f} mm. Levels are 12 to 24 mm apart, so an error of 10 mm (far off "
        "the green ground) makes fracture members look at the wrong vertebra.",
    )

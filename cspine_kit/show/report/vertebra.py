"""Figures of the vertebra stage: what its networks see on slices, and the levels made of it.

In: tables `vertebra`, `slices`, `levels`, all out-of-fold. Out: `Figure`s. Example::

    seen = pd.read_parquet(paths.table("vertebra"))
    own = seen[seen["fold"] == seen["model_fold"]]
    from cspine_kit.show.presence import judge_presence

    judged = judge_presence(slices, studies, own, ["vertebra"], seed=0)
    figure = presence(judged)
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.numbers import sigmoid
from cspine_kit.core.tables import MASK_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.show.presence import (
    MEAN,
    NONE,
    PUBLISHED,
    Judged,
    confusions,
    presence_table,
)
from cspine_kit.show.report.figure import (
    LEVEL_COLORS,
    Figure,
    canvas,
    drawn,
    ending,
    heat,
    level_bands,
)


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


def presence(judged: Sequence[Judged]) -> Figure:
    """Accuracy, precision and recall of each level by each system.

    Args:
        judged: of `show.presence.judge_presence`.
    """
    table = presence_table(judged)
    systems = list(dict.fromkeys(table["system"]))
    sheet = canvas(height_in=3.0)
    panels = sheet.subplots(1, 3, sharey=True)
    place = np.arange(len(LEVELS))
    for axes, number in zip(panels, ("accuracy", "precision", "recall"), strict=True):
        for k, system in enumerate(systems):
            own = table[(table["system"] == system) & (table["level"] != MEAN)]
            shift = (k - (len(systems) - 1) / 2) * 0.11
            axes.plot(own[number], place + shift, "o", ms=4, color=f"C{k}", label=system)
        axes.set(xlabel=number, yticks=place)
        axes.set_yticklabels(LEVELS)
        axes.grid()
    for k, (name, values) in enumerate(PUBLISHED.items()):
        panels[0].plot(values, place, "|", ms=9, color=f"C{len(systems) + k}", label=f"{name} *")
    panels[0].invert_yaxis()
    sheet.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    slices = sum(len(own.truth) for own in judged)
    mean = table[table["level"] == MEAN].set_index("system")["accuracy"]
    told = ", ".join(f"{system} {value:.3f}" for system, value in mean.items())
    return drawn(
        sheet,
        f"{slices} slices of {len(judged)} masked studies, by models that did not learn from them. "
        f"Mean accuracy: {told}. Headers know where in a scan the neck usually lies; what images "
        "do not add to them was not learned. * published on other slices of the competition.",
    )


def confusion(judged: Sequence[Judged]) -> Figure:
    """Which level a slice shows most, by the mask and by each system.

    Args:
        judged: of `show.presence.judge_presence`.
    """
    table = confusions(judged)
    systems, names = list(dict.fromkeys(table["system"])), [*LEVELS, NONE]
    rows = -(-len(systems) // 2)
    sheet = canvas(height_in=2.9 * rows)
    panels = sheet.subplots(rows, 2, squeeze=False).ravel()
    right = {}
    for axes, system in zip(panels, systems, strict=False):
        own = table[table["system"] == system]
        counts = own.pivot(index="truth", columns="said", values="slices").loc[names, names]
        with np.errstate(invalid="ignore"):
            share = counts.to_numpy(np.float64) / counts.sum(axis=1).to_numpy()[:, None]
        heat(axes, share, rows=names, columns=names, form=".2f")
        axes.set(title=system, ylabel="largest level of the mask")
        right[system] = np.trace(counts.to_numpy()) / counts.to_numpy().sum()
    for axes in panels[len(systems) :]:
        axes.set_axis_off()
    told = ", ".join(f"{system} {value:.0%}" for system, value in right.items())
    return drawn(
        sheet,
        f"Columns: the largest level of the system. Slices named right: {told}. Mistakes should "
        "stay next to the diagonal; a column off it means levels are counted wrongly.",
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

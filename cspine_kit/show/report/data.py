"""Figures of the data: labels, folds, geometry, what the reader found.

In: tables `studies` and folds. Out: `Figure`s. Example: `fractures(labels)`.
"""

from collections import Counter

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.numbers import FloatArray
from cspine_kit.show.report.figure import (
    LEVEL_COLORS,
    PLAIN_COLOR,
    TARGET_TICKS,
    Figure,
    bars_height,
    canvas,
    drawn,
    member_colors,
)

MOST_PROBLEMS = 12
THIN_MM, THICK_MM = 1.0, 3.0
"""Thinner slices show a hairline; thicker ones hardly a fracture at all."""


def fractures(train: pd.DataFrame) -> Figure:
    """Share of studies with a fracture by level, and how many levels break in one patient.

    Args:
        train: one row per study with the eight targets.
    """
    sheet = canvas(height_in=2.9)
    left, right = sheet.subplots(1, 2, width_ratios=[3, 2])
    count = train[list(TARGETS)].sum()
    share = 100.0 * count / len(train)
    bars = left.bar(TARGET_TICKS, share, color=[LEVEL_COLORS[t] for t in TARGETS])
    left.bar_label(bars, [f"{share[t]:.0f} %\n{count[t]:.0f}" for t in TARGETS], fontsize=8)
    left.set(ylabel="studies with a fracture, %", ylim=(0, max(1.0, share.max()) * 1.25))
    broken = train[list(LEVELS)].sum(axis=1).astype(int)
    number = np.arange(broken.max() + 1)
    of_number = broken.value_counts().reindex(number, fill_value=0)
    bars = right.bar(number, of_number, color=PLAIN_COLOR)
    right.bar_label(bars, fontsize=8)
    right.set(xlabel="fractured levels in one patient", ylabel="studies", xticks=number)
    several = (broken > 1).sum()
    return drawn(
        sheet,
        f"{count[OVERALL]:.0f} of {len(train)} patients have a fracture, {several} of them in "
        "several levels. A level below a handful of positives cannot be learned or judged.",
    )


def phi(train: pd.DataFrame) -> FloatArray:
    """Correlation of the levels' labels (7, 7); NaN where a level never or always breaks."""
    y = train[list(LEVELS)].to_numpy(np.float64)
    spread = y.std(axis=0)
    centered = y - y.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = (centered.T @ centered) / len(y) / np.outer(spread, spread)
    return found


def together(train: pd.DataFrame) -> Figure:
    """Which levels break together."""
    sheet = canvas(4.6, 3.4)
    axes = sheet.subplots()
    values = phi(train)
    values[np.triu_indices(len(LEVELS))] = np.nan
    limit = max(0.3, float(np.nanmax(np.abs(values)))) if np.isfinite(values).any() else 0.3
    axes.imshow(np.ma.masked_invalid(values), cmap="RdBu_r", vmin=-limit, vmax=limit)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(j, i, f"{value:+.2f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(LEVELS)), LEVELS)
    axes.set_yticks(range(len(LEVELS)), LEVELS)
    axes.set(xlim=(-0.5, len(LEVELS) - 1.5), ylim=(len(LEVELS) - 0.5, 0.5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return drawn(
        sheet,
        "Correlation of the labels of two levels. Neighbors break together (red along the "
        "diagonal): in the competition's own labels C3 to C7 with their neighbors reach +0.3, C1 "
        "with C2 +0.2.",
    )


def geometry(studies: pd.DataFrame) -> Figure:
    """Slices per study and their spacing.

    Args:
        studies: rows of table `studies`, training and test.
    """
    sheet = canvas(height_in=2.9)
    left, middle, right = sheet.subplots(1, 3)
    train, test = (studies[studies["split"] == split] for split in ("train", "test"))
    parts = [part for part in (train, test) if len(part)]
    named = ["train" if part is train else "test" for part in parts]
    colors = [PLAIN_COLOR if name == "train" else "#e69f00" for name in named]
    bins = np.histogram_bin_edges(studies["n_slices"], bins=min(30, max(5, len(studies) // 4)))
    left.hist([p["n_slices"] for p in parts], bins, stacked=True, color=colors, label=named)
    left.set(xlabel="slices of a study", ylabel="studies")
    left.legend()
    for part, color in zip(parts, colors, strict=True):
        middle.plot(
            part["spacing_y"], part["spacing_z"], "o", ms=4, alpha=0.6, color=color, mew=0, ls=""
        )
        length = part["n_slices"] * part["spacing_z"]
        right.plot(part["spacing_z"], length, "o", ms=4, alpha=0.6, color=color, mew=0, ls="")
    middle.set(xlabel="pixel, mm", ylabel="slice spacing, mm")
    middle.axhspan(0.0, THIN_MM, color="#009e73", alpha=0.08, lw=0)
    middle.set(xlim=(0, 1.1 * studies["spacing_y"].max()), ylim=(0, None))
    right.set(xlabel="slice spacing, mm", ylabel="length of the scan, mm", ylim=(0, None))
    right.set_xlim(0, 1.1 * studies["spacing_z"].max())
    thick = int((studies["spacing_z"] > THICK_MM).sum())
    return drawn(
        sheet,
        f"Median {studies['n_slices'].median():.0f} slices, {studies['spacing_z'].median():.2f} mm "
        f"apart; {thick} studies are coarser than {THICK_MM:.0f} mm. In the green ground slices "
        "are a millimeter or less apart. Test studies (orange) should lie among the others.",
    )


def fold_shares(train: pd.DataFrame) -> Figure:
    """Share of positives of each target, fold by fold.

    Args:
        train: with the targets and `fold`.
    """
    sheet = canvas(height_in=2.7)
    axes = sheet.subplots()
    dealt = train[train["fold"] >= 0]
    folds = sorted(dealt["fold"].unique())
    colors = member_colors([str(k) for k in folds])
    for i, k in enumerate(folds):
        own = dealt[dealt["fold"] == k]
        shift = (i - (len(folds) - 1) / 2) * 0.12
        share = 100.0 * own[list(TARGETS)].mean()
        axes.plot(
            np.arange(len(TARGETS)) + shift,
            share,
            "o",
            color=colors[str(k)],
            label=f"fold {k}: {len(own)} studies",
        )
    whole = 100.0 * dealt[list(TARGETS)].mean()
    half = np.full(len(TARGETS), 0.36)
    axes.hlines(whole, np.arange(len(TARGETS)) - half, np.arange(len(TARGETS)) + half, color="#888")
    axes.set_xticks(range(len(TARGETS)), TARGET_TICKS)
    axes.set(ylabel="studies with a fracture, %", ylim=(0, None))
    axes.grid(axis="y")
    axes.legend(ncols=2)
    return drawn(
        sheet,
        "Each dot is a fold, each line all folds. Dots should sit on the lines: a fold far from "
        "them scores differently for no reason of its model.",
    )


def problems(studies: pd.DataFrame) -> Figure:
    """What the reader found wrong with studies, by code."""
    counts = Counter(code for text in studies["problems"] for code in str(text).split())
    counts["reversed"] += int(studies["reversed"].sum())
    counts["irregular"] += int(studies["irregular"].sum())
    found = [(code, n) for code, n in counts.most_common(MOST_PROBLEMS) if n]
    syntax = studies["transfer_syntax"].value_counts()
    sheet = canvas(height_in=bars_height(len(found)))
    axes = sheet.subplots()
    if found:
        names, numbers = zip(*reversed(found), strict=True)
        bars = axes.barh(names, numbers, color=PLAIN_COLOR, height=0.6)
        axes.bar_label(bars, padding=3, fontsize=8)
        axes.set(xlabel="studies", ylim=(-0.6, len(found) - 0.4), xlim=(0, 1.1 * max(numbers)))
    else:
        axes.text(0.5, 0.5, "nothing", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
    return drawn(
        sheet,
        "What the reader had to mend or accept; cspine inspect FOLDER tells more of one study. "
        f"Masks: {int(studies['has_mask'].sum())} studies, fracture boxes: "
        f"{int(studies['has_boxes'].sum())}. Transfer syntaxes: "
        + ", ".join(f"{name} {n}" for name, n in syntax.items())
        + ".",
    )

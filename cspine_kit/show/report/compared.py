"""Figures of what was compared on demand: backbones in both stages, and boxes around fractures.

In: CSVs that `cspine backbones` and `cspine oof` have left. Out: `Figure`s. Example::

    table = pd.DataFrame({"member": ["boxed"], "iou": [0.5], "precision_30": [0.8]})
    figure = boxes(table.assign(precision_50=0.4, boxed_slices=20, sound_slices=90), {})
"""

from collections.abc import Mapping

import pandas as pd

from cspine_kit.show.report.figure import PLAIN_COLOR, Figure, bars_height, canvas, drawn
from cspine_kit.vision.compare import fracture_backbones
from cspine_kit.vision.compare.backbones import FIGURES, points, summary

BOXES = {"precision_30": "average precision, overlap 0.3", "precision_50": "overlap 0.5"}
"""Columns of `vision.detection.detection`, as the figure calls them."""


def backbones(table: pd.DataFrame) -> Figure:
    """Accuracy of vertebra networks against their training time (`vision.backbones.compare`)."""
    sheet = canvas(height_in=3.6)
    points(sheet.subplots(), summary(table), FIGURES["vertebra"])
    return drawn(
        sheet,
        "Right answers whether a slice shows a level, mean of seven levels, one point for each "
        "backbone; bars are the spread over folds where it was cross-validated. Grey lines are "
        "published figures on other data. Up and to the left is better.",
    )


def fracture_backbones_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """AUC of members with other backbones (`vision.fracture_backbones.compare`).

    Args:
        tables: by member.
    """
    sheet = canvas(height_in=3.6)
    panels = sheet.subplots(1, len(tables), squeeze=False)[0]
    for axes, (member, table) in zip(panels, tables.items(), strict=True):
        points(axes, fracture_backbones.summary(table), FIGURES["fracture"])
        axes.set_title(member)
    return drawn(
        sheet,
        "AUC of fractured levels by the fixed formula, before any stack, one point for each "
        "backbone in the place of the member's own; bars are the spread over folds. Up and to the "
        "left is better.",
    )


def boxes(table: pd.DataFrame, colors: Mapping[str, str]) -> Figure:
    """Average precision and overlap of boxes, a group of bars for each member.

    Args:
        table: of `vision.detection.detection`.
        colors: by member.
    """
    sheet = canvas(height_in=bars_height(3 * len(table)))
    axes = sheet.subplots()
    names = {**BOXES, "iou": "mean overlap of the best box"}
    ticks: list[tuple[int, str]] = []
    for row in table.to_dict("records"):
        color = colors.get(row["member"], PLAIN_COLOR)
        for column, told in names.items():
            at = -len(ticks)
            axes.barh(at, row[column], color=color, alpha=1.0 if column == "precision_30" else 0.6)
            axes.text(row[column] + 0.01, at, f"{row[column]:.2f}", va="center", fontsize=8)
            ticks.append((at, f"{row['member']}: {told}"))
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.set(xlim=(0.0, 1.05), xlabel="share")
    counted = int(table["boxed_slices"].max()), int(table["sound_slices"].max())
    return drawn(
        sheet,
        f"Boxes found out-of-fold on {counted[0]} boxed slices and {counted[1]} slices of studies "
        "without a fracture: average precision where a box counts from an overlap of 0.3 and 0.5 "
        "(area of both over that of either), and that overlap itself.",
    )

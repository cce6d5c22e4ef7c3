"""The picture of an ablation: a line for each row, what it changes in A and in the members' AUC.

In: tables of grids. Out: a `Figure` of the report. Example::

    row = {"row": "no flips", "grid": "augment", "gain": -0.01, "gain_low": -0.03}
    figure = gains(pd.DataFrame([row | {"gain_high": 0.01, "training_s": 60.0, "fault": ""}]))
"""

import pandas as pd

from cspine_kit.show.report.figure import (
    ALARM_COLOR,
    PLAIN_COLOR,
    SHIPS_COLOR,
    Figure,
    bars_height,
    canvas,
    draw_intervals,
    drawn,
)

A = ("gain_low", "gain", "gain_high")
AUC = ("members_auc_low", "members_auc_gain", "members_auc_high")
"""Columns of what is drawn: lower end, value, upper end."""


def gains(table: pd.DataFrame) -> Figure:
    """Gains of every row against the config as it is, with their paired 95 % intervals.

    Args:
        table: rows of `show.ablation.table`, without the config's own; `grid` names each one's.
    """
    rows = table[table["fault"].fillna("") == ""].iloc[::-1].reset_index(drop=True)
    several = rows["grid"].nunique() > 1
    names = [
        f"{row['grid']}: {row['row']}" if several else str(row["row"])
        for row in rows.to_dict("records")
    ]
    known = rows.reindex(columns=[*A, *AUC])  # an older table has no AUC
    sheet = canvas(height_in=bars_height(max(1, len(rows))))
    left, right = sheet.subplots(1, 2, sharey=True)
    labels = [f"{name}, {s:.0f} s" for name, s in zip(names, rows["training_s"], strict=True)]
    for axes, columns, better, told in (
        (left, A, -1.0, "A of what ships (left is better)"),
        (right, AUC, 1.0, "AUC of members (right is better)"),
    ):
        parts = list(known[list(columns)].itertuples(index=False, name=None))
        colors = [_color(better * low, better * high) for low, _, high in parts]
        draw_intervals(axes, parts, labels, colors, told)
    return drawn(
        sheet,
        "One change each, on the same studies and folds, minus the config as it is. An interval "
        "across the line says that on so many studies nobody can tell. What the members know the "
        "stack may not be able to use yet. Seconds: training of all networks of the row. Another "
        "seed alone moves A by as much as a small gain.",
    )


def _color(one: float, other: float) -> str:
    """Better (both ends above 0), worse, or nobody can tell."""
    if one > 0 and other > 0:
        return SHIPS_COLOR
    return ALARM_COLOR if one < 0 and other < 0 else PLAIN_COLOR

"""The picture of an ablation: a line for each row, left of the middle is better.

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
    drawn,
)


def gains(table: pd.DataFrame) -> Figure:
    """Gain of every row against the config as it is, with its paired 95 % interval.

    Args:
        table: rows of `show.ablation.table`, without the config's own; `grid` names each one's.
    """
    rows = table[table["fault"].fillna("") == ""].iloc[::-1].reset_index(drop=True)
    sheet = canvas(height_in=bars_height(max(1, len(rows))))
    axes = sheet.subplots()
    for i, row in enumerate(rows.to_dict("records")):
        better, worse = row["gain_high"] < 0, row["gain_low"] > 0
        color = SHIPS_COLOR if better else ALARM_COLOR if worse else PLAIN_COLOR
        axes.plot(
            [row["gain_low"], row["gain_high"]], [i, i], color=color, lw=3, solid_capstyle="butt"
        )
        axes.plot(row["gain"], i, "o", color=color, ms=7)
    several = rows["grid"].nunique() > 1
    names = [
        f"{row['grid']}: {row['row']}" if several else str(row["row"])
        for row in rows.to_dict("records")
    ]
    seconds = [f"{name}, {s:.0f} s" for name, s in zip(names, rows["training_s"], strict=True)]
    axes.set_yticks(range(len(rows)), seconds)
    axes.axvline(0.0, color="black", lw=0.8)
    axes.set(ylim=(-0.6, len(rows) - 0.4), xlabel="metric A minus that of the config as it is")
    axes.grid(axis="x")
    return drawn(
        sheet,
        "One change each, on the same studies and folds: left of the line is better. An interval "
        "across it says that on so many studies nobody can tell. Seconds: training of all "
        "networks of the row. Another seed alone moves A by as much as a small gain.",
    )

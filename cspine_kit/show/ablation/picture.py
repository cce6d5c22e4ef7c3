"""The picture of an ablation: a line for each row, left of the middle is better.

In: tables of grids. Out: a `Figure` of the report. Example::

    row = {"row": "no flips", "grid": "augment", "gain": -0.01, "gain_low": -0.03}
    figure = gains(pd.DataFrame([row | {"gain_high": 0.01, "training_s": 60.0, "fault": ""}]))
"""

from typing import Any

import pandas as pd

from cspine_kit.show.report.figure import (
    ALARM_COLOR,
    PLAIN_COLOR,
    SHIPS_COLOR,
    Figure,
    drawn,
    intervals,
)


def gains(table: pd.DataFrame) -> Figure:
    """Gain of every row against the config as it is, with its paired 95 % interval.

    Args:
        table: rows of `show.ablation.table`, without the config's own; `grid` names each one's.
    """
    rows = table[table["fault"].fillna("") == ""].iloc[::-1].reset_index(drop=True)
    several = rows["grid"].nunique() > 1
    names = [
        f"{row['grid']}: {row['row']}" if several else str(row["row"])
        for row in rows.to_dict("records")
    ]
    sheet = intervals(
        list(rows[["gain_low", "gain", "gain_high"]].itertuples(index=False, name=None)),
        [f"{name}, {s:.0f} s" for name, s in zip(names, rows["training_s"], strict=True)],
        [_color(row) for row in rows.to_dict("records")],
        "metric A minus that of the config as it is",
    )
    return drawn(
        sheet,
        "One change each, on the same studies and folds: left of the line is better. An interval "
        "across it says that on so many studies nobody can tell. Seconds: training of all "
        "networks of the row. Another seed alone moves A by as much as a small gain.",
    )


def _color(row: dict[str, Any]) -> str:
    """Better, worse, or nobody can tell."""
    if row["gain_high"] < 0:
        return SHIPS_COLOR
    return ALARM_COLOR if row["gain_low"] > 0 else PLAIN_COLOR

"""The studies with the largest loss, one by one: what was said, and the slices that drove it.

In: a row of `stack.worst`, out-of-fold slices, levels and a `Scan`. Out: a `Figure` each. Example::

    own = oof_slices[oof_slices["study_uid"] == uid]
    [first, *_] = driving(own, "C2")
    first.slice_idx, first.prob
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.numbers import sigmoid
from cspine_kit.show.report.figure import (
    ALARM_COLOR,
    Figure,
    canvas,
    drawn,
    level_bands,
    short,
)
from cspine_kit.show.report.pictures import tile
from cspine_kit.show.report.scan import Scan
from cspine_kit.show.views import AXIAL

SLICES = 3
APART_MM = 5.0
"""Slices nearer to each other than this show the same thing."""

SAID = 0.2
"""Levels said to be fractured with at least this probability are named."""


class Driving(NamedTuple):
    """A slice that drove a level's score: who says so, where, and how sure (fracture times
    visibility)."""

    member: str
    slice_idx: int
    at_mm: float
    prob: float


def driving(rows: pd.DataFrame, level: str) -> list[Driving]:
    """The slices that speak loudest for a fracture of a level, loudest first.

    Args:
        rows: out-of-fold slices of one study, any members.
        level: of C1..C7.
    """
    fracture, visible = (
        sigmoid(rows[f"{kind}_{level}"].to_numpy(np.float64)) for kind in ("fracture", "vertebra")
    )
    found: list[Driving] = []
    for i in np.argsort(-fracture * visible, kind="stable"):
        row = rows.iloc[i]
        place = float(row["at_mm"])
        if all(abs(place - other.at_mm) >= APART_MM for other in found):
            prob = float(fracture[i] * visible[i])
            found.append(Driving(str(row["member"]), int(row["slice_idx"]), place, prob))
        if len(found) == SLICES:
            break
    return found


def told(row: Any) -> str:
    """One study's truth and answer in words."""
    broken = [level for level in LEVELS if row[level] == 1.0]
    named = [
        t for t in TARGETS if t in (*broken, OVERALL, row["level"]) or row[f"said_{t}"] >= SAID
    ]
    said = ", ".join(f"{short(t)} {row[f'said_{t}']:.2f}" for t in named)
    return f"loss {row['loss']:.2f}; fractured: {', '.join(broken) or 'nothing'}; said: {said}"


def worst_study(
    row: Any,
    rows: pd.DataFrame,
    spans: pd.DataFrame,
    scan: Scan | None,
    colors: Mapping[str, str],
) -> Figure:
    """One study: each member's fracture curve of the level that cost most, and the slices there.

    Args:
        row: of `stack.worst`.
        rows: its out-of-fold slices.
        spans: its decoded levels.
        scan: its volume, None where it cannot be read.
        colors: by member.
    """
    level = row["level"]
    sheet = canvas(height_in=1.75)
    grid = sheet.add_gridspec(1, 2 + SLICES, width_ratios=[3.4, 0.1, *[1.2] * SLICES])
    axes = sheet.add_subplot(grid[0, 0])
    for member, own in rows.groupby("member"):
        ordered = own.sort_values("at_mm")
        probs = sigmoid(ordered[f"fracture_{level}"].to_numpy(np.float64))
        axes.plot(ordered["at_mm"], probs, color=colors[str(member)], lw=1.3, label=member)
    level_bands(axes, spans, [each for each in LEVELS if row[each] == 1.0])
    axes.set(ylim=(0, 1), ylabel=f"fracture of {level}")
    axes.set_xlim(rows["at_mm"].max(), rows["at_mm"].min())
    axes.legend(loc="upper right", fontsize=7)
    for i, found in enumerate(driving(rows, level)):
        axes.plot(found.at_mm, 0.03, "^", color=ALARM_COLOR, ms=6)
        if scan is not None:
            panel = sheet.add_subplot(grid[0, 2 + i])
            nearest = int(np.abs(scan.z_mm - found.at_mm).argmin())
            panel.imshow(tile(scan, AXIAL, nearest, masked=False))
            panel.set_axis_off()
            panel.set_title(
                f"slice {found.slice_idx}: {found.prob:.2f}", fontsize=8, fontweight="normal"
            )
    return drawn(sheet, f"{row['study_uid']}: {told(row)}", pixels=True)

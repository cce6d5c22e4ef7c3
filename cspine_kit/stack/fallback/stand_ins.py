"""Members that did not run: whose slices speak for them, and which are missed least.

In: the out-of-fold slice table. Out: `StandIns`, saved as JSON. Example::

    one, other, *_ = config.members
    stand_ins = fit_stand_ins(oof_slices)
    present = {one: oof_slices[oof_slices["member"] == one]}
    rows = stand_ins.rows(other, present)             # of `other`, as far as `one` can tell
    ranked = rank_members(stand_ins, oof_slices, lambda table: float(table["fracture_C2"].std()))
    ranked.order, ranked.worth

The stack's heads read statistics of every member, so a member that is left out (no time, no memory,
NaN) must not leave holes: another member's logits, mapped by least squares on out-of-fold slices,
take its place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.errors import TableError
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS

STAND_INS = "stand_ins.json"
"""Its file in the stack's folder."""

LOGIT_COLUMNS: dict[str, tuple[str, ...]] = {
    "vertebra": VERTEBRA_COLUMNS,
    "fracture": FRACTURE_COLUMNS,
}
KEY = ["study_uid", "slice_idx", "model_fold"]
FEWEST_ROWS = 50
"""Fewer slices that both members saw say too little: logits are then taken as they are."""


@dataclass(frozen=True)
class Line:
    """logit of the missing member = start + slope * logit of the other; r is their correlation."""

    slope: float = 1.0
    start: float = 0.0
    r: float = 0.0


@dataclass(frozen=True)
class StandIns:
    """Lines by missing member, standing member and head; `order`: members, least missed first.

    `worth` is how much the out-of-fold loss rises when that member's stand-in takes its place.
    """

    lines: dict[str, dict[str, dict[str, Line]]]
    order: tuple[str, ...] = ()
    worth: dict[str, float] | None = None

    def rows(self, missing: str, present: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """Slice rows of a member that did not run.

        Args:
            missing: its name.
            present: rows of the members that ran, at least one; the one whose fractures correlate
                best with the missing member's stands in.

        Raises:
            TableError: no member ran.
        """
        if not present:
            raise TableError(f"no member ran that could stand in for {missing!r}")
        known = self.lines.get(missing, {})
        plain = {head: Line() for head in LOGIT_COLUMNS}
        best = max(present, key=lambda name: (known.get(name, plain)["fracture"].r, name))
        rows = present[best].copy()
        for head, columns in LOGIT_COLUMNS.items():
            line = known.get(best, plain)[head]
            rows[list(columns)] = line.start + line.slope * rows[list(columns)]
        return rows.assign(member=missing) if "member" in rows else rows

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lines = {
            missing: {
                other: {head: [line.slope, line.start, line.r] for head, line in heads.items()}
                for other, heads in others.items()
            }
            for missing, others in self.lines.items()
        }
        return {"lines": lines, "order": list(self.order), "worth": self.worth or {}}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "StandIns":
        """What `to_json` gave."""
        lines = {
            missing: {
                other: {head: Line(*values) for head, values in heads.items()}
                for other, heads in others.items()
            }
            for missing, others in raw["lines"].items()
        }
        return cls(lines, tuple(raw["order"]), dict(raw["worth"]))


def _line(x: pd.DataFrame, y: pd.DataFrame, columns: tuple[str, ...]) -> Line:
    """Least squares over all levels of a head; infinite or constant logits give the plain line."""
    a, b = x[list(columns)].to_numpy().ravel(), y[list(columns)].to_numpy().ravel()
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    if len(a) < FEWEST_ROWS or a.std() == 0 or b.std() == 0:
        return Line()
    r = float(np.corrcoef(a, b)[0, 1])
    slope = r * float(b.std() / a.std())
    return Line(slope, float(b.mean() - slope * a.mean()), r)


def fit_stand_ins(slices: pd.DataFrame) -> StandIns:
    """Lines between every two members, from the out-of-fold slices that both saw."""
    members = {str(name): rows.set_index(KEY) for name, rows in slices.groupby("member")}
    lines: dict[str, dict[str, dict[str, Line]]] = {}
    for missing, target in members.items():
        lines[missing] = {}
        for other, rows in members.items():
            if other == missing:
                continue
            both = target.index.intersection(rows.index)
            x, y = rows.loc[both], target.loc[both]
            lines[missing][other] = {
                h: _line(x, y, columns) for h, columns in LOGIT_COLUMNS.items()
            }
    return StandIns(lines)


def without(stand_ins: StandIns, slices: pd.DataFrame, dropped: tuple[str, ...]) -> pd.DataFrame:
    """The slice table as it is when some members did not run."""
    kept = slices[~slices["member"].isin(dropped)]
    present = {str(name): rows for name, rows in kept.groupby("member")}
    return pd.concat([kept, *(stand_ins.rows(name, present) for name in dropped)])


def rank_members(
    stand_ins: StandIns, slices: pd.DataFrame, loss: Callable[[pd.DataFrame], float]
) -> StandIns:
    """Order the members by marginal worth: the one whose loss is smallest goes first, and so on.

    Args:
        stand_ins: fitted lines.
        slices: the out-of-fold slice table.
        loss: out-of-fold loss of what ships, from a slice table.

    Returns:
        The stand-ins with `order` (the last one never goes) and `worth` (each member alone).
    """
    full = loss(slices)
    members = sorted(stand_ins.lines)
    worth = {}
    dropped: tuple[str, ...] = ()
    while len(dropped) < len(members) - 1:
        losses = {
            name: loss(without(stand_ins, slices, (*dropped, name)))
            for name in members
            if name not in dropped
        }
        if not dropped:
            worth = {name: value - full for name, value in losses.items()}
        dropped = (*dropped, min(losses, key=lambda name: (losses[name], name)))
    rest = tuple(name for name in members if name not in dropped)
    return StandIns(stand_ins.lines, (*dropped, *rest), worth)

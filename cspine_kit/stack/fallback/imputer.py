"""Slice rows of members that did not run, from those of a member that did.

In: the out-of-fold slice table. Out: an `Imputer`, saved as JSON. Example::

    imputer = fit_imputer(oof_slices)
    a, b = list(config.members)[:2]
    rows_of_a = oof_slices[oof_slices["member"] == a]
    rows = imputer.rows(b, {a: rows_of_a})               # b's rows as far as a's can tell
    lying = lambda study_uid, model_fold: Lying(np.arange(60), 100.0 - np.arange(60), levels)
    table, counts = imputer.complete(oof_slices, lying)  # no member lacks a study any more

The stack's heads read statistics of every member, so a member that is left out (no time, no memory,
NaN) must not leave holes: another member's logits, mapped by least squares on out-of-fold slices,
take its place. An axial member that only standing planes can replace gets axial rows all the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import AXIAL
from cspine_kit.core.errors import TableError
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.stack.fallback.lying import Lying, lay_down

FILE = "imputer.json"
"""Its file in the stack's folder."""

LOGIT_COLUMNS: dict[str, tuple[str, ...]] = {
    "vertebra": VERTEBRA_COLUMNS,
    "fracture": FRACTURE_COLUMNS,
}
KEY = ["study_uid", "plane", "position", "model_fold"]
FEWEST_ROWS = 50
"""Fewer slices that both members saw say too little: logits are then taken as they are."""


class Line(NamedTuple):
    """logit of the missing member = start + slope * logit of the other; r is their correlation."""

    slope: float = 1.0
    start: float = 0.0
    r: float = 0.0


@dataclass(frozen=True)
class Imputer:
    """Lines by missing member, present member and head; `order`: members, least missed first."""

    lines: dict[str, dict[str, dict[str, Line]]]
    order: tuple[str, ...] = ()

    def rows(
        self, missing: str, present: Mapping[str, pd.DataFrame], lying: Lying | None = None
    ) -> pd.DataFrame:
        """Slice rows of a member that did not run.

        Args:
            missing: its name.
            present: rows of the members that ran, at least one; the one whose fractures correlate
                best with the missing member's takes its place.
            lying: where the missing member's rows lie, if it is axial; axial members take its place
                before others, whose rows are laid down.

        Raises:
            TableError: no member ran.
        """
        if not present:
            raise TableError(f"no member ran from which {missing!r} could be imputed")
        known = self.lines.get(missing, {})
        plain = {head: Line() for head in LOGIT_COLUMNS}
        axial = {name: bool((own["plane"] == AXIAL).all()) for name, own in present.items()}

        def fitness(name: str) -> tuple[bool, float, str]:
            return lying is not None and axial[name], known.get(name, plain)["fracture"].r, name

        best = max(present, key=fitness)
        rows = present[best].copy()
        if lying is not None and not axial[best]:
            rows = lay_down(rows, lying)
        for head, columns in LOGIT_COLUMNS.items():
            line = known.get(best, plain)[head]
            rows[list(columns)] = line.start + line.slope * rows[list(columns)]
        return rows.assign(member=missing) if "member" in rows else rows

    def complete(
        self, slices: pd.DataFrame, lying: Callable[[str, int], Lying]
    ) -> tuple[pd.DataFrame, dict[str, int]]:
        """The slice table with rows of every member for every study and fold model in it.

        Args:
            slices: rows of contract `oof_slices`.
            lying: where the axial slices of a study lie, and the levels of this fold model in it.

        Returns:
            The table, and the number of imputed studies by member (only where there are some).
        """
        unit = ["study_uid", "model_fold"]
        units = slices[unit].drop_duplicates()
        parts, counts = [slices], {}
        for name in sorted(slices["member"].unique()):
            seen = slices.loc[slices["member"] == name, unit].drop_duplicates()
            joined = units.merge(seen, on=unit, how="left", indicator=True)
            lost = joined.loc[joined["_merge"] == "left_only", unit]
            lies = bool((slices.loc[slices["member"] == name, "plane"] == AXIAL).all())
            for (uid, fold), rows in slices.merge(lost, on=unit).groupby(unit):
                present = {str(m): own for m, own in rows.groupby("member")}
                where = lying(str(uid), int(fold)) if lies else None
                parts.append(self.rows(str(name), present, where))
            if len(lost):
                counts[str(name)] = len(lost)
        return pd.concat(parts, ignore_index=True) if counts else slices, counts

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Imputer":
        """What JSON made of `vars`."""
        lines = {
            missing: {
                other: {head: Line(*values) for head, values in heads.items()}
                for other, heads in others.items()
            }
            for missing, others in raw["lines"].items()
        }
        return cls(lines, tuple(raw["order"]))


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


def fit_imputer(slices: pd.DataFrame, order: tuple[str, ...] = ()) -> Imputer:
    """Lines between every two members, from the out-of-fold slices that both saw.

    Args:
        slices: rows of contract `oof_slices`.
        order: members, the one least missed first.
    """
    members = {str(name): rows.set_index(KEY) for name, rows in slices.groupby("member")}
    lines: dict[str, dict[str, dict[str, Line]]] = {name: {} for name in members}
    for missing, other in permutations(members, 2):
        both = members[missing].index.intersection(members[other].index)
        x, y = members[other].loc[both], members[missing].loc[both]
        lines[missing][other] = {h: _line(x, y, own) for h, own in LOGIT_COLUMNS.items()}
    return Imputer(lines, order)

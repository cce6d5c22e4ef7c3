"""What each feature adds to the log-odds of a level: exact parts of the stack's answer.

In: a `Stack` and a feature frame. Out: `Contributions`, which sum to the level head's log-odds.
Example::

    found = level_contributions(stack, features)
    found.importances().nlargest(5, "line")
    found.of(uid, "C2").sort_values("part")

The line's parts are its own terms; those of the trees are SHAP values, which LightGBM computes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.numbers import FloatArray
from cspine_kit.stack.model.design import GIVEN, FeatureTable, level_design, line_columns
from cspine_kit.stack.model.linear import EXTREME
from cspine_kit.stack.model.stack import SLICES_ONLY, STACK, Stack

START, LEVEL = "start", "level"
"""What all studies share, and what the trees make of the level itself."""


@dataclass(frozen=True)
class Contributions:
    """Parts of the log-odds of n units (study, fold model) and seven levels.

    `start`: (n, 7), shared by all studies. `line`, `trees`: (n, 7, features).
    """

    study_uid: Any
    features: tuple[str, ...]
    start: FloatArray
    line: FloatArray
    trees: FloatArray

    def importances(self) -> pd.DataFrame:
        """feature, line, trees: mean absolute parts over units and levels."""
        means = [np.abs(part).mean(axis=(0, 1)) for part in (self.line, self.trees)]
        return pd.DataFrame({"feature": self.features, "line": means[0], "trees": means[1]})

    def of(self, study_uid: str, level: str) -> pd.DataFrame:
        """study_uid, level, feature, part of one level, the start among them; they sum to its
        log-odds (the mean over its units)."""
        rows, j = np.flatnonzero(self.study_uid == study_uid), LEVELS.index(level)
        parts = (self.line + self.trees)[rows, j].mean(axis=0)
        names, start = [START, *self.features], float(self.start[rows, j].mean())
        table = pd.DataFrame({"feature": names, "part": [start, *parts]})
        table.insert(0, "study_uid", study_uid)
        table.insert(1, "level", level)
        return table


def level_contributions(stack: Stack, features: pd.DataFrame) -> Contributions:
    """Parts of the level head's log-odds, of the heads that ship (else the stack's).

    Args:
        stack: fitted.
        features: rows of `aggregate` with every column that the heads read.

    Raises:
        TableError: a feature column that is missing or not finite.
    """
    name = next(n for n in (stack.ships, STACK, SLICES_ONLY) if n in stack.heads)
    heads = stack.heads[name]
    table = FeatureTable.of(features, heads.columns)
    design, head = level_design(table), heads.level
    ridge, n = head.ridge, table.n
    terms = np.clip((design.line - ridge.mean) / ridge.scale, -EXTREME, EXTREME) * ridge.slope
    names = (*heads.columns, LEVEL)
    line, trees = np.zeros((2, n * N_LEVELS, len(names)))
    own = line_columns(heads.columns)
    line[:, [names.index(c) for c in own]] = terms[:, : len(own)]
    # External log-odds stand once for each level behind the rest; a row's own copy is not zero.
    for i in range(len(own), terms.shape[1]):
        line[:, names.index(GIVEN[(i - len(own)) % len(GIVEN)])] += terms[:, i]
    start = ridge.intercept[design.category]
    if head.boosters:
        matrix = design.matrix
        shap = [b.predict(matrix, pred_contrib=True, num_threads=1) for b in head.boosters]
        mean = np.mean(np.asarray(shap), axis=0)
        trees, start = mean[:, :-1], start + mean[:, -1]
    shape = (n, N_LEVELS, len(names))
    start = start.reshape(n, N_LEVELS)
    return Contributions(table.study_uid, names, start, line.reshape(shape), trees.reshape(shape))

"""The stack: a level head and an overall head, fitted on all out-of-fold rows.

In: features (`aggregate`, `external`) of test studies. Out: probabilities of the eight targets.
Example::

    stack = Stack.load(paths.stack / "models")
    table = stack.predict_all(test_features)             # contract `predictions`, every model
    table[table["model"] == stack.ships]

The statistics of every fold model go through the same heads; the log-odds of the chains are
averaged last. Fitting: `stack.model.fit`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.errors import ArtifactError, TableError
from cspine_kit.core.numbers import FloatArray, sigmoid
from cspine_kit.core.runs import publish, read_json, write_json
from cspine_kit.stack.features.names import EXTERNAL, SITE, signal_of
from cspine_kit.stack.features.units import SHOWN
from cspine_kit.stack.model.design import FeatureTable, level_design, overall_design
from cspine_kit.stack.model.head import Head
from cspine_kit.stack.scores.baselines import (
    MEAN_OF_MEMBERS,
    all_predictions,
    formulas,
    wide_predictions,
)

STACK = "stack"
SLICES_ONLY = "stack_slices_only"
"""The same on slice statistics alone: no headers, no external members, no raw columns."""

SHIPPED = "shipped"
"""What the kernel answers: the stack, or the plain mean where that is better."""


@dataclass(frozen=True)
class Heads:
    """Both heads and the feature columns they read."""

    columns: tuple[str, ...]
    level: Head
    overall: Head

    def predict(self, table: FeatureTable) -> FloatArray:
        """Probabilities (n units, 8): the levels first, the overall from them."""
        levels = self.level.odds(level_design(table)).reshape(-1, N_LEVELS)
        overall = self.overall.odds(overall_design(table, sigmoid(levels)))
        return sigmoid(np.column_stack([levels, overall]))

    def save(self, folder: Path, stem: str) -> dict[str, Any]:
        """Write the boosters into `folder`; returns the rest as plain values."""
        heads = {"level": self.level, "overall": self.overall}
        return vars(self) | {n: head.save(folder, f"{stem}_{n}") for n, head in heads.items()}

    @classmethod
    def load(cls, folder: Path, value: dict[str, Any]) -> "Heads":
        """Inverse of `save`."""
        level, overall = (Head.load(folder, value[name]) for name in ("level", "overall"))
        return cls(tuple(value["columns"]), level, overall)


def slice_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Feature columns that describe slices."""
    kinds = (SITE, EXTERNAL, "column")
    return tuple(c for c in columns if signal_of(c) not in kinds)


@dataclass(frozen=True)
class Stack:
    """Fitted heads by model name, and everything between them and an answer.

    `members`: whose features the heads read. `folds`: fold models that made them. `clip`:
    probabilities end inside [clip, 1 - clip]. `ships`: the model that the kernel follows. `points`:
    operating points of what ships, threshold by target and point. `notes`: figures for the report.
    """

    heads: dict[str, Heads]
    members: tuple[str, ...]
    folds: tuple[int, ...]
    clip: float
    ships: str = STACK
    points: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def predict(self, features: pd.DataFrame, model: str = SHIPPED) -> pd.DataFrame:
        """The eight targets by study_uid (index, sorted) of one model of `predict_all`."""
        return wide_predictions(self.predict_all(features), model)

    def predict_all(self, features: pd.DataFrame) -> pd.DataFrame:
        """Rows of contract `predictions` of every fitted model, fixed formula, and of what ships.

        Raises:
            TableError: a training study (the heads have learned from it: its predictions are in the
                table `predictions`), a feature column that is missing or not finite, a study
                without its seven levels, or an unknown model_fold.
        """
        known = features.loc[features["fold"] >= 0, "study_uid"].unique()[:SHOWN].tolist()
        if known:
            raise TableError(
                f"features: the stack was fitted on all training studies, {known} among them; "
                "their out-of-fold predictions are in table predictions"
            )
        unknown = sorted(set(features["model_fold"].tolist()) - set(self.folds))
        if unknown:
            raise TableError(
                f"features: the stack knows the fold models {list(self.folds)}, not {unknown}"
            )
        fitted = {}
        for name, heads in self.heads.items():
            table = FeatureTable.of(features, heads.columns)
            fitted[name] = np.clip(heads.predict(table), self.clip, 1.0 - self.clip)
        units = features.drop_duplicates(["study_uid", "model_fold"])
        study_uid = units.sort_values(["study_uid", "model_fold"])["study_uid"].to_numpy(object)
        fold = pd.Series(-1, index=np.unique(study_uid))
        found = all_predictions(study_uid, {**formulas(features), **fitted}, fold)
        shipped = found[found["model"] == self.ships].assign(model=SHIPPED)
        return pd.concat([found, shipped], ignore_index=True)

    def save(self, folder: Path) -> None:
        """Write stack.json and one LightGBM text file per booster, atomically; no pickle."""
        with publish(folder) as temporary:
            temporary.mkdir()
            heads = {name: h.save(temporary, name) for name, h in self.heads.items()}
            write_json(temporary / "stack.json", vars(self) | {"heads": heads})

    @classmethod
    def load(cls, folder: Path, faults: dict[str, str] | None = None) -> "Stack":
        """Read what `save` wrote.

        Args:
            folder: holds stack.json and the boosters.
            faults: gets heads whose files cannot be read, by "stack <name>", instead of an error;
                where they are those that ship, the heads on slices alone do, else the plain mean.

        Raises:
            ArtifactError: no stack.json in the folder.
        """
        if not (folder / "stack.json").exists():
            raise ArtifactError(f"no stack.json in {folder}; run make stack first")
        raw = read_json(folder / "stack.json")
        heads: dict[str, Heads] = {}
        for name, value in raw["heads"].items():
            try:
                heads[name] = Heads.load(folder, value)
            except Exception as error:
                if faults is None:
                    raise
                faults[f"stack {name}"] = f"{type(error).__name__}: {error}"
        if raw["ships"] in raw["heads"] and raw["ships"] not in heads:
            raw["ships"] = SLICES_ONLY if SLICES_ONLY in heads else MEAN_OF_MEMBERS
        raw["heads"] = heads
        raw |= {name: tuple(raw[name]) for name in ("members", "folds")}
        return cls(**raw)

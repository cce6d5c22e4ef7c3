"""What is said of one scan, for people: eight probabilities, or why there are none.

In: what the networks said. Out: a `Judgment` of plain tables. Example::

    from cspine_kit.infer.predictor import Predictor

    judgment = Predictor(bundle).predict(folder)
    judgment.status                              # "ok", or "cannot_judge" and judgment.reason
    judgment.probabilities[["target", "prob"]]
    judgment.levels[["level", "first_slice", "last_slice", "confidence"]]
    judgment.slices.nlargest(3, "fracture_C2")["slice"]

A submission needs a number for every study, so the kernel falls back to headers and priors. A
person must not be given such a number: here the answer is then that the scan cannot be judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.numbers import FloatArray, sigmoid
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.reader.problems import explain
from cspine_kit.data.reader.scans.geometry import Geometry
from cspine_kit.data.volumes.volume import Volumes
from cspine_kit.stack.scores.operating import NEVER

Status = Literal["ok", "cannot_judge"]
OK: Status = "ok"

SCHEMA = "cspine_kit prediction 1"
"""Raised when a field of `Judgment.as_dict` changes its meaning or goes."""

USE = "Research use only. Not a medical device; not for diagnosis."


@dataclass(frozen=True)
class Scan:
    """One scan as the kernel reads it."""

    volumes: Volumes
    geometry: Geometry
    read_s: float = 0.0

    def slice_at(self, z_mm: float) -> int:
        """The native slice nearest to a position; 0 is the most cranial one."""
        return int(np.abs(self.geometry.z_mm - z_mm).argmin())


@dataclass(frozen=True)
class Judgment:
    """One scan judged.

    Attributes:
        study: its name, as the caller gave it; no tag of the files.
        status, reason: "ok", or "cannot_judge" and why.
        bundle: SHA-256 of the bundle's manifest.
        notes: what must stand beside every output; empty for nothing.
        scan: what was read; None where nothing could be.
        probabilities: target, prob, in_scan, and the bundle's thresholds, one column for each
            operating point.
        levels: the folds' levels averaged, seven rows with slices and patient coordinates.
        slices: per member and slice, probabilities averaged over folds.
        rows, fold_levels: the same before averaging (`Ensemble.tables`).
        faults: stages that failed and were stood in for, with the cause.
        seconds: by stage.
    """

    study: str
    status: Status
    reason: str
    bundle: str
    notes: tuple[str, ...] = ()
    scan: Scan | None = None
    probabilities: pd.DataFrame = field(default_factory=pd.DataFrame)
    levels: pd.DataFrame = field(default_factory=pd.DataFrame)
    slices: pd.DataFrame = field(default_factory=pd.DataFrame)
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    fold_levels: pd.DataFrame = field(default_factory=pd.DataFrame)
    faults: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True where there are probabilities."""
        return self.status == OK

    @property
    def problems(self) -> tuple[str, ...]:
        """What was wrong with the files, as codes of `PROBLEMS`."""
        return self.scan.geometry.problems if self.scan else ()

    @property
    def absent(self) -> list[str]:
        """Levels that no slice shows."""
        if self.levels.empty:
            return []
        return [str(level) for level in self.levels.loc[~self.levels["in_scan"], "level"]]

    def evidence(self, level: str) -> pd.Series:
        """By slice: fracture times visibility of a level, the mean over members."""
        own = self.slices
        score = own[f"fracture_{level}"] * own[f"visible_{level}"]
        return score.groupby(own["slice"]).mean()

    def driving(self, level: str, count: int = 3) -> list[int]:
        """The slices whose evidence for a level is strongest, the strongest first."""
        return [int(k) for k in self.evidence(level).nlargest(count).index]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, of schema `SCHEMA`."""
        return {
            "schema": SCHEMA,
            "use": USE,
            "study": self.study,
            "status": self.status,
            "reason": self.reason,
            "notes": list(self.notes),
            "bundle_sha256": self.bundle,
            "probabilities": _probabilities_dict(self.probabilities) if self.ok else None,
            "operating_points": _points_told(self.probabilities) if self.ok else None,
            "levels": _records(self.levels) if len(self.levels) else None,
            "driving_slices": {level: self.driving(level) for level in LEVELS} if self.ok else None,
            "slices": len(self.scan.geometry.z_mm) if self.scan else None,
            "spacing_mm": [float(v) for v in self.scan.geometry.spacing_mm] if self.scan else None,
            "problems": {line.split(": ", 1)[0]: line for line in explain(self.problems)},
            "faults": dict(self.faults),
            "seconds": {stage: round(s, 3) for stage, s in self.seconds.items()},
        }


FIXED = ("target", "prob", "in_scan")


def _probabilities_dict(table: pd.DataFrame) -> dict[str, Any]:
    names = [name for name in table.columns if name not in FIXED]
    found = {}
    for row in table.to_dict("records"):
        points = {name: float(row[name]) for name in names if row[name] < NEVER}
        found[str(row["target"])] = {
            "prob": round(float(row["prob"]), 6),
            "in_scan": bool(row["in_scan"]),
            "called": {name: bool(row["prob"] >= value) for name, value in points.items()},
            "thresholds": {name: round(value, 6) for name, value in points.items()},
        }
    return found


def point_told(name: str) -> str:
    """What an operating point means, in words."""
    if name.startswith("sensitivity_"):
        share = float(name.removeprefix("sensitivity_"))
        return (
            f"at or above this threshold {share:.0%} of the fractures of the bundle's own "
            "training studies are called, out-of-fold"
        )
    return "the threshold of the best F1 on the bundle's own training studies, out-of-fold"


def _points_told(table: pd.DataFrame) -> dict[str, str]:
    told = {name: point_told(name) for name in table.columns if name not in FIXED}
    return told | {"absent": "the bundle saw no fracture of this level to choose a threshold on"}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_dict("records")
    return [
        {
            str(name): round(value, 4) if isinstance(value, float) else value
            for name, value in row.items()
        }
        for row in rows
    ]


def probability_table(
    prob: pd.Series, points: Mapping[str, Mapping[str, float]], absent: list[str]
) -> pd.DataFrame:
    """The eight targets with the thresholds of their operating points.

    Args:
        prob: by target.
        points: threshold by target and point, as a stack holds them.
        absent: levels that no slice shows.
    """
    rows = [
        {"target": t, "prob": float(prob[t]), "in_scan": t not in absent, **points.get(t, {})}
        for t in TARGETS
    ]
    rows[TARGETS.index(OVERALL)]["in_scan"] = len(absent) < len(LEVELS)
    return pd.DataFrame(rows)


def level_table(fold_levels: pd.DataFrame, scan: Scan) -> pd.DataFrame:
    """The folds' levels averaged, over those that agree with most of them whether the scan holds
    the level: seven rows.

    `center_*_mm` are patient coordinates (DICOM's x, y, z); the columns `z_top_mm`, `z_bottom_mm`,
    `z_mm`, `y_mm`, `x_mm` are in the frame of `Volume`.
    """
    numbers = ["z_top_mm", "z_bottom_mm", "center_z_mm", "center_y_mm", "center_x_mm", "confidence"]
    shown = fold_levels.groupby("level")["present"].mean() >= 0.5
    agree = fold_levels[fold_levels["present"] == fold_levels["level"].map(shown)]
    mean = agree.groupby("level")[numbers].mean().loc[list(LEVELS)]
    rows = []
    for level, row in mean.iterrows():
        z, y, x = (float(row[f"center_{axis}_mm"]) for axis in "zyx")
        at = scan.geometry.patient_mm(z, y, x)
        rows.append(
            {
                "level": str(level),
                "in_scan": bool(shown[level]),
                "confidence": float(row["confidence"]),
                "first_slice": scan.slice_at(float(row["z_top_mm"])),
                "last_slice": scan.slice_at(float(row["z_bottom_mm"])),
                **{f"center_{a}_mm": float(v) for a, v in zip("xyz", at, strict=True)},
                **{"z_top_mm": float(row["z_top_mm"]), "z_bottom_mm": float(row["z_bottom_mm"])},
                **{"z_mm": z, "y_mm": y, "x_mm": x},
            }
        )
    return pd.DataFrame(rows)


def slice_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What members say of axial slices, averaged over folds: member, slice, z_mm, visible_C1..C7,
    fracture_C1..C7 (probabilities); sorted."""
    axial = rows[rows["slice_idx"].notna()]
    said: dict[str, FloatArray] = {}
    for kind, columns in (("visible", VERTEBRA_COLUMNS), ("fracture", FRACTURE_COLUMNS)):
        probs = sigmoid(axial[list(columns)].to_numpy(np.float64))
        said |= {f"{kind}_{level}": probs[:, j] for j, level in enumerate(LEVELS)}
    place = {
        "member": axial["member"].to_numpy(),
        "slice": axial["slice_idx"].to_numpy().astype(np.int64),
        "z_mm": axial["at_mm"].to_numpy(),
    }
    table = pd.DataFrame({**place, **said})
    return table.groupby(["member", "slice"], as_index=False).mean()


def named(folder: Path) -> str:
    """What a study is called after its folder or archive."""
    return folder.resolve().name

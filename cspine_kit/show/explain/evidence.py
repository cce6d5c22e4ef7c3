"""Fracture evidence in the volume: what networks say of a slice, where on it they looked.

In: a `Predictor` and its `Judgment`. Out: an `Evidence`: heat by level, on the fine volume's grid.
Example::

    from cspine_kit.infer.predictor import Predictor

    predictor = Predictor(bundle)
    found = gather_evidence(predictor, predictor.predict(folder))
    found.suspects, found.heat.shape == found.fine.voxels.shape
    found.boxes(found.judgment.driving(found.suspects[0])[0])      # y0, x0, y1, x1 in its pixels

The heat of a voxel, 0 to 1, is the mean over networks of Grad-CAM times the slice's evidence
(fracture times visibility), as a share of the level's hottest, so that slices that speak less stay
colder. Networks that see different planes are averaged geometrically: each tells of two directions
of three, and a place is hot where all of them looked.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.data.volumes.patch import axial_box
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.infer.judgment import FIXED, Judgment
from cspine_kit.infer.predictor import Predictor
from cspine_kit.stack.scores.operating import BEST_F1
from cspine_kit.vision.explain import Heat, study_heat

SLICES = 7
"""Slices of a suspected level that heat is made for, those with the strongest evidence."""

HOT = 0.5
"""Share of the largest heat from which on a place counts as hot."""


@dataclass(frozen=True)
class Evidence:
    """Where suspected fractures of one scan may lie.

    Attributes:
        judgment: of the scan, "ok".
        suspects: levels at or above the threshold of the best F1; the likeliest one where none is.
        called: False where no level reached its threshold.
        heats: of every network, level and slice.
        heat: float32 (z, y, x) on the fine volume's grid.
    """

    judgment: Judgment
    suspects: list[str]
    called: bool
    heats: list[Heat]
    heat: NDArray[np.float32]

    @property
    def fine(self) -> Volume:
        """The volume that the heat lies on."""
        if self.judgment.scan is None:
            raise ValueError(f"{self.judgment.study} was not read")
        return self.judgment.scan.volumes.fine

    @property
    def top(self) -> float:
        """The largest heat; 0 where there is none."""
        return float(self.heat.max(initial=0.0))

    def plane(self, slice_idx: int) -> NDArray[np.float32]:
        """Heat of one native slice, (y, x)."""
        k = int(np.clip(slice_idx - self.fine.first_slice, 0, len(self.heat) - 1))
        own: NDArray[np.float32] = self.heat[k]
        return own

    def boxes(self, slice_idx: int) -> list[tuple[int, int, int, int]]:
        """y0, x0, y1, x1 (pixels of the fine volume, ends excluded) around the hot places of a
        slice."""
        hot = (self.plane(slice_idx) >= max(HOT * self.top, 1e-6)).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(hot)
        return [(int(y), int(x), int(y + h), int(x + w)) for x, y, w, h, _ in stats[1:count]]


def suspects_of(judgment: Judgment) -> tuple[list[str], bool]:
    """Levels to explain, the likeliest first, and whether they reached their threshold."""
    table = judgment.probabilities.set_index("target")
    own = table.loc[[level for level in LEVELS if table.loc[level, "in_scan"]]]
    own = own.sort_values("prob", ascending=False)
    points = [name for name in own.columns if name not in FIXED]
    if BEST_F1 in points:
        called = [str(level) for level in own.index[own["prob"] >= own[BEST_F1]]]
        if called:
            return called, True
    return [str(own.index[0])], False


def gather_evidence(predictor: Predictor, judgment: Judgment) -> Evidence:
    """Explain a judgment.

    Raises:
        ArtifactError: grad-cam is not installed.
        ValueError: the scan was not judged.
    """
    scan = judgment.scan
    if scan is None or not judgment.ok:
        raise ValueError(f"{judgment.study} was not judged: {judgment.reason}")
    suspects, called = suspects_of(judgment)
    members = predictor.ensemble.config.members
    models = {key: m for key, m in predictor.ensemble.models.items() if key[0] in members}
    levels = {
        int(str(fold)): own.reset_index(drop=True)
        for fold, own in judgment.fold_levels.groupby("model_fold")
    }
    wanted = {level: judgment.driving(level, SLICES) for level in suspects}
    heats = study_heat(models, scan.volumes.fine, levels, wanted)
    return Evidence(
        judgment, suspects, called, heats, _projected(heats, judgment, scan.volumes.fine)
    )


def _projected(heats: list[Heat], judgment: Judgment, fine: Volume) -> NDArray[np.float32]:
    """Heat on the volume's grid; slices between two that were looked at show the nearer one's.

    That of a level is a share of its own largest: no suspect is outshone by another.
    """
    volume = np.zeros(fine.voxels.shape, np.float32)
    for level in {heat.level for heat in heats}:
        evidence = judgment.evidence(level)
        planes: dict[int, dict[str, list[NDArray[np.float32]]]] = {}
        for heat in heats:
            if heat.level == level:
                own = planes.setdefault(heat.slice_idx, {})
                own.setdefault(heat.plane, []).append(_pasted(heat, fine))
        apart = _apart(sorted(judgment.slices["slice"].unique()))
        agreed = {
            at: _agreed(list(seen.values())) * float(np.interp(at, evidence.index, evidence))
            for at, seen in planes.items()
        }
        top = max(float(plane.max()) for plane in agreed.values())
        for at, plane in agreed.items():
            share, first = plane / max(top, 1e-12), at - fine.first_slice
            for k in range(first - apart // 2, first + (apart - 1) // 2 + 1):
                if 0 <= k < len(volume):
                    np.maximum(volume[k], share, out=volume[k])
    return volume


def _agreed(seen: list[list[NDArray[np.float32]]]) -> NDArray[np.float32]:
    """The geometric mean over planes of the mean over networks."""
    means = np.stack([np.mean(own, axis=0) for own in seen])
    return np.asarray(np.prod(means, axis=0) ** (1.0 / len(means)), np.float32)


def _apart(slices: list[int]) -> int:
    """Native slices from one that was looked at to the next."""
    return int(np.median(np.diff(slices))) if len(slices) > 1 else 1


def _pasted(heat: Heat, fine: Volume) -> NDArray[np.float32]:
    """A patch's heat on a whole slice of the volume."""
    box, (y, x) = axial_box(fine, heat.patch), fine.corner
    rows, cols = box.shape
    drawn = cv2.resize(heat.map, (cols, rows), interpolation=cv2.INTER_LINEAR)
    plane = np.zeros(fine.voxels.shape[1:], np.float32)
    y0, x0 = box.y0 - y, box.x0 - x
    inside = drawn[
        max(-y0, 0) : max(plane.shape[0] - y0, 0), max(-x0, 0) : max(plane.shape[1] - x0, 0)
    ]
    top, left = max(y0, 0), max(x0, 0)
    plane[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return plane

"""Where each level begins and ends in a scan, from a few facts of its geometry.

In: `Scan`s, some of them labelled. Out: positions and probabilities. Example::

    below = np.arange(0.0, 200.0, 2.0)
    shown = np.abs(below[:, None] - 40.0 - 16.0 * np.arange(7)) < 8.0
    scans = [Scan(below, np.full(7, k), np.roll(shown, k, 0)) for k in range(3)]
    model = EndsModel(scans)
    one_peak(model.probs(scans[0]))            # (n, 7), one peak per level, in order

A Gaussian process predicts the ends in mm below the top of the scan; the errors it makes on the
studies it leaves out turn positions into probabilities.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.numbers import FloatArray, sigmoid

LENGTH_SCALE, LINEAR, NOISE, AMPLITUDE, BIAS = 2.5, 0.05, 0.5, 0.5, 3.0
"""Kernel over standardized facts: squared exponential plus linear, noise relative to it."""
EDGE_MM = 3.0
"""Softness of a level's ends: partial volume and the annotators' spread."""

ENDS_LIMIT = 60.0
"""Softened distances are cut here: far slices show a level with exp(-60), not with a floor."""


@dataclass(frozen=True)
class Scan:
    """One study's slices from head to chest.

    `below_mm` (n,) is the distance below the top slice; `shown` (n, 7) bool or None; `facts` (7,).
    """

    below_mm: FloatArray
    facts: FloatArray
    shown: FloatArray | None = None


def level_ends(scan: Scan) -> FloatArray:
    """First and last position of each level, (14,) mm below the top: the longest run of each.

    Stray voxels of a mask far away from its vertebra are left out. NaN where a level is not seen.
    """
    ends = np.full(2 * N_LEVELS, np.nan)
    if scan.shown is None:
        return ends
    for level in range(N_LEVELS):
        rows = np.flatnonzero(scan.shown[:, level])
        if len(rows):
            runs = np.split(rows, np.flatnonzero(np.diff(rows) > 3) + 1)
            longest = max(runs, key=len)
            ends[[level, level + N_LEVELS]] = scan.below_mm[longest[[0, -1]]]
    return ends


class EndsModel:
    """Gaussian process from facts of a scan to the ends of its levels."""

    def __init__(self, scans: list[Scan]) -> None:
        """Fit on labelled scans; levels that a scan does not show count as average there."""
        facts = np.array([scan.facts for scan in scans])
        self.center_, self.scale_ = facts.mean(axis=0), facts.std(axis=0) + 1e-9
        self.facts_ = (facts - self.center_) / self.scale_
        ends = np.array([level_ends(scan) for scan in scans])
        self.mean_ = np.nanmean(ends, axis=0)
        known = np.isfinite(ends)
        kernel = self._kernel(self.facts_) + NOISE * np.eye(len(scans))
        inverse = np.linalg.inv(kernel)
        self.weights_ = inverse @ np.where(known, ends - self.mean_, 0.0)
        # Leave-one-out errors in closed form (Rasmussen and Williams, eq. 5.12).
        self.errors_ = self.weights_ / np.diag(inverse)[:, None]
        self.left_out_ = np.where(known, ends, self.mean_) - self.errors_

    def _kernel(self, facts: FloatArray) -> FloatArray:
        distance = ((facts[:, None] - self.facts_[None]) ** 2).sum(axis=-1)
        smooth = AMPLITUDE * np.exp(-distance / (2 * LENGTH_SCALE**2))
        kernel: FloatArray = smooth + LINEAR * (facts @ self.facts_.T) + BIAS
        return kernel

    def ends(self, scan: Scan) -> FloatArray:
        """Expected first and last positions (14,) mm below the top."""
        facts = (scan.facts - self.center_) / self.scale_
        expected: FloatArray = self.mean_ + self._kernel(facts[None])[0] @ self.weights_
        return expected

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "EndsModel":
        """What JSON made of `vars`."""
        model = cls.__new__(cls)
        vars(model).update({name: np.asarray(numbers) for name, numbers in value.items()})
        return model

    def probs(self, scan: Scan) -> FloatArray:
        """Probability (n, 7) that each slice shows each level."""
        samples = self.ends(scan) + self.errors_
        below = scan.below_mm[:, None, None]
        inside = sigmoid((below - samples[None, :, :N_LEVELS]) / EDGE_MM, ENDS_LIMIT)
        inside *= sigmoid((samples[None, :, N_LEVELS:] - below) / EDGE_MM, ENDS_LIMIT)
        mean: FloatArray = inside.mean(axis=1)
        return mean


def one_peak(probs: FloatArray) -> FloatArray:
    """Probabilities (n, 7) that rise to one peak per level and fall again; peaks go down the neck.

    A vertebra is one piece and lies below the one above it: what contradicts that is noise.
    """
    decoded = np.empty_like(probs)
    top = 0
    for level in range(N_LEVELS):
        peak = top + int(probs[top:, level].argmax())
        column = probs[:, level]
        rising = np.maximum.accumulate(column[: peak + 1])
        falling = np.maximum.accumulate(column[peak:][::-1])[::-1]
        decoded[: peak + 1, level], decoded[peak:, level] = rising, falling
        top = peak
    return decoded

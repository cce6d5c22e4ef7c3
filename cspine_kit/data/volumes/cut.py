"""What a fine volume keeps: a box around the path of the spine, and slices from C1 to C7.

In: the levels of all folds of one study, its coarse volume, and what the members look at. Out: a
`Cut`. Example::

    frame = volume.lattice.frame_px, volume.lattice.pitch_mm
    lattice = Lattice.of(*frame, config.volumes.fine.spacing_mm)
    cut = wide_cut(volume, lattice, len(slices))
    cut.box, cut.first, cut.last

It is cut generously around the mean of the folds' levels; a fold that must look beyond that makes
it larger. Nothing lies outside of the coarse volume, which is all that a kernel keeps.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cspine_kit.core.config import Config, FineConfig
from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.spine import neck_middle
from cspine_kit.data.volumes.lattice import Box, Lattice
from cspine_kit.data.volumes.volume import Volume


@dataclass(frozen=True)
class Cut:
    """A box of the fine lattice, and the first and last native slice (both included)."""

    box: Box
    first: int
    last: int

    def holds(self, other: "Cut") -> bool:
        """True where the other leaves this one nowhere."""
        return self.first <= other.first and other.last <= self.last and self.box.holds(other.box)

    def union(self, other: "Cut") -> "Cut":
        """The smallest cut that holds both."""
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Cut(self.box.union(other.box), first, last)

    @property
    def voxels(self) -> int:
        """How many it keeps."""
        rows, cols = self.box.shape
        return (self.last - self.first + 1) * rows * cols


@dataclass(frozen=True)
class Sight:
    """What the members look at: the side of the largest square, and how far they reach along z.

    Attributes:
        field_mm: side of the square around the path of the spine.
        reach_mm: above the top of the highest level and below the bottom of the lowest.
        around_mm: above the highest center of a level and below the lowest.
        neck_mm: along z around the middle of the neck, in all.
    """

    field_mm: float
    reach_mm: float
    around_mm: float = 0.0
    neck_mm: float = 0.0

    @classmethod
    def of(cls, config: Config) -> "Sight":
        """Of all members of a config together."""
        members = config.members.values()
        return cls(
            max(member.side_mm for member in members),
            max(member.reach_mm for member in members),
            max(member.around_mm for member in members),
            max(member.neck_mm for member in members),
        )


def fine_lattice(coarse: Volume, config: FineConfig) -> Lattice:
    """The lattice of a study's fine volume."""
    return Lattice.of(coarse.lattice.frame_px, coarse.lattice.pitch_mm, config.spacing_mm)


def wide_cut(coarse: Volume, lattice: Lattice, slices: int) -> Cut:
    """Everything that the coarse volume covers: what a kernel keeps."""
    return Cut(lattice.same_place(coarse.lattice, coarse.box), 0, slices - 1)


def _around(levels: pd.DataFrame, sight: Sight, lattice: Lattice, z_mm: FloatArray) -> Cut:
    """The cut that holds what is looked at anywhere on the path through levels."""
    path = levels[["center_y_mm", "center_x_mm"]].to_numpy(np.float64)
    # A pixel more to each side: squares are drawn to whole pixels.
    half = sight.field_mm / 2 + np.array(lattice.spacing_mm)
    box = lattice.around(path.min(axis=0) - half, path.max(axis=0) + half)
    middle, half_neck, center = neck_middle(levels), sight.neck_mm / 2, levels["center_z_mm"]
    tops = levels["z_top_mm"].max() + sight.reach_mm, center.max() + sight.around_mm
    bottoms = levels["z_bottom_mm"].min() - sight.reach_mm, center.min() - sight.around_mm
    top, bottom = max(*tops, middle + half_neck), min(*bottoms, middle - half_neck)
    # A slice more to each side: planes are those of the nearest slice.
    inside = np.flatnonzero((z_mm <= top) & (z_mm >= bottom))
    nearest = np.abs(z_mm - (top + bottom) / 2).argmin()
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (int(nearest),) * 2
    return Cut(box, max(first - 1, 0), min(last + 1, len(z_mm) - 1))


def needed_cut(
    levels: pd.DataFrame, coarse: Volume, z_mm: FloatArray, config: FineConfig, sight: Sight
) -> Cut:
    """What the members of any fold look at, as far as the coarse volume goes.

    Args:
        levels: rows of `levels` of one study, of some folds; at least one level is there.
        coarse: its coarse volume.
        z_mm: of its native slices, descending.
        config: of fine volumes.
        sight: what the members look at.
    """
    lattice = fine_lattice(coarse, config)
    folds = [
        _around(own, sight, lattice, z_mm)
        for _, own in levels[levels["present"]].groupby("model_fold", sort=True)
    ]
    return _inside(_union(folds), coarse, lattice)


def generous_cut(
    levels: pd.DataFrame, coarse: Volume, z_mm: FloatArray, config: FineConfig, sight: Sight
) -> Cut:
    """What is cut once for all folds: around the mean of their levels with the config's field and
    margin, and whatever a fold needs besides. Arguments as those of `needed_cut`."""
    lattice = fine_lattice(coarse, config)
    mean = levels[levels["present"]].groupby("level", sort=True).mean(numeric_only=True)
    around = _around(mean, Sight(config.field_mm, config.margin_mm), lattice, z_mm)
    needed = needed_cut(levels, coarse, z_mm, config, sight)
    return _inside(around, coarse, lattice).union(needed)


def _union(cuts: Iterable[Cut]) -> Cut:
    first, *others = cuts
    for other in others:
        first = first.union(other)
    return first


def _inside(cut: Cut, coarse: Volume, lattice: Lattice) -> Cut:
    wide = lattice.same_place(coarse.lattice, coarse.box)
    return Cut(cut.box.overlap(wide), cut.first, cut.last)

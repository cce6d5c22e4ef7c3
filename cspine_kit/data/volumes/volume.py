"""The compact volume of a study: 8-bit codes of HU on a lattice, and where each voxel lies.

In: voxels in memory or in a file (`store`), positions and a lattice. Out: a `Volume`. Example::

    mm = volume.to_mm(np.array([[31.5, 31.5]]))      # pixel centers, (n, 2) y, x
    volume.to_px(mm), volume.z_mm[0]

Positions in the plane are mm in the study's own frame: index times native spacing, rows to the
back, columns to the left; z is the position along the slice normal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.numbers import FloatArray, IntArray
from cspine_kit.data.volumes.curve import Grey, HuCurve
from cspine_kit.data.volumes.lattice import Box, Lattice

EVERYTHING = slice(None)


class Voxels(Protocol):
    """uint8 (z, y, x), wherever it lies; slice 0 is the most cranial."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""

    def slices(
        self, indices: Sequence[int], rows: slice = EVERYTHING, cols: slice = EVERYTHING
    ) -> Grey:
        """A part of some slices, (n, y, x)."""


@dataclass(frozen=True)
class Held:
    """Voxels in an array, which may be memory-mapped."""

    array: Grey

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        nz, ny, nx = self.array.shape
        return nz, ny, nx

    def slices(
        self, indices: Sequence[int], rows: slice = EVERYTHING, cols: slice = EVERYTHING
    ) -> Grey:
        """A part of some slices, (n, y, x)."""
        return np.stack([self.array[z, rows, cols] for z in indices])


@dataclass(frozen=True)
class Volume:
    """One study as the networks see it.

    Attributes:
        study_uid: its study.
        voxels: codes of `curve`, (z, y, x); index 0 is the most cranial slice.
        z_mm: (nz,) float64, descending.
        step_mm: usual distance of slices, of the whole scan.
        lattice: the grid of the whole frame, of which the voxels are a part.
        corner: y, x of voxel [0, 0] in pixels of the lattice.
        curve: what the codes mean.
        first_slice: native index of slice 0.
        group: native slices that were averaged into one (the last one may have fewer).
        mask: labels beside the voxels, 0 background, 1..7 C1..C7, 8 thoracic; None without.
    """

    study_uid: str
    voxels: Voxels
    z_mm: FloatArray
    step_mm: float
    lattice: Lattice
    corner: tuple[int, int]
    curve: HuCurve
    first_slice: int = 0
    group: int = 1
    mask: Voxels | None = None

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """z, y, x."""
        return self.step_mm, *self.lattice.spacing_mm

    @property
    def slice_idx(self) -> IntArray:
        """(nz,) native index of each slice (of the first one where several were averaged)."""
        return self.first_slice + self.group * np.arange(len(self.z_mm))

    @property
    def box(self) -> Box:
        """The part of the lattice that the voxels fill."""
        _, ny, nx = self.voxels.shape
        y, x = self.corner
        return Box(y, x, y + ny, x + nx)

    def to_mm(self, px: FloatArray) -> FloatArray:
        """(n, 2) y, x pixels of this volume as mm of the study's own frame."""
        return self.lattice.to_mm(np.asarray(px) + self.corner)

    def to_px(self, mm: FloatArray) -> FloatArray:
        """(n, 2) y, x in mm of the study's own frame as pixels of this volume."""
        return self.lattice.to_px(mm) - self.corner

    @property
    def middle_mm(self) -> tuple[float, float]:
        """y, x of the middle of its slices."""
        _, ny, nx = self.voxels.shape
        y, x = self.to_mm(np.array([[(ny - 1) / 2, (nx - 1) / 2]]))[0]
        return float(y), float(x)


@dataclass(frozen=True)
class Volumes:
    """Both volumes of one study, as a kernel reads them."""

    coarse: Volume
    fine: Volume

    @property
    def study_uid(self) -> str:
        """Their study."""
        return self.coarse.study_uid


def nearest_slices(z_mm: FloatArray, at_mm: FloatArray) -> IntArray:
    """Index of the slice nearest to each position; ends clamp, of two alike the upper one.

    Args:
        z_mm: (nz,) descending.
        at_mm: positions, in any shape.
    """
    below = np.clip(np.searchsorted(-z_mm, -at_mm), 0, len(z_mm) - 1)
    above = np.maximum(below - 1, 0)
    nearer_above = np.abs(z_mm[above] - at_mm) <= np.abs(z_mm[below] - at_mm)
    chosen: IntArray = np.where(nearer_above, above, below).astype(np.int64)
    return chosen


def with_mask(volume: Volume, labels: Grey, z_mm: FloatArray) -> Volume:
    """A volume with labels beside it, those of the nearest native voxels.

    Args:
        volume: on whose grid they are laid.
        labels: uint8 (z, y, x) on the study's own grid: 0 background, 1..7 C1..C7, above thoracic.
        z_mm: of their slices, descending.
    """
    thoracic = len(LEVELS) + 1
    kept = np.empty(volume.voxels.shape, np.uint8)
    for plane, z in zip(kept, nearest_slices(z_mm, volume.z_mm), strict=True):
        plane[:] = volume.box.cut(volume.lattice.resample_labels(labels[z]))
    return replace(volume, mask=Held(np.minimum(kept, np.uint8(thoracic))))

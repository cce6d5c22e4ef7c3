"""Bones as signed distances on a CT grid: bars, blocks, holes, poses and fragments.

In: sizes and places in millimeters. Out: a `Grid` and `Bone`s made of primitives, whose signed
distances (mm, negative inside) `painting` turns into HU and labels. Example::

    >>> grid = Grid.make(shape=(90, 160, 160), spacing=(2.0, 1.2, 1.2), top=(90.0, -96.0, -96.0))
    >>> body = Block(center=(0.0, 0.0, 0.0), half=(9.0, 7.7, 6.5))
    >>> distance = body.distance((grid.x, grid.y[:, None], grid.z[:, None, None]))
    >>> distance.shape, float(distance.min())
    ((90, 160, 160), -6.5)

World and bone axes are DICOM's: x to the patient's left, y to the back, z to the head.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Grid:
    """Voxel centers of a study: ascending x and y, descending z, in mm."""

    z: Array
    y: Array
    x: Array

    @staticmethod
    def make(shape: tuple[int, int, int], spacing: Vector, top: Vector) -> "Grid":
        """A grid of `shape` (z, y, x) whose first voxel center lies at `top` (z, y, x) mm."""
        z, y, x = (
            np.float32(first) + np.float32(step) * np.arange(n, dtype=np.float32)
            for n, first, step in zip(shape, top, (-spacing[0], *spacing[1:]), strict=True)
        )
        return Grid(z, y, x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        return len(self.z), len(self.y), len(self.x)

    def windows(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> list[tuple[slice, ...]]:
        """Index windows (z, y, x) of n boxes from corner `low` to `high`, (n, 3) mm of x, y, z."""
        z0, y0, x0 = low.T[::-1]
        z1, y1, x1 = high.T[::-1]
        axes = (-self.z, -z1, -z0), (self.y, y0, y1), (self.x, x0, x1)
        ends = [np.searchsorted(axis, (first, last)).T.tolist() for axis, first, last in axes]
        return [tuple(slice(*pair) for pair in box) for box in zip(*ends, strict=True)]


@dataclass(frozen=True)
class Bar:
    """A tapered, squashed capsule from `a` to `b`; with a == b an ellipsoid. `hole` carves."""

    a: Vector
    b: Vector
    ra: float
    rb: float
    squash: Vector = (1.0, 1.0, 1.0)
    hole: bool = False
    blend: float = 1.0

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest corner (x, y, z) mm."""
        reach = max(self.ra, self.rb) * np.array(self.squash)
        a, b = np.array(self.a), np.array(self.b)
        return np.minimum(a, b) - reach, np.maximum(a, b) + reach

    def distance(self, p: tuple[Array, Array, Array]) -> Array:
        """Signed distance in mm (negative inside) at points (x, y, z)."""
        s = [float(v) for v in self.squash]
        # numpy's own scalars would turn every array here into float64
        a = [float(v) / k for v, k in zip(self.a, s, strict=True)]
        d = [float(v) / k - w for v, k, w in zip(self.b, s, a, strict=True)]
        q = [v / k - w for v, k, w in zip(p, s, a, strict=True)]
        length = sum(v * v for v in d)
        radius: Array | np.float32 = np.float32(self.ra)
        if length > 1e-9:
            t = np.clip((q[0] * d[0] + q[1] * d[1] + q[2] * d[2]) / length, 0.0, 1.0)
            q = [v - t * w for v, w in zip(q, d, strict=True)]
            radius = np.float32(self.ra) + np.float32(self.rb - self.ra) * t
        gap = np.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2])
        if s == [1.0, 1.0, 1.0]:
            return gap - radius
        q = [v / k for v, k in zip(q, s, strict=True)]
        slope = np.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2])
        return (gap - radius) * np.clip(gap / (slope + 1e-6), min(s), max(s))


@dataclass(frozen=True)
class Block:
    """A rounded column with a waist: a vertebral body. `power` 2 is an ellipse, 4 nearly a box.

    `wedge` lowers the front by this share, `dome` hollows the end faces by so many mm.
    """

    center: Vector
    half: Vector
    power: float = 3.0
    waist: float = 0.06
    wedge: float = 0.0
    dome: float = 0.0
    blend: float = 1.0
    hole: bool = False

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest corner (x, y, z) mm."""
        center, half = np.array(self.center), np.array(self.half)
        return center - half, center + half

    def distance(self, p: tuple[Array, Array, Array]) -> Array:
        """Signed distance in mm (negative inside) at points (x, y, z)."""
        hx, hy, hz = self.half
        x, y, z = (v - c for v, c in zip(p, self.center, strict=True))
        narrow = 1.0 - self.waist * np.clip(1.0 - (z / hz) ** 2, 0.0, 1.0)
        across = np.abs(x / (hx * narrow)) ** self.power + np.abs(y / (hy * narrow)) ** self.power
        radial = (across ** (1.0 / self.power) - 1.0) * min(hx, hy)
        height = hz * (1.0 - self.wedge * np.clip(0.5 - 0.5 * y / hy, 0.0, 1.0))
        if self.dome:
            height = height - self.dome * np.clip(1.0 - (x / hx) ** 2 - (y / hy) ** 2, 0.0, 1.0)
        axial = np.abs(z) - height
        outside = np.hypot(np.maximum(radial, 0.0), np.maximum(axial, 0.0))
        return np.minimum(np.maximum(radial, axial), 0.0) + outside


Primitive = Bar | Block


@dataclass(frozen=True)
class Space:
    """A filling that replaces what is there: air cells, orbits, brain, vessels."""

    part: Primitive
    hu: float
    position: Vector = (0.0, 0.0, 0.0)
    turn: Vector = (0.0, 0.0, 0.0)


def pair(parts: list[Primitive], bar: Bar) -> None:
    """Add a bar and its mirror image."""
    (ax, ay, az), (bx, by, bz) = bar.a, bar.b
    parts += [bar, replace(bar, a=(-ax, ay, az), b=(-bx, by, bz))]


def chain(parts: list[Primitive], points: list[Vector], r: float, tall: float = 1.0) -> None:
    """Mirrored bars through a list of points."""
    for a, b in pairwise(points):
        pair(parts, Bar(a, b, r, r, (1.0, 1.0, tall)))


def scaled(parts: list[Primitive], size: float) -> list[Primitive]:
    """The same primitives `size` times as large."""

    def grow(p: Vector) -> Vector:
        return (size * p[0], size * p[1], size * p[2])

    return [
        replace(p, a=grow(p.a), b=grow(p.b), ra=p.ra * size, rb=p.rb * size)
        if isinstance(p, Bar)
        else replace(p, center=grow(p.center), half=grow(p.half), dome=p.dome * size)
        for p in parts
    ]


@dataclass(frozen=True)
class Cut:
    """A wavy plane through `point`; the side that `normal` points to is inside."""

    point: Vector
    normal: Vector
    roughness_mm: float = 0.4
    phase: float = 0.0

    def distance(self, p: tuple[Array, Array, Array]) -> Array:
        """Signed distance in mm (negative inside) at points (x, y, z)."""
        q = [(c - v) * k for v, c, k in zip(p, self.point, self.normal, strict=True)]
        d = q[0] + q[1] + q[2]
        if self.roughness_mm:
            ripple = np.sin(0.9 * p[0] + 0.7 * p[1] + 0.8 * p[2] + self.phase)
            ripple += np.sin(-0.5 * p[0] + 1.1 * p[1] + 1.3 * p[2] + 2.0 * self.phase)
            d = d + 0.5 * self.roughness_mm * ripple
        return d


Region = tuple[Cut, ...]
"""The common inside of its cuts."""


def region_distance(region: Region, p: tuple[Array, Array, Array]) -> Array:
    """Signed distance in mm (negative inside) to a region of at least one cut."""
    distance = region[0].distance(p)
    for cut in region[1:]:
        distance = np.maximum(distance, cut.distance(p))
    return distance


@dataclass(frozen=True)
class Slit:
    """A lucent line of `gap_mm` along a cut, within `reach_mm` of its point."""

    cut: Cut
    gap_mm: float
    reach_mm: float
    strength: float = 1.0

    def distance(self, p: tuple[Array, Array, Array]) -> Array:
        """Signed distance in mm (negative inside the line) at points (x, y, z)."""
        x, y, z = (v - c for v, c in zip(p, self.cut.point, strict=True))
        away = np.sqrt(x * x + y * y + z * z) - self.reach_mm
        return np.maximum(np.abs(self.cut.distance(p)) - 0.5 * self.gap_mm, away)


@dataclass(frozen=True)
class Fragment:
    """A part of a bone: inside `region` (all of it where None), outside every one of `without`.

    It is moved by `shift` and turned about `pivot`; `slits` are lines in it that are no break-off.
    """

    region: Region | None = None
    without: tuple[Region, ...] = ()
    slits: tuple[Slit, ...] = ()
    shift: Vector = (0.0, 0.0, 0.0)
    turn: Vector = (0.0, 0.0, 0.0)
    pivot: Vector = (0.0, 0.0, 0.0)


WHOLE = (Fragment(),)


@dataclass
class Bone:
    """Primitives in bone coordinates, a pose, its HU and the mask label (0 = none)."""

    name: str
    parts: list[Primitive]
    position: Vector = (0.0, 0.0, 0.0)
    turn: Vector = (0.0, 0.0, 0.0)
    label: int = 0
    cortex_hu: float = 1050.0
    marrow_hu: float = 260.0
    cortex_mm: float = 1.0
    fragments: tuple[Fragment, ...] = field(default=WHOLE)


def as_vector(values: NDArray[np.float64]) -> Vector:
    """Three floats as a plain tuple."""
    return (float(values[0]), float(values[1]), float(values[2]))


def rotation(turn: Vector) -> NDArray[np.float64]:
    """Rotation matrix of degrees about x (nod), y (tilt) and z (twist), applied in this order."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x

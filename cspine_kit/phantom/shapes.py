"""Bones as signed distances on a CT grid: bars, blocks, holes, poses and fragments.

In: a `Grid` and `Bone`s made of primitives in millimeters. Out: HU painted into a volume and level
labels into a mask, both (z, y, x) with z index 0 = most cranial. Example::

    grid = Grid.make(shape=(90, 160, 160), spacing=(2.0, 1.2, 1.2), top=(90.0, -96.0, -96.0))
    paint(bone, grid, hu, labels, damage, softness_mm=1.2)

World and bone axes are DICOM's: x to the patient's left, y to the back, z to the head.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Vector = tuple[float, float, float]

FAR_MM = 50.0
DAMAGE_MM = 2.0


@dataclass(frozen=True)
class Grid:
    """Voxel centers of a study: ascending x and y, descending z, in mm."""

    z: Array
    y: Array
    x: Array

    @staticmethod
    def make(shape: tuple[int, int, int], spacing: Vector, top: Vector) -> "Grid":
        """A grid of `shape` (z, y, x) whose first voxel center lies at `top` (z, y, x) mm."""
        z, y, x = (np.arange(n, dtype=np.float32) for n in shape)
        return Grid(top[0] - z * spacing[0], top[1] + y * spacing[1], top[2] + x * spacing[2])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        return len(self.z), len(self.y), len(self.x)

    def window(self, center: NDArray[np.float64], half: NDArray[np.float64]) -> tuple[slice, ...]:
        """Index window (z, y, x) of the box `center` +- `half`, both (x, y, z) mm."""
        (x0, y0, z0), (x1, y1, z1) = center - half, center + half
        return (
            slice(*np.searchsorted(-self.z, (-z1, -z0))),
            slice(*np.searchsorted(self.y, (y0, y1))),
            slice(*np.searchsorted(self.x, (x0, x1))),
        )


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
        a = [v / k for v, k in zip(self.a, s, strict=True)]
        d = [v / k - w for v, k, w in zip(self.b, s, a, strict=True)]
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
class Cut:
    """A wavy plane through `point` that keeps the side `normal` points away from."""

    point: Vector
    normal: Vector
    gap_mm: float
    roughness_mm: float = 0.4
    phase: float = 0.0
    mirror: bool = False

    def distance(self, p: tuple[Array, Array, Array]) -> Array:
        """Signed distance in mm to the kept side (negative = kept) at points (x, y, z)."""
        n = self.normal
        q = [(v - c) * k for v, c, k in zip(p, self.point, n, strict=True)]
        d = q[0] + q[1] + q[2]
        if self.roughness_mm:
            ripple = np.sin(0.9 * p[0] + 0.7 * p[1] + 0.8 * p[2] + self.phase)
            ripple += np.sin(-0.5 * p[0] + 1.1 * p[1] + 1.3 * p[2] + 2.0 * self.phase)
            d = d + 0.5 * self.roughness_mm * ripple
        return (-d if self.mirror else d) + 0.5 * self.gap_mm


@dataclass(frozen=True)
class Fragment:
    """The part of a bone on the kept side of every cut, moved by `shift` and turned."""

    cuts: tuple[Cut, ...] = ()
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


def rotation(turn: Vector) -> NDArray[np.float64]:
    """Rotation matrix of degrees about x (nod), y (tilt) and z (twist), applied in this order."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _into(
    matrix: NDArray[np.float64], origin: NDArray[np.float64], x: Array, y: Array, z: Array
) -> tuple[Array, Array, Array]:
    """Coordinates of world points in a frame: columns of `matrix` are the frame's axes."""
    m = matrix.astype(np.float32)
    dx, dy, dz = (v - np.float32(o) for v, o in zip((x, y, z), origin, strict=True))
    return tuple(m[0, k] * dx + m[1, k] * dy + m[2, k] * dz for k in range(3))


def _melt(a: Array, b: Array, blend: float) -> Array:
    """Smooth minimum of two distances (polynomial, Inigo Quilez)."""
    if blend <= 0:
        return np.minimum(a, b)
    h = np.maximum(blend - np.abs(a - b), 0.0)
    return np.minimum(a, b) - h * h * (0.25 / blend)


def _corners(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    picks = np.array([[i >> k & 1 for k in range(3)] for i in range(8)])
    return np.where(picks, high, low)


@dataclass(frozen=True)
class _Field:
    """Signed distance of a fragment on a window of the grid, and how to reach its own frame."""

    window: tuple[slice, ...]
    sub: Grid
    distance: Array
    matrix: NDArray[np.float64]
    origin: NDArray[np.float64]

    def points(self, window: tuple[slice, ...] = (slice(None),) * 3) -> tuple[Array, Array, Array]:
        """Fragment coordinates (x, y, z) of a window of the window."""
        sub = self.sub
        x, y, z = sub.x[window[2]], sub.y[window[1], None], sub.z[window[0], None, None]
        return _into(self.matrix, self.origin, x, y, z)


def _distance(bone: Bone, fragment: Fragment, grid: Grid, margin: float) -> _Field:
    """Signed distance of one fragment, in mm, on the grid window that holds it."""
    pose, moved = rotation(bone.turn), rotation(fragment.turn)
    pivot = np.array(fragment.pivot)
    matrix = pose @ moved
    origin = np.array(bone.position) + pose @ (pivot + np.array(fragment.shift) - moved @ pivot)
    boxes = []
    for part in bone.parts:
        low, high = part.bounds()
        corners = _corners(low - margin, high + margin) @ matrix.T + origin
        boxes.append((corners.min(0), corners.max(0)))
    solid = [box for box, part in zip(boxes, bone.parts, strict=True) if not part.hole]
    low, high = np.min([b[0] for b in solid], 0), np.max([b[1] for b in solid], 0)
    window = grid.window((low + high) / 2, (high - low) / 2)
    sub = Grid(grid.z[window[0]], grid.y[window[1]], grid.x[window[2]])
    field = _Field(window, sub, np.full(sub.shape, FAR_MM, np.float32), matrix, origin)
    for holes in (False, True):
        for part, (low, high) in zip(bone.parts, boxes, strict=True):
            inner = sub.window((low + high) / 2, (high - low) / 2)
            old = field.distance[inner]
            if part.hole == holes and old.size:
                d = part.distance(field.points(inner))
                field.distance[inner] = np.maximum(old, -d) if holes else _melt(old, d, part.blend)
    return field


def _cover(distance: Array, softness_mm: float) -> Array:
    """Share of a voxel inside a surface at signed `distance`: a box blur across the surface."""
    return np.clip(0.5 - distance / softness_mm, 0.0, 1.0)


def paint(
    bone: Bone,
    grid: Grid,
    hu: Array,
    labels: NDArray[np.uint8],
    damage: NDArray[np.uint8],
    *,
    softness_mm: float,
) -> None:
    """Paint one bone into `hu`, `labels` and `damage` (all (z, y, x)), changed in place.

    Args:
        bone: what to paint; each fragment is painted where it now lies.
        grid: voxel centers of both arrays.
        hu: float32 HU; the brighter of bone and what was there stays.
        labels: uint8; the bone's label where more than half of a voxel is bone.
        damage: uint8; the bone's label along the broken faces, the truth behind boxes.
        softness_mm: width of the partial-volume ramp, about one voxel.
    """
    for fragment in bone.fragments:
        field = _distance(bone, fragment, grid, margin=softness_mm + 2.0)
        if field.distance.size == 0:
            continue
        window = field.window
        inside = _cover(field.distance, softness_mm)
        core = _cover(field.distance + bone.cortex_mm, softness_mm)
        keep = np.ones_like(inside)
        for cut in fragment.cuts:
            face = cut.distance(field.points())
            keep = np.minimum(keep, _cover(face, softness_mm))
            damage[window][(np.abs(face) < DAMAGE_MM) & (field.distance < 0)] = bone.label
        background = hu[window]
        bright = core * bone.marrow_hu + (inside - core) * bone.cortex_hu
        mixed = keep * (bright + (1.0 - inside) * background) + (1.0 - keep) * background
        np.maximum(background, mixed, out=background)
        if bone.label:
            labels[window][inside * keep > 0.5] = bone.label


def fill(
    part: Primitive, grid: Grid, hu: Array, value: float, *, softness_mm: float, share: float = 1.0
) -> None:
    """Replace what `hu` holds inside a soft part (world coordinates) by `share` of `value`."""
    low, high = part.bounds()
    window = grid.window((low + high) / 2, (high - low) / 2 + softness_mm)
    sub = Grid(grid.z[window[0]], grid.y[window[1]], grid.x[window[2]])
    if 0 in sub.shape:
        return
    inside = share * _cover(
        part.distance((sub.x, sub.y[:, None], sub.z[:, None, None])), softness_mm
    )
    hu[window] += inside * (value - hu[window])

"""Painting bones and soft parts into HU, labels and damage.

In: a `Bone` or a part, a `Grid`. Out: arrays (z, y, x) changed in place, z index 0 = most cranial.
Example::

    hu, labels = np.full(grid.shape, 50.0, np.float32), np.zeros(grid.shape, np.uint8)
    paint(neck.bones["C4"], grid, hu, labels, np.zeros_like(labels), softness_mm=1.2)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine_kit.phantom.anatomy.shapes import (
    Array,
    Bone,
    Fragment,
    Grid,
    Space,
    region_distance,
    rotation,
)

FAR_MM = 50.0
DAMAGE_MM = 2.0


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
class DistanceField:
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


def distance_field(bone: Bone, fragment: Fragment, grid: Grid, margin: float) -> DistanceField:
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
    field = DistanceField(window, sub, np.full(sub.shape, FAR_MM, np.float32), matrix, origin)
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


def _thin_cover(distance: Array, gap_mm: float, softness_mm: float) -> Array:
    """Share of a voxel inside a slab of `gap_mm`, which may be thinner than the voxel."""
    return _cover(distance, softness_mm) - _cover(distance + gap_mm, softness_mm)


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
        field = distance_field(bone, fragment, grid, margin=softness_mm + 2.0)
        if field.distance.size == 0:
            continue
        window = field.window
        inside = _cover(field.distance, softness_mm)
        core = _cover(field.distance + bone.cortex_mm, softness_mm)
        keep = np.ones_like(inside)
        broken = np.zeros(inside.shape, bool)
        regions = [(region, -1) for region in fragment.without]
        if fragment.region is not None:
            regions.append((fragment.region, 1))
        points = field.points() if regions or fragment.slits else None
        if points is not None:
            for region, side in regions:
                face = side * region_distance(region, points)
                keep = np.minimum(keep, _cover(face, softness_mm))
                broken |= np.abs(face) < DAMAGE_MM
            for slit in fragment.slits:
                face = slit.distance(points)
                keep *= 1.0 - slit.strength * _thin_cover(face, slit.gap_mm, softness_mm)
                broken |= face < DAMAGE_MM
            damage[window][broken & (field.distance < 0)] = bone.label
        background = hu[window]
        bright = core * bone.marrow_hu + (inside - core) * bone.cortex_hu
        mixed = keep * (bright + (1.0 - inside) * background) + (1.0 - keep) * background
        np.maximum(background, mixed, out=background)
        if bone.label:
            labels[window][inside * keep > 0.5] = bone.label


def fill(space: Space, grid: Grid, hu: Array, *, softness_mm: float) -> None:
    """Replace what `hu` (z, y, x) holds inside a space by its HU, in place."""
    bone = Bone("", [space.part], space.position, space.turn)
    field = distance_field(bone, Fragment(), grid, margin=softness_mm)
    if field.distance.size:
        inside = _cover(field.distance, softness_mm)
        hu[field.window] += inside * (np.float32(space.hu) - hu[field.window])

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
    bounds = np.array([part.bounds() for part in bone.parts])
    middle = bounds.mean(axis=1) @ matrix.T + origin
    half = (0.5 * (bounds[:, 1] - bounds[:, 0]) + margin) @ np.abs(matrix).T
    low, high = middle - half, middle + half
    solid = [not part.hole for part in bone.parts]
    (window,) = grid.windows(low[solid].min(0, keepdims=True), high[solid].max(0, keepdims=True))
    sub = Grid(grid.z[window[0]], grid.y[window[1]], grid.x[window[2]])
    field = DistanceField(window, sub, np.full(sub.shape, FAR_MM, np.float32), matrix, origin)
    inners = sub.windows(low, high)
    for holes in (False, True):
        for part, inner in zip(bone.parts, inners, strict=True):
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
        near = field.distance < 0.5 * softness_mm  # beyond, a voxel holds nothing of the bone
        distance = field.distance[near]
        inside = _cover(distance, softness_mm)
        core = _cover(distance + bone.cortex_mm, softness_mm)
        regions = [(region, -1) for region in fragment.without]
        if fragment.region is not None:
            regions.append((fragment.region, 1))
        background = hu[field.window][near]
        bright = core * bone.marrow_hu + (inside - core) * bone.cortex_hu
        mixed = bright + (1.0 - inside) * background
        solid = inside
        if regions or fragment.slits:
            x, y, z = (np.broadcast_to(axis, near.shape)[near] for axis in field.points())
            keep, broken = np.ones_like(inside), np.zeros(inside.shape, bool)
            for region, side in regions:
                face = side * region_distance(region, (x, y, z))
                keep = np.minimum(keep, _cover(face, softness_mm))
                broken |= np.abs(face) < DAMAGE_MM
            for slit in fragment.slits:
                face = slit.distance((x, y, z))
                keep *= 1.0 - slit.strength * _thin_cover(face, slit.gap_mm, softness_mm)
                broken |= face < DAMAGE_MM
            _put(damage[field.window], near, broken & (distance < 0), bone.label)
            mixed = keep * mixed + (1.0 - keep) * background
            solid = inside * keep
        hu[field.window][near] = np.maximum(background, mixed)
        if bone.label:
            _put(labels[field.window], near, solid > 0.5, bone.label)


def _put(
    array: NDArray[np.uint8], near: NDArray[np.bool_], chosen: NDArray[np.bool_], label: int
) -> None:
    """Set the chosen ones of the voxels that are `near` to a label, in place."""
    where = np.zeros_like(near)
    where[near] = chosen
    array[where] = label


def fill(space: Space, grid: Grid, hu: Array, *, softness_mm: float) -> None:
    """Replace what `hu` (z, y, x) holds inside a space by its HU, in place."""
    bone = Bone("", [space.part], space.position, space.turn)
    field = distance_field(bone, Fragment(), grid, margin=softness_mm)
    if field.distance.size:
        near = field.distance < 0.5 * softness_mm
        background = hu[field.window][near]
        inside = _cover(field.distance[near], softness_mm)
        hu[field.window][near] = background + inside * (np.float32(space.hu) - background)

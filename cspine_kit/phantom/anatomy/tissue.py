"""Soft parts: the body's outline with skin and fat, muscles, cord, discs, airway, vessels, table.

In: a `Neck`, a `Grid` and a generator. Out: float32 HU (z, y, x) without bone. Example::

    body = draw_body(rng, neck, grid, contrast=False)
    hu = body.render(grid, softness_mm=4.0)      # or slab by slab

The outline and the fat planes between muscles are smooth, so they are computed on a grid of a few
millimeters and interpolated linearly.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cspine_kit.phantom.anatomy.painting import distance_field, fill
from cspine_kit.phantom.anatomy.shapes import (
    Array,
    Bar,
    Block,
    Bone,
    Fragment,
    Grid,
    Primitive,
    Space,
    Vector,
    as_vector,
    pair,
    rotation,
)
from cspine_kit.phantom.anatomy.skeleton import VAULT_CENTER, VAULT_HALF, ball
from cspine_kit.phantom.anatomy.spine import BODY_MM, CANAL_MM, SPINE, Neck

AIR_HU, FAT_HU, SKIN_HU, DISC_HU, CORD_HU, SAC_HU = -1000, -100, 30, 95, 42, 15

COARSE_MM = 4.0
OUTLINE_BLEND_MM = 18.0

AIRWAY: tuple[tuple[float, float, float], ...] = (
    # radius mm, width and depth factor: pharynx, larynx, trachea
    *((7.0, 1.9, 0.75), (6.5, 1.9, 0.75), (6.5, 0.8, 1.25), (6.0, 0.8, 1.25)),
    *((8.0, 1.0, 1.0), (8.5, 1.0, 1.0), (8.5, 1.0, 1.0), (8.5, 1.0, 1.0)),
)
"""The airway between C2 and C3, C3 and C4, ...; moved up or down with the throat."""
AIRWAY_STEP_MM = 16.0


def _outline(neck: Neck) -> list[Primitive]:
    """Head, face, neck and shoulders as one melted shape in world coordinates."""
    size, girth, blend = neck.size, neck.girth, OUTLINE_BLEND_MM
    head = rotation((neck.nod, 0, 0))
    c1, t1 = np.array(neck.axes["C1"][0]), np.array(neck.axes["T1"][0])

    def at_head(p: Vector) -> Vector:
        return as_vector(c1 + size * (head @ p))

    def bar(a: Vector, b: Vector, ra: float, rb: float, squash: Vector = (1, 1, 1)) -> Bar:
        return Bar(a, b, ra * size, rb * size, squash, blend=blend)

    parts: list[Primitive] = [
        bar(at_head((0, -30, 78)), at_head((0, -48, 20)), 56, 52, (1.18, 1.1, 1)),
        bar(at_head((0, -50, 20)), at_head((0, -62, -14)), 50, 40, (1.15, 1.0, 1)),
        bar(at_head((0, -92, 88)), at_head((0, -104, 64)), 9, 12),
    ]
    for z in (-30, 0, 30):
        center = at_head((0.0, VAULT_CENTER[1] - 0.34 * z, VAULT_CENTER[2] + z))
        shrink = float(np.sqrt(1.0 - (z / 76.0) ** 2))
        half = (VAULT_HALF[0] + 6) * size * shrink, (VAULT_HALF[1] + 4) * size * shrink
        parts.append(Bar(center, center, 1, 1, (*half, 60 * size), blend=4.0))
    for above, below in pairwise(SPINE):
        (ax, ay, az), (bx, by, bz) = neck.axes[above][0], neck.axes[below][0]
        wide = (1.08 * girth, 1.06 * girth, 1.0)
        parts.append(bar((ax, ay - 2 * size, az), (bx, by - 2 * size, bz), 60, 60, wide))
    chest = [as_vector(t1 + size * np.array(p)) for p in ((0, -20, -40), (0, -20, -200))]
    parts.append(bar(chest[0], chest[1], 88, 110, (1.7, 1, 1)))
    if neck.bottom is not None:
        low = as_vector(neck.bottom - np.array([0.0, 60.0 * size, 0.0]))
        parts.append(Bar(chest[1], low, 110 * size, 105 * size, (1.5, 1, 1), blend=blend))
    shoulders = ((50, 10, -18 + 0.4 * neck.lift_mm), (165, 8, -32 + neck.lift_mm))
    ends = [as_vector(t1 + size * np.array(p)) for p in shoulders]
    pair(parts, bar(ends[0], ends[1], 50, 54, (1, 1.05, 1)))
    return parts


def _airway(neck: Neck) -> list[Primitive]:
    """Pharynx, larynx and trachea in front of the spine; their heights vary against the levels."""
    size = neck.size
    shift = neck.throat_mm / AIRWAY_STEP_MM
    profile = np.array(AIRWAY)
    points: list[Vector] = []
    for level in SPINE[1:]:
        (x, y, z), _ = neck.axes[level]
        before = float(np.interp(SPINE.index(level), (1, 3, 6), (13.0, 14.0, 19.0)))
        points.append((x, y - (BODY_MM[level][1] + before) * size, z))
    top = (points[0][0], points[0][1] - 3.0, points[0][2] + 60.0 * size)
    parts: list[Primitive] = [Bar(top, points[0], 9.0, 6.0, (1.4, 0.9, 1.0))]
    for i, (a, b) in enumerate(pairwise(points)):
        r, wide, deep = (
            float(np.interp(i + shift, np.arange(len(profile)), column)) for column in profile.T
        )
        parts.append(Bar(a, b, r * size, r * size, (wide, deep, 1.0)))
    return parts


def _vessels(neck: Neck, hu: float) -> list[Space]:
    """Carotids, jugulars, vertebral arteries, esophagus and thyroid."""
    size = neck.size
    spaces: list[Space] = []
    for above, below in pairwise(SPINE):
        ends = []
        for level in (above, below):
            (x, y, z), _ = neck.axes[level]
            depth = 8.0 if level == "C1" else BODY_MM[level][1]
            ends.append((x, y - depth * size, z))
        for x, y, r, value in ((27, -8, 3.4, hu), (36, -4, 5.5, 0.85 * hu)):
            bars: list[Primitive] = []
            a, b = ((x * size, p[1] + y * size, p[2]) for p in ends)
            pair(bars, Bar(a, b, r * size, r * size, (1.1, 1, 1)))
            spaces += [Space(part, value) for part in bars]
        if above in ("C6", "C7", "T1", "T2"):
            a, b = ((-4.0, p[1] - 5.0, p[2]) for p in ends)
            spaces.append(Space(Bar(a, b, 5.0, 5.0, (1.5, 0.8, 1)), 34.0))
        if above in ("C6", "C7"):
            lobes: list[Primitive] = []
            a, b = ((16.0 * size, p[1] - 14.0 * size, p[2] + neck.throat_mm) for p in ends)
            pair(lobes, Bar(a, b, 7.0, 7.0, (0.9, 1.4, 1)))
            spaces += [Space(lobe, max(105.0, 0.6 * hu)) for lobe in lobes]
    return spaces


@dataclass(frozen=True)
class Body:
    """Coarse fields and fillings of one patient; `render` paints any part of the grid."""

    coarse: Grid
    edge_mm: Array
    """Signed distance to the skin (negative inside), coarse (z, y, x)."""
    septa: Array
    """Fat between muscles: near 0 on a fat plane, coarse (z, y, x)."""
    fat_mm: float
    muscle_hu: float
    under: list[Space]
    table_y_mm: float

    def render(self, grid: Grid, *, softness_mm: float) -> Array:
        """HU of everything that is not bone, float32 (z, y, x) on `grid`."""
        edge, septa = (_interpolate(f, self.coarse, grid) for f in (self.edge_mm, self.septa))
        soft = np.float32(1.0 / softness_mm)
        muscle = FAT_HU + (self.muscle_hu - FAT_HU) * np.clip(np.abs(septa) * 4.0 - 0.5, 0, 1)
        fatty = np.clip(0.5 - (edge + self.fat_mm) * soft, 0, 1)
        hu = FAT_HU + (muscle - FAT_HU) * fatty
        hu += (SKIN_HU - hu) * np.clip(0.5 + (edge + 1.8) * soft, 0, 1)
        hu += (AIR_HU - hu) * np.clip(0.5 + edge * soft, 0, 1)
        table = np.abs(grid.y - self.table_y_mm)[None, :, None]
        hu += 900 * np.clip(1.5 - 0.6 * table, 0, 1) * (edge > 3.0)
        hu = hu.astype(np.float32)
        for space in self.under:
            fill(space, grid, hu, softness_mm=softness_mm)
        return hu


def _along(values: Array, axis: int, fine: Array, coarse: Array) -> Array:
    """Linear interpolation along one axis from uniform `coarse` places to `fine` ones."""
    step = (coarse[-1] - coarse[0]) / (len(coarse) - 1)
    place = np.clip((fine - coarse[0]) / step, 0, len(coarse) - 1)
    low = np.minimum(place.astype(np.int64), len(coarse) - 2)
    shape = [1] * values.ndim
    shape[axis] = len(fine)
    part = (place - low).astype(np.float32).reshape(shape)
    first = np.take(values, low, axis)
    return np.asarray(first + part * (np.take(values, low + 1, axis) - first), np.float32)


def _interpolate(values: Array, coarse: Grid, grid: Grid) -> Array:
    """A coarse field on a finer grid that lies inside it."""
    for axis, name in enumerate("zyx"):
        values = _along(values, axis, getattr(grid, name), getattr(coarse, name))
    return values


def _coarse_grid(grid: Grid) -> Grid:
    def axis(values: Array) -> Array:
        count = max(2, int(abs(values[-1] - values[0]) / COARSE_MM) + 2)
        return np.linspace(values[0], values[-1], count, dtype=np.float32)

    return Grid(axis(grid.z), axis(grid.y), axis(grid.x))


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: Vector) -> Array:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="reflect")
    return (noise / max(1e-6, float(noise.std()))).astype(np.float32)


def _fat_planes(rng: np.random.Generator, neck: Neck, coarse: Grid, edge: Array) -> Array:
    """Zero on the fat between muscles: layers that follow the skin, parted by planes that fan out
    from the spine, the first in the midline of the nape; coarse (z, y, x)."""
    levels = np.array([neck.axes[level][0] for level in SPINE[::-1]])
    x, y = (np.interp(coarse.z, levels[:, 2], levels[:, axis])[:, None, None] for axis in (0, 1))
    dx, dy = coarse.x[None, None, :] - x, coarse.y[None, :, None] - y
    layer, fan = (_smooth_noise(rng, coarse.shape, (6.0, 3.0, 3.0)) for _ in range(2))
    thick = float(rng.uniform(15.0, 20.0))
    across = np.sin(np.pi * (edge + 6.0 * neck.variety * layer) / thick)
    around = np.sin(3.0 * np.arctan2(np.abs(dx), dy) + 0.9 * neck.variety * fan)
    return np.asarray(float(rng.uniform(1.0, 3.5)) * across * around, np.float32)


def draw_body(rng: np.random.Generator, neck: Neck, grid: Grid, *, contrast: bool) -> Body:
    """Draw the soft parts of a patient for a scan's grid."""
    coarse = _coarse_grid(grid)
    skin = Bone("skin", _outline(neck))
    field = distance_field(skin, Fragment(), coarse, margin=30.0)
    edge = np.full(coarse.shape, 30.0, np.float32)
    edge[field.window] = field.distance
    septa = _fat_planes(rng, neck, coarse, edge)
    edge += neck.variety * 2.0 * _smooth_noise(rng, coarse.shape, (6.0, 5.0, 5.0))
    under: list[Space] = []
    canal: list[Vector] = []
    for level in SPINE:
        (x, y, z), _ = neck.axes[level]
        back = 0.0 if level == "C1" else (BODY_MM[level][1] + 0.5 * CANAL_MM) * neck.size
        canal.append((x, y + back, z))
    x, y, z = canal[0]
    canal = [(x, y - 2.0, z + 25.0), *canal]
    under += [Space(Bar(a, b, 7.0, 7.0, (1.4, 1.1, 1.0)), SAC_HU) for a, b in pairwise(canal)]
    under += [Space(Bar(a, b, 4.0, 4.0, (1.5, 1.0, 1.0)), CORD_HU) for a, b in pairwise(canal)]
    for above, below in pairwise(SPINE[1:]):
        a, b = np.array(neck.axes[above][0]), np.array(neck.axes[below][0])
        hx, hy, _ = BODY_MM[below]
        half = (hx * neck.size, hy * neck.size, 5.0 * neck.size)
        under.append(Space(Block(as_vector((a + b) / 2), half, 2.4, waist=-0.05), DISC_HU))
    vessel_hu = float(rng.uniform(180, 380)) if contrast else 45.0
    under += neck.flesh
    under += _vessels(neck, vessel_hu)
    under += [Space(part, AIR_HU) for part in _airway(neck)]
    tongue = as_vector(neck.size * np.array([0, -62, 2]) + neck.axes["C1"][0])
    under.insert(0, Space(ball(tongue, (24, 30, 24)), 60.0))
    away = 128 * neck.size + rng.uniform(0, 12)
    table = float(neck.axes["C1"][0][1] + (-away if neck.prone else away))
    fat = 4.0 + neck.variety * float(rng.uniform(2, 18))
    muscle = 56 - neck.variety * float(rng.uniform(4, 24))
    return Body(coarse, edge, septa, fat, muscle, under, table)

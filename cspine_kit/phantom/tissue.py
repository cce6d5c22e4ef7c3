"""Soft parts: the body's outline with skin and fat, muscle, cord, discs, airway.

In: a `Neck` and a `Grid`. Out: float32 HU (z, y, x) without bone, ready for `shapes.paint`.
Example: `hu = soft_tissue(neck, grid, softness_mm=1.2)`.
"""

from itertools import pairwise

import numpy as np

from cspine_kit.phantom.shapes import Array, Bar, Block, Grid, fill
from cspine_kit.phantom.spine import BODY_MM, CANAL_MM, SPINE, Neck

AIR_HU, FAT_HU, MUSCLE_HU, SKIN_HU, DISC_HU, CORD_HU, SAC_HU = -1000, -100, 58, 40, 95, 42, 15

OUTLINE_MM = (
    # z above the center of C1, half width, half depth, center y behind C1's canal
    (120.0, 62.0, 80.0, -18.0),
    (70.0, 80.0, 100.0, -18.0),
    (25.0, 78.0, 98.0, -20.0),
    (-15.0, 72.0, 88.0, -26.0),
    (-45.0, 64.0, 72.0, -16.0),
    (-75.0, 62.0, 62.0, -4.0),
    (-100.0, 85.0, 64.0, 0.0),
    (-118.0, 165.0, 70.0, 4.0),
    (-145.0, 215.0, 84.0, 2.0),
    (-220.0, 220.0, 100.0, -8.0),
)
"""Outline of head, neck and shoulders by height."""


def _outline(neck: Neck, grid: Grid) -> Array:
    """Signed distance to the skin in mm, roughly (negative inside)."""
    cx, cy, cz = neck.bones["C1"].position
    table = np.array(OUTLINE_MM[::-1]) * neck.size
    z = grid.z - cz
    width, depth, back = (np.interp(z, table[:, 0], table[:, k])[:, None, None] for k in (1, 2, 3))
    x = np.abs((grid.x - cx)[None, None, :]) / width.astype(np.float32)
    y = np.abs((grid.y - cy)[None, :, None] - back.astype(np.float32)) / depth.astype(np.float32)
    radius = (x**2.4 + y**2.4) ** (1 / 2.4)
    return ((radius - 1.0) * np.minimum(width, depth)).astype(np.float32)


def _airway(neck: Neck) -> list[Bar]:
    """Pharynx, larynx and trachea in front of the spine."""
    size = neck.size
    points = []
    for level in SPINE[1:]:
        (x, y, z), _ = neck.axes[level]
        points.append((x, y - (BODY_MM[level][1] + 13.0) * size, z))
    top = (points[0][0], points[0][1] - 3.0, points[0][2] + 45.0 * size)
    bars = [Bar(top, points[0], 8.0, 7.0, (1.5, 0.9, 1.0))]
    for i, (a, b) in enumerate(pairwise(points)):
        wide = (1.6, 0.7, 1.0) if i < 2 else (0.8, 1.2, 1.0) if i < 4 else (1.0, 1.0, 1.0)
        bars.append(Bar(a, b, 7.5 * size, 7.5 * size, wide))
    return bars


def soft_tissue(neck: Neck, grid: Grid, softness_mm: float) -> Array:
    """HU of everything that is not bone, float32 (z, y, x)."""
    edge = _outline(neck, grid)
    inside = np.clip(0.5 - edge / softness_mm, 0, 1)
    under_skin = np.clip(0.5 - (edge + 2.0) / softness_mm, 0, 1)
    under_fat = np.clip(0.5 - (edge + 7.0) / softness_mm, 0, 1)
    hu = AIR_HU + (SKIN_HU - AIR_HU) * inside
    hu += (FAT_HU - SKIN_HU) * under_skin
    hu += (MUSCLE_HU - FAT_HU) * under_fat
    hu = hu.astype(np.float32)
    canal = []
    for level in SPINE:
        (x, y, z), _ = neck.axes[level]
        back = 0.0 if level == "C1" else (BODY_MM[level][1] + 0.5 * CANAL_MM) * neck.size
        canal.append((x, y + back, z))
    for a, b in pairwise(canal):
        fill(Bar(a, b, 7.0, 7.0, (1.3, 1.0, 1.0)), grid, hu, SAC_HU, softness_mm=softness_mm)
    for a, b in pairwise(canal):
        fill(Bar(a, b, 4.0, 4.0, (1.5, 1.0, 1.0)), grid, hu, CORD_HU, softness_mm=softness_mm)
    for above, below in pairwise(SPINE[1:]):
        (x0, y0, z0), _ = neck.axes[above]
        (x1, y1, z1), _ = neck.axes[below]
        hx, hy, _ = BODY_MM[below]
        middle = ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2)
        half = (hx * neck.size, hy * neck.size, 5.0 * neck.size)
        fill(Block(middle, half, 2.4, waist=-0.05), grid, hu, DISC_HU, softness_mm=softness_mm)
    for bar in _airway(neck):
        fill(bar, grid, hu, AIR_HU, softness_mm=softness_mm)
    return hu

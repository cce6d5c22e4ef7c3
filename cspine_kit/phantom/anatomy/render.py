"""One patient on one scan's grid: soft parts, bones, cavities and bone texture, slab by slab.

In: a `Neck` and a `Grid`. Out: HU, level labels and damage (z, y, x). Example::

    picture = render(rng, neck, grid, softness_mm=4.0, contrast=False)
    picture.hu, picture.labels, picture.damage
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine_kit.phantom.anatomy.painting import fill, paint
from cspine_kit.phantom.anatomy.shapes import Array, Grid
from cspine_kit.phantom.anatomy.spine import Neck
from cspine_kit.phantom.anatomy.tissue import draw_body

SLAB_VOXELS = 6_000_000
TEXTURE_MM = 0.7
TEXTURE_SIDE = 64


@dataclass(frozen=True)
class Picture:
    """A rendered patient; arrays are (z, y, x), z index 0 = most cranial."""

    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    damage: NDArray[np.uint8]
    """The level's label along broken faces: the truth behind boxes."""

    def turned(self) -> "Picture":
        """The patient upside down: turned by half about the front-to-back axis."""
        turn = (slice(None, None, -1), slice(None), slice(None, None, -1))
        return Picture(self.hu[turn].copy(), self.labels[turn].copy(), self.damage[turn].copy())


def _texture(rng: np.random.Generator) -> Array:
    """A periodic block of trabecular texture, mean 0 and standard deviation 1."""
    from scipy.ndimage import gaussian_filter

    white = rng.standard_normal((TEXTURE_SIDE,) * 3, dtype=np.float32)
    smooth = gaussian_filter(white, 1.2, mode="wrap") + 0.35 * white
    return np.asarray(smooth / smooth.std(), np.float32)


def _roughen(hu: Array, grid: Grid, texture: Array, strength: float) -> None:
    """Vary bone by its texture: trabeculae relatively, cortex a little; in place."""
    z, y, x = (
        np.floor(axis / TEXTURE_MM).astype(int) % TEXTURE_SIDE for axis in (grid.z, grid.y, grid.x)
    )
    strength *= min(1.0, TEXTURE_MM / float(grid.x[1] - grid.x[0]))
    k, j, i = np.nonzero(hu > 120.0)
    bone = hu[k, j, i]
    amount = strength * np.minimum((bone - 120.0) * 0.4, 90.0)
    hu[k, j, i] = bone + amount * texture[z[k], y[j], x[i]]


def render(
    rng: np.random.Generator, neck: Neck, grid: Grid, *, softness_mm: float, contrast: bool
) -> Picture:
    """Paint a patient on a grid; memory stays at a few slabs beyond the result."""
    body = draw_body(rng, neck, grid, contrast=contrast)
    texture = _texture(rng)
    hu = np.empty(grid.shape, np.int16)
    labels, damage = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)
    depth = max(1, SLAB_VOXELS // (grid.shape[1] * grid.shape[2]))
    for start in range(0, grid.shape[0], depth):
        slab = slice(start, start + depth)
        sub = Grid(grid.z[slab], grid.y, grid.x)
        part = body.render(sub, softness_mm=softness_mm)
        for bone in neck.bones.values():
            paint(bone, sub, part, labels[slab], damage[slab], softness_mm=softness_mm)
        _roughen(part, sub, texture, strength=neck.variety)
        for space in neck.spaces:
            fill(space, sub, part, softness_mm=softness_mm)
        hu[slab] = np.rint(part)
    return Picture(hu, labels, damage)

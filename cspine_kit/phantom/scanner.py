"""The scanner: what part of a neck is scanned, how finely, and how it is stored.

In: a `Neck` and a generator. Out: a `Scan` (geometry and encoding) and its stored values.
Example::

    scan = draw_scan(rng, neck, size_px=160, difficulty="easy")
    stored = scan.digitize(hu)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine_kit.phantom.shapes import Array, Grid
from cspine_kit.phantom.spine import Neck

EASY_FIELD_MM = 192.0
REVERSED_SHARE = 0.06


@dataclass(frozen=True)
class Scan:
    """Geometry and encoding of one study; `z_mm` descends with the slice index."""

    grid: Grid
    spacing_mm: tuple[float, float, float]
    thickness_mm: float
    reversed: bool
    noise_hu: float
    intercept: int
    signed: bool
    bits: int
    origin_mm: tuple[float, float, float]
    """Patient position (x, y, z) of the phantom's own origin."""

    @property
    def file_order(self) -> list[int]:
        """Slice index (0 = most cranial) of file 1, 2, ..."""
        order = list(range(len(self.grid.z)))
        return order[::-1] if self.reversed else order

    def digitize(self, hu: Array) -> NDArray[np.int16]:
        """Stored values of HU (z, y, x): rounded, shifted by the intercept, clipped to its bits."""
        half = 1 << (self.bits - 1)
        low, high = (-half, half - 1) if self.signed else (0, 2 * half - 1)
        stored = np.clip(np.rint(hu - self.intercept), low, high)
        return stored.astype(np.int16)


def draw_scan(rng: np.random.Generator, neck: Neck, *, size_px: int, difficulty: str) -> Scan:
    """Draw coverage, spacing and encoding of one study."""
    spacing_z = float(rng.choice((1.5, 1.75, 2.0)))
    field_mm = EASY_FIELD_MM
    pixel = field_mm / size_px
    top = neck.axes["C1"][0][2] + rng.uniform(14, 28)
    bottom = neck.axes["C7"][0][2] - rng.uniform(18, 32)
    count = round((top - bottom) / spacing_z) + 1
    corner = (top, -0.5 * field_mm + 6.0 + rng.uniform(-6, 6), -0.5 * field_mm + rng.uniform(-6, 6))
    grid = Grid.make((count, size_px, size_px), (spacing_z, pixel, pixel), corner)
    signed = bool(rng.random() < 0.5)
    return Scan(
        grid=grid,
        spacing_mm=(spacing_z, pixel, pixel),
        thickness_mm=spacing_z,
        reversed=bool(rng.random() < REVERSED_SHARE),
        noise_hu=float(rng.uniform(12, 25)),
        intercept=0 if signed else -1024,
        signed=signed,
        bits=12,
        origin_mm=(0.0, 0.0, round(float(rng.uniform(-400, 200)), 1)),
    )


def add_noise(hu: Array, scan: Scan, rng: np.random.Generator) -> None:
    """Add dose noise to HU (z, y, x), in place."""
    for index in range(len(hu)):
        hu[index] += scan.noise_hu * rng.standard_normal(hu.shape[1:], dtype=np.float32)

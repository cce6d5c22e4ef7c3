"""The scanner: what part of a neck is scanned, how finely, how sharply, and how it is stored.

In: a `Neck` and a generator. Out: a `Scan`, which says everything about a study's grid, picture
quality and encoding. Example::

    scan = draw_scan(rng, neck, size_px=160, difficulty="easy", place=0.5)
    stored = scan.digitize(np.full(scan.grid.shape, 50, np.int16))
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine_kit.phantom.anatomy.shapes import Array, Grid, rotation
from cspine_kit.phantom.anatomy.spine import Neck
from cspine_kit.phantom.calibration import (
    ABOVE_QUANTILES,
    FIELD_QUANTILES,
    REVERSED_SHARE,
    TILT_DEG,
    TILT_SHARE,
    draw_length,
    from_quantiles,
    spacing_at,
)

EASY_FIELD_MM = (180.0, 205.0)
EASY_SPACINGS_MM = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0)

SYNTAX_SHARES = {"plain": 0.66, "jpeg_lossless": 0.28, "rle": 0.03, "jpeg_2000": 0.03}
CONTRAST_SHARE = 0.1
LARGE_MATRIX_SHARE = 0.002
LEAST_ABOVE_MM, LEAST_BELOW_MM = 20.0, 18.0
"""A neck is scanned from so far above C1's middle to so far below C7's: both are shown whole."""
WHOLE_HEAD_SHARE = 0.04
"""Scans that go on over the head; a level finder must have seen that a skull is no neck."""


@dataclass(frozen=True)
class Scan:
    """Geometry, picture quality and encoding of one study; `z_mm` descends with the index."""

    grid: Grid
    spacing_mm: tuple[float, float, float]
    thickness_mm: float
    reversed: bool
    noise_hu: float
    """Standard deviation of the noise in muscle; 0 switches the picture chain off."""
    sharpness: float
    """-0.4 = very soft kernel, 0 = soft, 1 = bone kernel with overshoot at edges."""
    streaks: float
    """Strength of shoulder and metal streaks; 1 is usual."""
    contrast: bool
    intercept: int
    signed: bool
    bits: int
    pad_hu: int | None
    """HU stored outside the circle of reconstruction; None where the square is filled."""
    syntax: str
    origin_mm: tuple[float, float, float]
    """Patient position (x, y, z) of the phantom's own origin."""
    tilt_deg: float = 0.0
    """How far the slices are tilted against the table's axis."""
    prone: bool = False
    """Whether the patient lies face down; the grid is the patient's all the same."""

    @property
    def axes(self) -> NDArray[np.float64]:
        """Rows: directions of the grid's x, y and z in patient coordinates."""
        return rotation((self.tilt_deg, 0.0, 0.0)).T

    @property
    def way(self) -> int:
        """Step through the grid's columns and rows as files have them: -1 of prone patients."""
        return -1 if self.prone else 1

    @property
    def file_order(self) -> list[int]:
        """Slice index (0 = most cranial) of file 1, 2, ..."""
        order = list(range(len(self.grid.z)))
        return order[::-1] if self.reversed else order

    def digitize(self, hu: Array | NDArray[np.int16]) -> NDArray[np.int16]:
        """Stored values of HU (z, y, x): shifted by the intercept, rounded, clipped to its bits."""
        half = 1 << (self.bits - 1)
        low, high = (-half, half - 1) if self.signed else (0, 2 * half - 1)
        stored = np.clip(np.rint(hu - np.float32(self.intercept)), low, min(high, 32767))
        return stored.astype(np.int16)


def _grid(
    *, top: float, count: int, spacing: tuple[float, float, float], size_px: int, x: float, y: float
) -> Grid:
    """`count` slices down from z `top`, the square's middle at (x, y)."""
    half = 0.5 * spacing[1] * (size_px - 1)
    return Grid.make((count, size_px, size_px), spacing, (top, y - half, x - half))


def _coverage(rng: np.random.Generator, neck: Neck, length: float) -> tuple[float, float]:
    """z of the first slice and the length scanned: all of C1..C7, some scans the whole head."""
    c1, c7 = (neck.axes[level][0][2] for level in ("C1", "C7"))
    spare = max(length - (c1 - c7), LEAST_ABOVE_MM + LEAST_BELOW_MM)
    above = from_quantiles(rng, ABOVE_QUANTILES) * spare
    above = float(np.clip(above, LEAST_ABOVE_MM, spare - LEAST_BELOW_MM))
    head = rng.uniform(60, 110) if rng.random() < WHOLE_HEAD_SHARE else 0.0
    return c1 + above + head, c1 - c7 + spare + head


def draw_easy_scan(rng: np.random.Generator, neck: Neck, size_px: int) -> Scan:
    """Coverage as in `real`, few and thick slices, a narrow range of fields, mild artifacts."""
    spacing_z = float(rng.choice(EASY_SPACINGS_MM))
    pixel = round(float(rng.uniform(*EASY_FIELD_MM)) / size_px, 6)
    spacing = (spacing_z, pixel, pixel)
    top, length = _coverage(rng, neck, draw_length(rng, spacing_z))
    x, y = float(rng.uniform(-6, 6)), 6.0 + float(rng.uniform(-6, 6))
    signed = bool(rng.random() < 0.5)
    return Scan(
        grid=_grid(
            top=top, count=round(length / spacing_z) + 1, spacing=spacing, size_px=size_px, x=x, y=y
        ),
        spacing_mm=spacing,
        thickness_mm=spacing_z,
        reversed=bool(rng.random() < REVERSED_SHARE),
        noise_hu=float(rng.uniform(10, 22)),
        sharpness=float(rng.uniform(0.0, 0.8)),
        streaks=float(rng.uniform(0.0, 0.6)),
        contrast=bool(rng.random() < CONTRAST_SHARE),
        intercept=0 if signed else -1024,
        signed=signed,
        bits=16 if signed else 12,
        pad_hu=None,
        syntax="jpeg_lossless" if rng.random() < 0.1 else "plain",
        origin_mm=(0.0, 0.0, round(float(rng.uniform(-400, 200)), 1)),
    )


def draw_real_scan(rng: np.random.Generator, neck: Neck, size_px: int, place: float) -> Scan:
    """Coverage, spacing and field as in the competition's headers; quality from good to poor."""
    spacing_z, thickness = spacing_at(place)
    if rng.random() < LARGE_MATRIX_SHARE:
        size_px = size_px * 3 // 2
    field = from_quantiles(rng, FIELD_QUANTILES)
    pixel = round(field / size_px, 6)
    spacing = (spacing_z, pixel, pixel)
    top, length = _coverage(rng, neck, draw_length(rng, spacing_z))
    count = round(length / spacing_z) + 1
    x, y = float(rng.normal(0, 6)), float(rng.uniform(-8, 14))
    sharp = float(np.clip(rng.normal(0.65, 0.4), -0.4, 1.3))
    signed = bool(rng.random() < 0.5)
    intercept = int(rng.choice((0, -1024) if signed else (-1024, -1024, -8192)))
    pad = int(rng.choice((-1024, -2000, -3024)))
    names = list(SYNTAX_SHARES)
    return Scan(
        grid=_grid(top=top, count=count, spacing=spacing, size_px=size_px, x=x, y=y),
        spacing_mm=spacing,
        thickness_mm=thickness,
        reversed=bool(rng.random() < REVERSED_SHARE),
        noise_hu=float(rng.uniform(12, 35) * (1 + 1.3 * max(0.0, sharp)) / np.sqrt(thickness)),
        sharpness=sharp,
        streaks=float(rng.uniform(0.2, 1.8)),
        contrast=bool(rng.random() < CONTRAST_SHARE),
        intercept=intercept,
        signed=signed,
        bits=16 if signed or intercept < -1024 else 12,
        pad_hu=pad if rng.random() < 0.5 else None,
        syntax=str(names[int(rng.choice(len(names), p=list(SYNTAX_SHARES.values())))]),
        origin_mm=(
            0.0,
            round(float(rng.uniform(-160, 60)), 1),
            round(float(rng.normal(0, 300)), 1),
        ),
        tilt_deg=float(rng.uniform(*TILT_DEG)) if rng.random() < TILT_SHARE else 0.0,
    )


def draw_scan(
    rng: np.random.Generator, neck: Neck, *, size_px: int, difficulty: str, place: float
) -> Scan:
    """Draw how a patient is scanned.

    Args:
        rng: draws everything that is left to chance.
        neck: the patient.
        size_px: rows and columns.
        difficulty: "easy" or "real".
        place: of the study among all, 0..1; decides the slice spacing of a `real` study.
    """
    if difficulty == "easy":
        return draw_easy_scan(rng, neck, size_px)
    return draw_real_scan(rng, neck, size_px, place)

"""What the real competition looks like, as summary figures: labels, geometry, boxes.

In: nothing. Out: constants and draws from them. Example: `draw_labels(rng, 96)`.

Counted over the 2,019 training studies and their 711,601 slice headers; the tables themselves are
not part of the kit.
"""

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS

PATTERN_COUNTS: dict[str, int] = {
    **{"0000000": 1058, "0000001": 223, "0100000": 180, "0000010": 82, "0000011": 77},
    **{"1000000": 64, "1100000": 42, "0000110": 36, "0000100": 28, "0001000": 28, "0000111": 21},
    **{"0001100": 20, "0010000": 18, "0011000": 13, "0100001": 9, "0100011": 9, "0110000": 7},
    **{"1000001": 7, "0001111": 6, "0001110": 6, "0001001": 5, "0000101": 5, "1100001": 4},
    **{"1000100": 4, "0111110": 3, "0011111": 3, "0100010": 3, "1000011": 3, "0010100": 3},
    **{"0011110": 2, "1000111": 2, "0110010": 2, "1110001": 2, "1000110": 2, "0001011": 2},
    **{"1001110": 2, "0100100": 2, "0110001": 2, "1100010": 2, "0111111": 2, "0111000": 1},
    **{"0011100": 1, "1110000": 1, "0010111": 1, "1110100": 1, "1101000": 1, "0100111": 1},
    **{"0011010": 1, "0101000": 1, "1100100": 1, "1001000": 1, "1010110": 1, "0111001": 1},
    **{"1010100": 1, "0111100": 1, "0001101": 1, "0101110": 1, "0010011": 1, "1000010": 1},
    **{"1010101": 1, "0110100": 1, "0101100": 1, "1101001": 1, "0101101": 1, "0001010": 1},
    **{"0010010": 1, "1011110": 1, "0010001": 1, "0101011": 1, "1100011": 1},
}
"""Number of training studies per pattern of fractured levels C1..C7."""


def draw_labels(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    """Labels (n, 7) with the real prevalence and correlation between levels.

    Systematic sampling: each pattern comes within one of its expected count, in random order.
    """
    patterns = np.array([[int(c) for c in pattern] for pattern in PATTERN_COUNTS])
    bounds = np.cumsum(list(PATTERN_COUNTS.values())) / sum(PATTERN_COUNTS.values())
    ticks = (rng.permutation(n) + rng.random()) / n
    drawn: NDArray[np.int64] = patterns[np.searchsorted(bounds, ticks, side="right")]
    if drawn.shape != (n, len(LEVELS)):
        raise ValueError(f"patterns of {len(LEVELS)} levels expected, got {drawn.shape}")
    return drawn


SPACING_COUNTS: dict[tuple[float, float], int] = {
    # (slice spacing, slice thickness) in mm
    (0.3125, 0.625): 146,
    (0.33, 0.67): 6,
    (0.4, 0.5): 174,
    (0.4, 0.6): 144,
    (0.4, 0.8): 3,
    (0.45, 0.625): 26,
    (0.45, 0.9): 24,
    (0.5, 1.0): 114,
    (0.6, 0.8): 3,
    (0.625, 0.625): 869,
    (0.7, 1.0): 14,
    (0.8, 1.0): 219,
    (0.9, 1.0): 6,
    (1.0, 1.0): 269,
}
"""Training studies by slice spacing and thickness; a pair that occurs once counts as its nearest,
and the two outliers at 0.2 and 2.6 mm are left out."""

LENGTH_QUANTILES: tuple[tuple[float, float], ...] = (
    *((0.0, 125.0), (0.01, 138.0), (0.05, 154.4), (0.1, 162.0), (0.25, 177.8), (0.5, 198.0)),
    *((0.75, 215.0), (0.9, 233.1), (0.95, 247.6), (0.99, 274.8), (1.0, 300.0)),
)
"""Quantiles of the distance between first and last slice in mm."""

LENGTH_FACTOR: dict[float, float] = {0.3125: 0.96, 0.4: 1.01, 0.625: 0.95}
"""Scanners with these spacings cover less or more than the rest (1.05): ratio of medians."""

ABOVE_QUANTILES: tuple[tuple[float, float], ...] = (
    *((0.0, 0.24), (0.05, 0.307), (0.1, 0.349), (0.25, 0.412), (0.5, 0.48), (0.75, 0.545)),
    *((0.9, 0.613), (0.95, 0.643), (1.0, 0.73)),
)
"""Quantiles of the share above C1's middle of what a scan shows beyond C1's and C7's middles; over
1,162 training studies whose levels a public 3D U-Net placed."""

FIELD_QUANTILES: tuple[tuple[float, float], ...] = (
    *((0.0, 100.0), (0.05, 100.0), (0.1, 113.0), (0.25, 134.8), (0.5, 161.4), (0.75, 193.3)),
    *((0.9, 230.8), (0.95, 261.2), (1.0, 300.0)),
)
"""Quantiles of twice the distance from the left edge to the scanner's axis in mm."""

TILT_SHARE, TILT_DEG = 0.01, (3.0, 30.0)
"""Studies whose slices are oblique, and by how much; among the training studies six are, by 3 to 39
degrees. A phantom is small, so it gets a few more."""

REVERSED_SHARE = 0.0976
"""Training studies whose z ascends with the file number."""


def from_quantiles(rng: np.random.Generator, table: tuple[tuple[float, float], ...]) -> float:
    """One draw from a distribution given by its quantiles, linear in between."""
    return float(np.interp(rng.random(), *np.array(table).T))


def spacing_at(place: float) -> tuple[float, float]:
    """Slice spacing and thickness in mm of the study at `place` in 0..1 of all, finest first.

    Real spacings come in steps, so that chance alone would move a quantile by a whole step; a
    phantom gives its studies evenly spread places instead.
    """
    bounds = np.cumsum(list(SPACING_COUNTS.values())) / sum(SPACING_COUNTS.values())
    return list(SPACING_COUNTS)[int(np.searchsorted(bounds, place, side="right"))]


def draw_length(rng: np.random.Generator, spacing_mm: float) -> float:
    """Distance between the first and the last slice in mm."""
    return from_quantiles(rng, LENGTH_QUANTILES) * LENGTH_FACTOR.get(spacing_mm, 1.05)

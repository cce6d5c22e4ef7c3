"""The ordered decode: seven levels of one study from per-slice scores.

In: visibility logits and spine boxes on some slices of one study. Out: the seven rows of the
`levels` table. Example::

    >>> z_mm = -2.0 * np.arange(100)                            # from the head down
    >>> middle = -40.0 - 16.0 * np.arange(7)                    # of C1..C7
    >>> logits = 4.0 - 0.4 * np.abs(z_mm[:, None] - middle)
    >>> boxes = np.tile([40.0, 40.0, 80.0, 80.0], (100, 1))
    >>> levels = decode_levels(z_mm, logits, boxes)
    >>> levels.loc[[0, 6], ["level", "z_top_mm", "z_bottom_mm"]].values.tolist()
    [['C1', -32.0, -48.0], ['C7', -128.0, -144.0]]

The decode is a chain of seven centers. A level whose center lies at z is seen on the slices around
z, so the log-odds of those slices speak for it; two neighbors lie about one pitch apart, all
pitches scaled by the size of the neck. Forward-backward sums over all chains give each center's
distribution, and its mean is the center: levels are ordered and well spaced whatever the network
says, and a level that looks like the next one is placed by counting.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.errors import DataError
from cspine_kit.core.numbers import FloatArray, sigmoid

LEVEL_PITCH_MM: FloatArray = np.array([12.4, 23.5, 16.2, 15.0, 14.2, 15.3])
LEVEL_EXTENT_MM: FloatArray = np.array([27.0, 46.0, 27.0, 27.5, 28.5, 28.0, 32.0])
PITCH_SPREAD: FloatArray = np.array([0.17, 0.17, 0.14, 0.13, 0.13, 0.13])
SIZE_SPREAD = 0.12
"""Distance of a level's center below the one above it, and the length over which slices show it:
medians of 54 masked studies of the competition whose seven levels are in order. Spread of a pitch's
logarithm beyond what the neck's size explains, and of the size (there 0.10; patients of other scans
are not all trauma patients in collars)."""

SIZES: FloatArray = np.exp(np.linspace(-0.3, 0.36, 12))
"""Neck sizes that are weighed against each other."""

DECODE_VERSION = 1
"""Raised when the same rows would give other levels."""

GRID_MM = 1.0
BEYOND_MM = 150.0
"""Centers may lie this far outside the scan: a level need not be in view."""

OUTSIDE_COST_PER_MM = 0.2
"""Log-odds paid per millimeter that a center lies outside the scan: scans of the neck are planned
to show every level. Slices that were not scanned speak neither for a level nor against it."""

EVIDENCE_PER_MM = 0.1
"""Weight of a millimeter of log-odds. Neighboring slices repeat each other, so that they count as
about one independent look per centimeter; chosen on phantom validation studies."""

LOGIT_LIMIT = 5.0
"""Log-odds beyond this say no more: one overconfident slice cannot outvote its neighbors."""

NECK_PROBABILITY = 0.05
"""A scan in which no slice shows any level with this probability is not taken for a neck."""

SURE_LOGIT = 2.0
"""Logits of a scan whose best one lies below this are lifted to it before decoding: a network far
from what it was trained on is unsure everywhere, yet still right about where. Confidence stays raw.
"""

MIN_CONFIDENCE = 0.2
"""A level whose own slices show it with a lower mean probability counts as unseen."""


@dataclass(frozen=True)
class Chain:
    """Where the seven centers lie.

    Attributes:
        center_mm: (7,) means, strictly descending.
        spread_mm: (7,) standard deviations.
        size: mean size of the neck; 1 is typical.
    """

    center_mm: FloatArray
    spread_mm: FloatArray
    size: float


def _pitch_kernels(size: float) -> list[FloatArray]:
    """Probability of each distance 0, 1, ... grid steps from a level to the next, six arrays."""
    reach = LEVEL_PITCH_MM * size * np.exp(3.5 * PITCH_SPREAD)
    kernels = []
    for pitch, spread, longest in zip(LEVEL_PITCH_MM * size, PITCH_SPREAD, reach, strict=True):
        distance = np.arange(1, int(longest / GRID_MM) + 2) * GRID_MM
        density = np.exp(-0.5 * (np.log(distance / pitch) / spread) ** 2) / distance
        kernels.append(np.concatenate([[0.0], density / density.sum()]))
    return kernels


def _chain_of_size(
    cumulated: FloatArray, cost: FloatArray, size: float
) -> tuple[FloatArray, float]:
    """Distribution of each center over the grid, (n, 7), and the log weight of this size.

    Args:
        cumulated: (n + 1, 7) evidence summed from the top of the grid.
        cost: (n,) log-odds against a center at each place.
        size: of the neck.
    """
    n = len(cumulated) - 1
    half = np.rint(LEVEL_EXTENT_MM * size / (2.0 * GRID_MM)).astype(int)
    at, column = np.arange(n)[:, None], np.arange(len(LEVELS))
    evidence = cumulated[np.minimum(at + half + 1, n), column]
    evidence = evidence - cumulated[np.maximum(at - half, 0), column] - cost[:, None]
    best = evidence.max(axis=0)
    shown = np.exp(evidence - best)
    kernels = _pitch_kernels(size)
    log_weight = best.sum() - 0.5 * (np.log(size) / SIZE_SPREAD) ** 2
    down = [shown[:, 0]]
    for kernel, own in zip(kernels, shown[:, 1:].T, strict=True):
        reached = np.convolve(down[-1], kernel)[:n] * own
        top = max(float(reached.max()), np.finfo(float).tiny)
        log_weight += np.log(top)
        down.append(reached / top)
    up = [np.ones(n)]
    for kernel, own in zip(kernels[::-1], shown[:, :0:-1].T, strict=True):
        reached = np.convolve((up[-1] * own)[::-1], kernel)[:n][::-1]
        up.append(reached / max(float(reached.max()), np.finfo(float).tiny))
    marginal = np.stack(down, axis=1) * np.stack(up[::-1], axis=1)
    log_weight += np.log(max(float(down[-1].sum()), np.finfo(float).tiny))
    return marginal / np.maximum(marginal.sum(axis=0), np.finfo(float).tiny), log_weight


def decode_chain(z_mm: FloatArray, logits: FloatArray) -> Chain:
    """Centers of C1..C7.

    Args:
        z_mm: (n,) positions of the scored slices, descending (cranial first).
        logits: (n, 7) visibility log-odds.
    """
    step = float(np.median(-np.diff(z_mm))) if len(z_mm) > 1 else GRID_MM
    grid = np.arange(z_mm[0] + BEYOND_MM, z_mm[-1] - BEYOND_MM - GRID_MM, -GRID_MM)
    scanned = (grid <= z_mm[0] + step / 2) & (grid >= z_mm[-1] - step / 2)
    scores = np.clip(np.asarray(logits, dtype=np.float64), -LOGIT_LIMIT, LOGIT_LIMIT)
    evidence = np.zeros((len(grid), len(LEVELS)))
    for level, column in enumerate(scores.T):
        evidence[scanned, level] = np.interp(-grid[scanned], -z_mm, column)
    evidence *= EVIDENCE_PER_MM * GRID_MM
    cumulated = np.vstack([np.zeros(len(LEVELS)), evidence.cumsum(axis=0)])
    beyond = np.maximum(np.maximum(grid - z_mm[0], z_mm[-1] - grid), 0.0)
    cost = OUTSIDE_COST_PER_MM * beyond
    found = [_chain_of_size(cumulated, cost, float(size)) for size in SIZES]
    log_weight = np.array([weight for _, weight in found])
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    marginal = np.einsum("s,snk->nk", weight, np.stack([m for m, _ in found]))
    center = grid @ marginal
    variance = ((grid[:, None] - center) ** 2 * marginal).sum(axis=0)
    return Chain(center, np.sqrt(variance), float(weight @ SIZES))


def _own_rows(z_mm: FloatArray, visible: FloatArray, center: float, extent: float) -> slice:
    """Rows that show a level: around its center as far as it is visible, else its usual extent."""
    away = np.abs(z_mm - center)
    nearest = int(away.argmin())
    first = last = nearest
    if visible[nearest] > 0.5:
        while first > 0 and visible[first - 1] > 0.5 and away[first - 1] <= extent:
            first -= 1
        while last < len(z_mm) - 1 and visible[last + 1] > 0.5 and away[last + 1] <= extent:
            last += 1
    else:
        inside = np.flatnonzero(away <= max(extent / 2, away[nearest]))
        first, last = int(inside[0]), int(inside[-1])
    return slice(first, last + 1)


def decode_levels(z_mm: FloatArray, logits: FloatArray, boxes: FloatArray) -> pd.DataFrame:
    """The seven levels of one study.

    Args:
        z_mm: (n,) positions of the scored slices, descending (cranial first).
        logits: (n, 7) visibility log-odds.
        boxes: (n, 4) spine box y0, x0, y1, x1 in mm of the study's frame.

    Returns:
        Seven rows: level, present, z_top_mm, z_bottom_mm (of the first and the last scored slice
        that shows the level: z_bottom_mm <= z <= z_top_mm are its slices), center_z_mm,
        center_y_mm, center_x_mm, confidence in [0, 1] (mean probability on its own slices), source
        ("model", or "interpolated" where no slice shows the level: confidence 0).

    Raises:
        DataError: no slice, or a scan that shows no level at all.
    """
    if len(z_mm) == 0:
        raise DataError("no slice to decode levels from")
    if sigmoid(logits.max(), limit=np.inf) < NECK_PROBABILITY:
        raise DataError("no slice shows a cervical level; is this a scan of the neck?")
    lifted = logits + max(0.0, SURE_LOGIT - float(logits.max()))
    chain = decode_chain(z_mm, lifted)
    visible, raw = sigmoid(lifted, limit=np.inf), sigmoid(logits, limit=np.inf)
    extents = LEVEL_EXTENT_MM * chain.size
    own = [
        _own_rows(z_mm, visible[:, k], center, extent)
        for k, (center, extent) in enumerate(zip(chain.center_mm, extents, strict=True))
    ]
    shown = np.array([visible[rows, k].mean() for k, rows in enumerate(own)])
    seen = shown >= min(MIN_CONFIDENCE, shown.max())
    middle = np.column_stack([boxes[:, [0, 2]].mean(axis=1), boxes[:, [1, 3]].mean(axis=1)])
    yx = np.array(
        [
            np.average(middle[rows], axis=0, weights=visible[rows, k] + 1e-6)
            for k, rows in enumerate(own)
        ]
    )
    known = np.flatnonzero(seen)
    for level in np.flatnonzero(~seen):
        yx[level] = yx[known[np.abs(known - level).argmin()]]
    return pd.DataFrame(
        {
            "level": list(LEVELS),
            "present": True,
            "z_top_mm": [float(z_mm[rows.start]) for rows in own],
            "z_bottom_mm": [float(z_mm[rows.stop - 1]) for rows in own],
            "center_z_mm": chain.center_mm,
            "center_y_mm": yx[:, 0],
            "center_x_mm": yx[:, 1],
            "confidence": np.where(seen, [raw[r, k].mean() for k, r in enumerate(own)], 0.0),
            "source": np.where(seen, "model", "interpolated"),
        }
    )

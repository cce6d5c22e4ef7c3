"""The chain of seven centers: where C1..C7 may lie, inside a scan and beyond its ends.

In: visibility logits on some slices of one study. Out: `Centers`, a distribution for each level.
Example::

    >>> z_mm = -2.0 * np.arange(100)                            # from the head down
    >>> middle = -40.0 - np.append(0.0, LEVEL_PITCH_MM).cumsum()         # of C1..C7
    >>> logits = 4.0 - 0.4 * np.abs(z_mm[:, None] - middle)
    >>> found = place_centers(z_mm, logits)
    >>> bool(np.abs(found.center_mm - middle).max() < 2.0), found.upside_down
    (True, False)
    >>> place_centers(z_mm[30:], logits[30:]).shown.round().tolist()     # cut below C2
    [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]

A level whose center lies at z is seen on the slices around z, so the log-odds of those slices speak
for it; two neighbors lie about one pitch apart, all pitches scaled by the size of the neck. Slices
that were not scanned speak neither for a level nor against it: a level that no slice shows is
pushed beyond an end of the scan. Forward-backward sums over all chains, all sizes and both ways
round give each center's distribution: levels are ordered and well spaced whatever the network says,
and a level that looks like the next one is placed by counting.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.numbers import BoolArray, FloatArray

LEVEL_PITCH_MM: FloatArray = np.array([12.2, 23.2, 15.6, 15.1, 14.6, 14.8])
LEVEL_EXTENT_MM: FloatArray = np.array([26.0, 43.0, 26.0, 27.1, 29.0, 29.0, 31.2])
PITCH_SPREAD: FloatArray = np.array([0.17, 0.17, 0.16, 0.16, 0.16, 0.16])
SIZE_SPREAD = 0.12
"""Distance of a level's center below the one above it, and the length over which slices show it:
between the medians of 54 masked studies of the competition and those of 1,922 studies that a public
3D U-Net placed. Spread of a pitch's logarithm beyond what the neck's size explains, and of the size
(there 0.10; patients of other scans are not all trauma patients in collars)."""

SIZES: FloatArray = np.exp(np.linspace(-0.3, 0.36, 9))
"""Neck sizes that are weighed against each other."""

WIDE_SIZES: FloatArray = np.exp(np.linspace(-1.1, 0.7, 13))
WIDE_SPREAD = 0.6
WRONG_COST, CLEAR_LOGIT = 4.0, 3.0
"""The same where the distance of slices is not what the files say, a third to twice of it; the
log-odds paid for that, and how clearly some slice must show a level for it. Of the demo's phantoms
those with right distances gained 2.3 at most by it, one with halved distances 6."""

GRID_MM = 1.0
BEYOND_MM = 240.0
"""Centers may lie this far outside the scan: the chain of a scan of the chest lies above it."""

CUT_COST, CUT_COST_PER_MM = 1.5, 0.02
"""Log-odds paid where a scan starts below C1's center or ends above C7's, and for each millimeter
of it: scans of the neck are planned to show every level, others are not."""

NONE_COST = 3.0
"""Log-odds paid besides where a scan shows none of the levels."""

NECK_MM = 140.0
"""A scan that is shorter than this has less choice of what to show: cutting costs it less."""

UPSIDE_DOWN_COST = 12.0
"""Log-odds paid for a scan whose headers tell the wrong end."""

EVIDENCE_PER_MM = 0.07
"""Weight of a millimeter of log-odds. Neighboring slices repeat each other, so that they count as
about one independent look per 14 mm, and a scan as one at least; chosen on phantoms out-of-fold."""

BASE_LOGIT = -0.5
"""Log-odds that speak neither for a level nor against it: below even, since a slice shows one or
two levels of seven; chosen on phantoms out-of-fold."""

LOGIT_LIMIT = 5.0
"""Log-odds beyond this say no more: one overconfident slice cannot outvote its neighbors."""

SHOWN_SHARE = 0.36
"""A level is in a scan where this share of its length is: then 30 % of its volume are, since its
ends are its thin parts. Or where it fills half of a scan that is shorter than that."""

LEAST_PITCH_MM = 4.0
"""No two centers lie closer together."""

TINY = float(np.finfo(float).tiny)
"""Divides where nothing is left."""

HALF_VERTEBRA_MM = 7.5
"""Half the distance of two levels: a center that is off by more may be that of the next one."""


@dataclass(frozen=True)
class Centers:
    """Where the seven centers lie.

    Attributes:
        center_mm: (7,) strictly descending, ascending where `upside_down`.
        spread_mm: (7,) standard deviations.
        shown: (7,) probabilities that the scan shows the level.
        sure: (7,) probabilities that it does, and that the center is right to half a vertebra.
        visible: (n, 7) probabilities that each scored slice shows each level: that it lies within
            half a length of the center.
        size: mean size of the neck; 1 is typical.
        upside_down: True where the levels run from the feet to the head.
    """

    center_mm: FloatArray
    spread_mm: FloatArray
    shown: FloatArray
    sure: FloatArray
    visible: FloatArray
    size: float
    upside_down: bool


@lru_cache(maxsize=64)
def _pitch_kernels(size: float) -> tuple[FloatArray, ...]:
    """Probability of each distance 0, 1, ... grid steps from a level to the next, six arrays."""
    reach = LEVEL_PITCH_MM * size * np.exp(3.5 * PITCH_SPREAD)
    kernels = []
    for pitch, spread, longest in zip(LEVEL_PITCH_MM * size, PITCH_SPREAD, reach, strict=True):
        distance = np.arange(1, int(longest / GRID_MM) + 2) * GRID_MM
        density = np.exp(-0.5 * (np.log(distance / pitch) / spread) ** 2) / distance
        kernels.append(np.concatenate([[0.0], density / density.sum()]))
    return tuple(kernels)


@dataclass(frozen=True)
class _Field:
    """Evidence on the grid, from the first slice's end on.

    Attributes:
        cumulated: (n + 1, 7) evidence summed from the top of the grid.
        covered: (n + 1,) millimeters of scan, summed in the same way.
        cost: (n, 7) log-odds against a center at each place.
    """

    cumulated: FloatArray
    covered: FloatArray
    cost: FloatArray

    @classmethod
    def of(cls, evidence: FloatArray, scanned: FloatArray) -> "_Field":
        """Of evidence (n, 7) and of which places (n,) were scanned."""
        inside = np.flatnonzero(scanned)
        at = np.arange(len(scanned))
        above = np.maximum(inside[0] - at, 0) * GRID_MM
        below = np.maximum(at - inside[-1], 0) * GRID_MM
        choice = min(1.0, len(inside) * GRID_MM / NECK_MM)
        cost, first, last = np.zeros(evidence.shape), 0, len(LEVELS) - 1
        for near, far, beyond in ((first, last, above), (last, first, below)):
            cost[:, near] += np.where(beyond > 0, choice * CUT_COST + CUT_COST_PER_MM * beyond, 0.0)
            cost[:, far] += np.where(beyond > 0, choice * NONE_COST, 0.0)
        covered = np.concatenate([[0.0], np.cumsum(scanned * GRID_MM)])
        return cls(np.vstack([np.zeros(len(LEVELS)), evidence.cumsum(axis=0)]), covered, cost)

    def window(self, summed: FloatArray, half: FloatArray) -> FloatArray:
        """(n, 7) sums over windows of each level's length around every place, of (n + 1,) alike for
        all levels or (n + 1, 7)."""
        n = len(self.cost)
        at = np.arange(n)[:, None]
        last, first = np.minimum(at + half + 1, n), np.maximum(at - half, 0)
        if summed.ndim == 1:
            return np.asarray(summed[last] - summed[first])
        level = np.arange(len(LEVELS))
        return np.asarray(summed[last, level] - summed[first, level])


class _Chain:
    """All chains of a neck of one size: the sums from C1 down, and what only a chain that is chosen
    needs besides.

    Attributes:
        log_weight: of its evidence.
    """

    def __init__(self, field: _Field, size: float) -> None:
        self._field, self._size = field, size
        self._half = np.rint(LEVEL_EXTENT_MM * size / (2.0 * GRID_MM)).astype(int)
        evidence = field.window(field.cumulated, self._half) - field.cost
        best = evidence.max(axis=0)
        self._shown = np.exp(evidence - best).T.copy()
        self.log_weight = float(best.sum())
        self._down = [self._shown[0]]
        for kernel, own in zip(_pitch_kernels(size), self._shown[1:], strict=True):
            reached = np.convolve(self._down[-1], kernel)[: len(own)] * own
            top = max(float(reached.max()), TINY)
            self.log_weight += np.log(top)
            self._down.append(reached / top)
        self.log_weight += np.log(max(float(self._down[-1].sum()), TINY))

    @property
    def places(self) -> int:
        """Length of the grid."""
        return len(self._field.cost)

    def marginal(self) -> FloatArray:
        """(n, 7) distribution of each center over the grid."""
        n = self.places
        up = [np.ones(n)]
        for kernel, own in zip(_pitch_kernels(self._size)[::-1], self._shown[:0:-1], strict=True):
            reached = np.convolve((up[-1] * own)[::-1], kernel)[:n][::-1]
            up.append(reached / max(float(reached.max()), TINY))
        marginal = np.stack(self._down, axis=1) * np.stack(up[::-1], axis=1)
        return np.asarray(marginal / np.maximum(marginal.sum(axis=0), TINY))

    def seen(self) -> BoolArray:
        """(n, 7) whether a center at each place lets its level be seen."""
        needed = SHOWN_SHARE * (2 * self._half + 1) * GRID_MM
        needed = np.minimum(needed, self._field.covered[-1] / 2)
        return np.asarray(self._field.window(self._field.covered, self._half) >= needed)


@dataclass(frozen=True)
class _Way:
    """One way round: the chains of each size, how much each counts, and the log weight of all."""

    chains: tuple[_Chain, ...]
    weight: FloatArray
    size: float
    log_weight: float

    @classmethod
    def of(cls, field: _Field, sizes: FloatArray, spread: float) -> "_Way":
        chains = tuple(_Chain(field, float(size)) for size in sizes)
        logs = np.array([chain.log_weight for chain in chains])
        logs -= 0.5 * (np.log(sizes) / spread) ** 2
        weight = np.exp(logs - logs.max())
        total = float(weight.sum())
        weight /= total
        return cls(chains, weight, float(weight @ sizes), float(logs.max() + np.log(total)))

    def distributions(self) -> tuple[FloatArray, FloatArray]:
        """Marginals (n, 7) of centers, and the part of them that is shown."""
        marginal, shown = np.zeros((2, self.chains[0].places, len(LEVELS)))
        for weight, chain in zip(self.weight, self.chains, strict=True):
            own = weight * chain.marginal()
            marginal += own
            shown += own * chain.seen()
        return marginal, shown


def _weight(plain: _Way, other: _Way) -> float:
    """Log weight of the better way round."""
    return max(plain.log_weight, other.log_weight - UPSIDE_DOWN_COST)


def place_centers(z_mm: FloatArray, logits: FloatArray) -> Centers:
    """Centers of C1..C7.

    Args:
        z_mm: (n,) positions of the scored slices, descending (cranial first).
        logits: (n, 7) visibility log-odds.
    """
    step = float(np.median(-np.diff(z_mm))) if len(z_mm) > 1 else GRID_MM
    grid = np.arange(z_mm[0] + BEYOND_MM, z_mm[-1] - BEYOND_MM - GRID_MM, -GRID_MM)
    scanned = (grid <= z_mm[0] + step / 2) & (grid >= z_mm[-1] - step / 2)
    scores = np.clip(np.asarray(logits, dtype=np.float64), -LOGIT_LIMIT, LOGIT_LIMIT) - BASE_LOGIT
    evidence = np.zeros((len(grid), len(LEVELS)))
    for level, column in enumerate(scores.T):
        evidence[scanned, level] = np.interp(-grid[scanned], -z_mm, column)
    evidence *= max(EVIDENCE_PER_MM * GRID_MM, 1.0 / scanned.sum())
    fields = _Field.of(evidence, scanned), _Field.of(evidence[::-1], scanned[::-1])
    plain, other = (_Way.of(field, SIZES, SIZE_SPREAD) for field in fields)
    if logits.max() >= CLEAR_LOGIT:
        wide, wide_other = (_Way.of(field, WIDE_SIZES, WIDE_SPREAD) for field in fields)
        if _weight(wide, wide_other) - _weight(plain, other) > WRONG_COST:
            plain, other = wide, wide_other
    gain = other.log_weight - UPSIDE_DOWN_COST - plain.log_weight
    upside_down = gain > 0
    way = other if upside_down else plain
    marginal, shown = way.distributions()
    if upside_down:  # its grid runs from the other end
        marginal, shown = marginal[::-1], shown[::-1]
    belief = 1.0 / (1.0 + np.exp(-min(abs(gain), 50.0)))
    mean, spread = _moments(grid, marginal)
    center = _settled(grid, marginal)
    steps = np.diff(center) if upside_down else -np.diff(center)
    if not (steps > LEAST_PITCH_MM).all():  # stretches of different chains: their mean is in order
        center = mean
    near = np.abs(grid[:, None] - center) <= HALF_VERTEBRA_MM
    return Centers(
        center_mm=center,
        spread_mm=spread,
        shown=shown.sum(axis=0),
        sure=belief * (shown * near).sum(axis=0),
        visible=_visible(z_mm, grid, marginal, way.size),
        size=way.size,
        upside_down=upside_down,
    )


def _visible(z_mm: FloatArray, grid: FloatArray, marginal: FloatArray, size: float) -> FloatArray:
    """See `Centers.visible`."""
    half = np.rint(LEVEL_EXTENT_MM * size / (2.0 * GRID_MM)).astype(int)
    columns = [
        np.interp(-z_mm, -grid, np.convolve(own, np.ones(2 * reach + 1), mode="same"))
        for own, reach in zip(marginal.T, half, strict=True)
    ]
    return np.clip(np.stack(columns, axis=1), 0.0, 1.0)


def _moments(grid: FloatArray, marginal: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Means (7,) and standard deviations (7,)."""
    mean = grid @ marginal
    return mean, np.sqrt(((grid[:, None] - mean) ** 2 * marginal).sum(axis=0))


def _settled(grid: FloatArray, marginal: FloatArray) -> FloatArray:
    """(7,) means inside the most probable stretch of a vertebra's height."""
    box = np.ones(2 * int(HALF_VERTEBRA_MM / GRID_MM) + 1)
    mass = np.stack([np.convolve(own, box, mode="same") for own in marginal.T], axis=1)
    held = marginal * (np.abs(grid[:, None] - grid[mass.argmax(axis=0)]) <= HALF_VERTEBRA_MM)
    return np.asarray((grid @ held) / held.sum(axis=0))

"""What the stack knows about a level: every statistic, declared once as data.

In: the slices of each (study, level, model_fold) of one member, as `LevelSlices`. Out: one value
per level and statistic. Training and kernel both walk `STATISTICS`. Example::

    >>> one, p = np.ones(1), np.array([0.1, 0.8, 0.3])      # one level, three slices
    >>> level = LevelSlices(Segments(np.array([0]), 3), p, np.ones(3), one, *[one] * 6)
    >>> STATISTICS["fracture__max"](level).tolist(), STATISTICS["fracture__q50"](level).tolist()
    ([0.8], [0.3])

To add one: write the function, name it `<signal>__<statistic>` in `STATISTICS`, and say in
`RISING` whether more of it can only mean more fracture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cspine_kit.core.numbers import FloatArray, logit
from cspine_kit.stack.features.segments import Segments

SMOOTH_MM = 4.0
"""Half width of the rolling mean before the smoothed maximum: one fracture shows on several mm."""

MIN_STEP_MM, MAX_STEP_MM = 0.1, 10.0


@dataclass(frozen=True)
class LevelSlices:
    """One member's slices inside each level's range, plus what the whole study says of the level.

    `inside` has one segment per (study, model_fold, level); `p`, `v` are its rows: fracture
    probability and visibility. The `study_*` arrays are (levels,) reductions over all
    slices of the study; `step_mm` is the study's typical slice distance.
    """

    inside: Segments
    p: FloatArray
    v: FloatArray
    step_mm: FloatArray
    study_weighted: FloatArray
    study_visible: FloatArray
    study_mean: FloatArray
    study_min: FloatArray
    study_max: FloatArray
    study_peak: FloatArray

    @cached_property
    def ascending(self) -> FloatArray:
        """Fracture probabilities, ascending inside each level."""
        return self.inside.sorted(self.p)

    @cached_property
    def place(self) -> FloatArray:
        """Position of each row inside its level: -1 at the first slice, +1 at the last."""
        rows = np.arange(self.inside.size) - self.inside.starts[self.inside.of_row]
        span = np.maximum(self.inside.counts - 1, 1)[self.inside.of_row]
        alone = (self.inside.counts == 1)[self.inside.of_row]
        place: FloatArray = np.where(alone, 0.0, 2.0 * rows / span - 1.0)
        return place


Statistic = Callable[[LevelSlices], FloatArray]


def _weighted_inside(s: LevelSlices) -> FloatArray:
    weighted: FloatArray = s.inside.sum(s.p * s.v) / s.inside.sum(s.v)
    return weighted


def _doubt_mm(s: LevelSlices) -> FloatArray:
    doubt: FloatArray = -s.inside.sum(np.log1p(-s.p * s.v)) * s.step_mm
    return doubt


def _smooth_max(s: LevelSlices) -> FloatArray:
    half = np.round(SMOOTH_MM / s.step_mm).astype(np.int64)
    return s.inside.max(s.inside.rolling_mean(s.p * s.v, half))


def _run_mm(threshold: float) -> Statistic:
    return lambda s: s.inside.longest_run(s.p > threshold) * s.step_mm


def _extent_mm(threshold: float) -> Statistic:
    return lambda s: s.inside.sum((s.p > threshold).astype(np.float64)) * s.step_mm


def _entropy(s: LevelSlices) -> FloatArray:
    p = s.p
    return s.inside.mean(-(p * np.log(p) + (1.0 - p) * np.log1p(-p)))


def _asymmetry(s: LevelSlices) -> FloatArray:
    moment: FloatArray = s.inside.sum(s.p * s.place) / s.inside.sum(s.p)
    return moment


STATISTICS: dict[str, Statistic] = {
    # Over all slices of the study, weighted by how visible the level is (source documents A, B, E).
    "fracture__weighted": lambda s: s.study_weighted,
    "fracture__peak": lambda s: s.study_peak,
    # Over the slices inside the level's range.
    "fracture__mean": lambda s: s.inside.mean(s.p),
    "fracture__inside": _weighted_inside,
    "fracture__max": lambda s: s.inside.max(s.p),
    "fracture__min": lambda s: s.inside.min(s.p),
    "fracture__std": lambda s: s.inside.std(s.p),
    "fracture__q25": lambda s: s.inside.quantile(s.ascending, 0.25),
    "fracture__q50": lambda s: s.inside.quantile(s.ascending, 0.50),
    "fracture__q75": lambda s: s.inside.quantile(s.ascending, 0.75),
    "fracture__q90": lambda s: s.inside.quantile(s.ascending, 0.90),
    "fracture__top3": lambda s: s.inside.top_mean(s.ascending, 3),
    "fracture__top5": lambda s: s.inside.top_mean(s.ascending, 5),
    "fracture__logsumexp": lambda s: s.inside.log_mean_exp(logit(s.p)),
    "fracture__noisyor": _doubt_mm,
    "fracture__smooth": _smooth_max,
    "fracture__run30": _run_mm(0.3),
    "fracture__run50": _run_mm(0.5),
    "fracture__extent30": _extent_mm(0.3),
    "fracture__extent50": _extent_mm(0.5),
    "fracture__entropy": _entropy,
    "fracture__place": lambda s: s.place[s.inside.argmax(s.p)],
    "fracture__asymmetry": _asymmetry,
    # The level's own column over the whole study, visible or not (5th place's three statistics).
    "study__mean": lambda s: s.study_mean,
    "study__min": lambda s: s.study_min,
    "study__max": lambda s: s.study_max,
    # How much of the level the scan shows.
    "vertebra__mean": lambda s: s.inside.mean(s.v),
    "vertebra__max": lambda s: s.inside.max(s.v),
    "vertebra__height": lambda s: s.study_visible * s.step_mm,
    "vertebra__slices": lambda s: s.study_visible,
}
"""`<signal>__<statistic>` to its computation. Fracture values are probabilities but for these:
`logsumexp` is log-odds, `run*` / `extent*` / `height` are mm, `place` is -1..1."""

RISING: frozenset[str] = frozenset(
    f"fracture__{name}"
    for name in (
        *("weighted", "peak", "mean", "inside", "max", "top3", "top5", "logsumexp", "noisyor"),
        *("smooth", "q50", "q75", "q90", "run50", "extent50"),
    )
)
"""Statistics of which more can only mean more fracture: the boosters' monotone constraints."""

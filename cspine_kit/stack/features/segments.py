"""Statistics of consecutive runs of rows ("segments") without a loop over them.

In: flat arrays whose rows are ordered by segment, and where each segment starts. Out: one value per
segment. Example::

    >>> s = Segments(starts=np.array([0, 3]), size=5)      # rows 0..2 and rows 3..4
    >>> values = np.array([0.5, 0.0, 0.25, 1.0, 0.5])
    >>> s.mean(values).tolist(), s.quantile(s.sorted(values), 0.5).tolist()
    ([0.25, 0.75], [0.25, 0.75])

No segment is empty: whoever builds one gives it at least one row. Results keep the dtype of the
values.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray

WIDE = 16
"""From this many columns on, a loop over segments with vectors across columns is fastest."""

CHUNK_ROWS = 1024
"""Rows that `column_statistics` works on at once: they stay in a core's own cache."""


def _like(per_segment: NDArray[np.generic], values: FloatArray) -> FloatArray:
    """One number per segment, shaped and typed to meet values of one or two axes."""
    typed = per_segment.astype(values.dtype)
    return typed if values.ndim == 1 else typed[:, None]


@dataclass(frozen=True)
class Segments:
    """Segment i is rows starts[i] .. starts[i + 1] - 1 of `size` rows; starts ascend strictly."""

    starts: IntArray
    size: int

    @cached_property
    def ends(self) -> IntArray:
        """One past the last row of each segment."""
        return np.append(self.starts[1:], self.size).astype(np.int64)

    @cached_property
    def counts(self) -> IntArray:
        """Rows of each segment, at least 1."""
        counts: IntArray = self.ends - self.starts
        return counts

    @cached_property
    def of_row(self) -> IntArray:
        """Segment of each row."""
        return np.repeat(np.arange(len(self.starts)), self.counts)

    def sum(self, values: FloatArray) -> FloatArray:
        """Sum over each segment, along axis 0."""
        return self._fold(np.add, values)

    def mean(self, values: FloatArray) -> FloatArray:
        """Mean over each segment."""
        mean: FloatArray = self.sum(values) / _like(self.counts, values)
        return mean

    def max(self, values: FloatArray) -> FloatArray:
        """Largest value of each segment."""
        return self._fold(np.maximum, values)

    def min(self, values: FloatArray) -> FloatArray:
        """Smallest value of each segment."""
        return self._fold(np.minimum, values)

    def std(self, values: FloatArray) -> FloatArray:
        """Population standard deviation; 0 for one row."""
        centered = values - self.mean(values)[self.of_row]
        spread: FloatArray = np.sqrt(self.mean(centered * centered))
        return spread

    def log_mean_exp(self, values: FloatArray) -> FloatArray:
        """log(mean(exp(values))): a smooth maximum that does not grow with the row count."""
        top = self.max(values)
        result: FloatArray = top + np.log(self.mean(np.exp(values - top[self.of_row])))
        return result

    def _fold(self, ufunc: np.ufunc, values: FloatArray) -> FloatArray:
        """Reduce each segment along axis 0, in the dtype of `values`."""
        if values.ndim == 1 or values.shape[1] < WIDE:
            folded: FloatArray = ufunc.reduceat(values, self.starts, axis=0)
            return folded
        folded = np.empty((len(self.starts), values.shape[1]), dtype=values.dtype)
        for i, (a, b) in enumerate(zip(self.starts.tolist(), self.ends.tolist(), strict=True)):
            ufunc.reduce(values[a:b], axis=0, out=folded[i])
        return folded

    def argmax(self, values: FloatArray) -> IntArray:
        """Row of the first largest value of each segment."""
        hits = np.flatnonzero(values == self.max(values)[self.of_row])
        first = np.unique(self.of_row[hits], return_index=True)[1]
        rows: IntArray = hits[first]
        return rows

    def sorted(self, values: FloatArray) -> FloatArray:
        """Values ascending inside each segment; flat values must lie in [0, 1]."""
        if values.ndim == 1:  # one plain sort of segment + value, no index
            shifted = np.sort(self.of_row + 0.5 * values)
            return np.clip(2.0 * (shifted - self.of_row), 0.0, 1.0)
        ascending = np.empty_like(values)
        for a, b in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            ascending[a:b] = np.sort(values[a:b], axis=0)
        return ascending

    def quantile(self, ascending: FloatArray, q: float) -> FloatArray:
        """Linear-interpolated quantile of values that `sorted` gave."""
        position = self.starts + q * (self.counts - 1)
        low = np.floor(position).astype(np.int64)
        high = np.minimum(low + 1, self.ends - 1)
        share = _like(position - low, ascending)
        value: FloatArray = (1.0 - share) * ascending[low] + share * ascending[high]
        return value

    def top_mean(self, ascending: FloatArray, k: int) -> FloatArray:
        """Mean of the k largest values (of all where a segment has fewer)."""
        total = ascending[self.ends - 1]
        for rank in range(2, k + 1):
            rows = np.maximum(self.ends - rank, self.starts)
            total = total + ascending[rows] * _like(self.counts >= rank, ascending)
        mean: FloatArray = total / _like(np.minimum(self.counts, k), ascending)
        return mean

    def rolling_mean(self, values: FloatArray, half: IntArray) -> FloatArray:
        """Centered mean of up to 2 half + 1 rows, cut at segment ends; `half` is per segment."""
        rows, reach = np.arange(self.size), half[self.of_row]
        low = np.maximum(rows - reach, self.starts[self.of_row])
        high = np.minimum(rows + reach + 1, self.ends[self.of_row])
        total = np.concatenate([[0.0], np.cumsum(values)])
        mean: FloatArray = (total[high] - total[low]) / (high - low)
        return mean

    def longest_run(self, flags: BoolArray) -> IntArray:
        """Most consecutive true rows in each segment."""
        rows = np.arange(self.size)
        reset = np.where(flags, -1, rows)
        first = self.starts[flags[self.starts]]
        reset[first] = first - 1
        run = rows - np.maximum.accumulate(reset)
        longest: IntArray = np.maximum.reduceat(run, self.starts)
        return longest

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[tuple[slice, slice, "Segments"]]:
        """Whole segments in groups of about `rows` rows: segment slice, row slice, the group."""
        cuts = np.searchsorted(self.starts, np.arange(0, self.size, rows))
        edges = np.append(np.unique(cuts[cuts < len(self.starts)]), len(self.starts))
        for i, j in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            low, high = int(self.starts[i]), int(self.ends[j - 1])
            yield slice(i, j), slice(low, high), Segments(self.starts[i:j] - low, high - low)


COLUMN_STATISTICS = (
    *("mean", "std", "min", "max", "logsumexp"),
    *("q25", "q50", "q75", "q90", "top3", "top5"),
)
"""What `column_statistics` gives, in order; the same words as in `statistics.STATISTICS`."""


def column_statistics(
    values: NDArray[np.float32], segments: Segments, *, jobs: int = 1
) -> NDArray[np.float32]:
    """Eleven statistics of every column of a wide table, per segment.

    Args:
        values: (n, c) float32, finite; rows ordered by segment.
        segments: g segments over the n rows.
        jobs: threads; the result does not depend on it.

    Returns:
        (11, g, c) float32 in the order of `COLUMN_STATISTICS`. Beside it, memory stays at a few
        chunks.
    """
    out = np.empty((len(COLUMN_STATISTICS), len(segments.starts), values.shape[1]), np.float32)

    def fill(chunk: tuple[slice, slice, Segments]) -> None:
        place, rows, part = chunk
        block = cast("FloatArray", values[rows])  # every method keeps the dtype it is given
        ascending = part.sorted(block)
        out[0, place] = part.mean(block)
        out[1, place] = part.std(block)
        out[2, place] = ascending[part.starts]
        out[3, place] = ascending[part.ends - 1]
        out[4, place] = part.log_mean_exp(block)
        for i, q in enumerate((0.25, 0.5, 0.75, 0.9)):
            out[5 + i, place] = part.quantile(ascending, q)
        for i, k in enumerate((3, 5)):
            out[9 + i, place] = part.top_mean(ascending, k)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(fill, segments.chunks()):
            pass
    return out

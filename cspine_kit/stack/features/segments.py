"""Statistics of consecutive runs of rows ("segments") without a loop over them.

In: flat arrays whose rows are ordered by segment, and where each segment starts. Out: one value per
segment. Example::

    >>> s = Segments(starts=np.array([0, 3]), size=5)      # rows 0..2 and rows 3..4
    >>> values = np.array([0.5, 0.0, 0.25, 1.0, 0.5])
    >>> s.mean(values).tolist(), s.quantile(s.sorted(values), 0.5).tolist()
    ([0.25, 0.75], [0.25, 0.75])

No segment is empty: whoever builds one gives it at least one row.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray


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
        total: FloatArray = np.add.reduceat(values, self.starts, axis=0)
        return total

    def mean(self, values: FloatArray) -> FloatArray:
        """Mean over each segment."""
        mean: FloatArray = (self.sum(values).T / self.counts).T
        return mean

    def max(self, values: FloatArray) -> FloatArray:
        """Largest value of each segment."""
        largest: FloatArray = np.maximum.reduceat(values, self.starts, axis=0)
        return largest

    def min(self, values: FloatArray) -> FloatArray:
        """Smallest value of each segment."""
        smallest: FloatArray = np.minimum.reduceat(values, self.starts, axis=0)
        return smallest

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

    def argmax(self, values: FloatArray) -> IntArray:
        """Row of the first largest value of each segment."""
        hits = np.flatnonzero(values == self.max(values)[self.of_row])
        rows: IntArray = hits[np.diff(self.of_row[hits], prepend=-1) > 0]
        return rows

    def sorted(self, values: FloatArray) -> FloatArray:
        """Values in [0, 1], ascending inside each segment: one plain sort of segment + value."""
        shifted = np.sort(self.of_row + 0.5 * values)
        return np.clip(2.0 * (shifted - self.of_row), 0.0, 1.0)

    def quantile(self, ascending: FloatArray, q: float) -> FloatArray:
        """Linear-interpolated quantile of values that `sorted` gave."""
        position = self.starts + q * (self.counts - 1)
        low = np.floor(position).astype(np.int64)
        high = np.minimum(low + 1, self.ends - 1)
        share = position - low
        value: FloatArray = (1.0 - share) * ascending[low] + share * ascending[high]
        return value

    def top_mean(self, ascending: FloatArray, k: int) -> FloatArray:
        """Mean of the k largest values (of all where a segment has fewer)."""
        total = ascending[self.ends - 1]
        for rank in range(2, k + 1):
            rows = np.maximum(self.ends - rank, self.starts)
            total = total + ascending[rows] * (self.counts >= rank)
        mean: FloatArray = total / np.minimum(self.counts, k)
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

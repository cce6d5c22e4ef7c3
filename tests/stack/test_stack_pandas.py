"""Every column of `aggregate` is what vectorized pandas says it is: the benchmark's own check."""

from pathlib import Path

import pytest

from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.features.names import feature_columns

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_every_statistic_is_that_of_pandas(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from bench_stack_statistics import draw_tables, largest_difference
    from pandas_statistics import pandas_aggregate

    slices, levels = draw_tables(studies=6, members=2)
    ours, theirs = aggregate(slices, levels), pandas_aggregate(slices, levels)
    assert len(ours) == 6 * 7 and largest_difference(ours, theirs) < 1e-5
    assert set(feature_columns(ours.columns)) == set(feature_columns(theirs.columns))
    broken = ours.assign(m0__fracture__top3=ours["m0__fracture__top3"] + 1e-4)
    with pytest.raises(SystemExit, match=r"not equal within 1e-05: \['m0__fracture__top3'\]"):
        largest_difference(broken, theirs)

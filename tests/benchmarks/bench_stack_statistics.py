"""`aggregate` against the same statistics in vectorized pandas, in one run; prints one JSON object.

Run: python tests/benchmarks/bench_stack_statistics.py [--studies 1000 --members 3 --repeats 5]
Real size (2,019 studies, 711,601 slices for each member): --studies 2019 --step 0.42 --repeats 2

Slice tables in the order of their contract: about 140 slices per study and member. Both give
every column of `aggregate`, equal within 1e-5 or the run fails; they take turns, so that whatever
else the machine does hits both. The ratio of the medians of processor time counts, not the seconds.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from goals import record
from pandas_statistics import pandas_aggregate

from cspine_kit.core.anatomy import AXIAL, LEVELS
from cspine_kit.core.execution import measure_gflops, usable_cores
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.features.names import feature_columns

FOLDS, HEIGHT_MM, TOLERANCE = 5, 18.0, 1e-5


def draw_tables(
    studies: int, members: int, step_mm: float = 1.1, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Slice rows and levels: seven levels of about 18 mm, slices about `step_mm` apart."""
    rng = np.random.default_rng(seed)
    slices, levels = [], []
    for study in range(studies):
        uid, fold, step = f"1.2.{study}", study % FOLDS, step_mm * rng.uniform(0.82, 1.18)
        height = rng.normal(HEIGHT_MM, 1.5, len(LEVELS)).clip(12, 24)
        bottom = 10.0 + np.cumsum(height)
        middle = bottom - height / 2
        below = np.arange(0.0, bottom[-1] + 10.0, step)
        key = {"study_uid": uid, "model_fold": fold}
        for member in range(members):
            seen = 4.0 - 8.0 * np.abs(below[:, None] - middle) / height
            logits = np.hstack([seen, np.zeros_like(seen) - 2.0])
            logits += rng.normal(scale=1.5, size=logits.shape)
            rows = pd.DataFrame(logits, columns=[*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS])
            own = {"member": f"m{member}", **key, "plane": AXIAL, "fold": fold}
            own |= {"position": np.arange(len(below)), "at_mm": np.round(50.0 - below, 3)}
            slices.append(rows.assign(**own))
        places = {"z_top_mm": 50.0 - bottom + height, "z_bottom_mm": 50.0 - bottom}
        seven = pd.DataFrame({"level": LEVELS, **places, "center_z_mm": 50.0 - middle})
        levels.append(
            seven.assign(**key, confidence=rng.uniform(0.5, 1.0, len(LEVELS)), present=True)
        )
    table = pd.concat(slices, ignore_index=True)
    table = table.sort_values(["member", "study_uid", "position"], ignore_index=True)
    return table, pd.concat(levels, ignore_index=True)


def largest_difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> float:
    """Largest |a - b| / max(1, |b|) over all columns.

    Raises:
        SystemExit: other rows or columns, or more than TOLERANCE apart; names the columns.
    """
    columns, key = feature_columns(ours.columns), ["study_uid", "level", "model_fold", "fold"]
    if set(columns) != set(feature_columns(theirs.columns)) or not ours[key].equals(theirs[key]):
        sys.exit(f"other rows or columns: {set(columns) ^ set(feature_columns(theirs.columns))}")
    a, b = ours[columns].to_numpy(np.float64), theirs[columns].to_numpy(np.float64)
    apart = (np.abs(a - b) / np.maximum(1.0, np.abs(b))).max(axis=0)
    wrong = [name for name, value in zip(columns, apart, strict=True) if not value <= TOLERANCE]
    if wrong:
        sys.exit(f"not equal within {TOLERANCE:g}: {wrong}")
    return float(apart.max())


def seconds(call: Callable[[], object]) -> float:
    """Processor time of one call: both run on one thread, and waiting for a core is no work."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--step", type=float, default=1.1, help="mm between slices")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    slices, levels = draw_tables(args.studies, args.members, args.step)
    ours = aggregate(slices, levels)
    difference = largest_difference(ours, pandas_aggregate(slices, levels))
    one = tuple(table[table["study_uid"] == "1.2.0"] for table in (slices, levels))
    calls = {
        "aggregate": lambda: aggregate(slices, levels),
        "pandas": lambda: pandas_aggregate(slices, levels),
        "aggregate_one_study": lambda: aggregate(*one),
        "pandas_one_study": lambda: pandas_aggregate(*one),
    }
    times = [{name: seconds(call) for name, call in calls.items()} for _ in range(args.repeats)]
    median = {name: statistics.median(t[name] for t in times) for name in calls}
    report = {
        "slices": len(slices),
        "rows": len(ours),
        "features": len(feature_columns(ours.columns)),
        "largest_difference": difference,
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "ratio": round(median["pandas"] / median["aggregate"], 1),
        "ratio_one_study": round(median["pandas_one_study"] / median["aggregate_one_study"], 1),
        "machine": {
            "cores": usable_cores(),
            "gflops": round(measure_gflops(), 1),
            "load": round(os.getloadavg()[0], 1),
        },
    }
    record("times pandas, many studies", report["ratio"], 20)
    record("times pandas, one study", report["ratio_one_study"], 20)
    record("difference from pandas", difference, 1e-5, most=True)
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()

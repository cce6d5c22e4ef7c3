"""Does the printed score come true? A hundred generated worlds, one line each; prints the summary.

Run: python tests/benchmarks/bench_stack_coverage.py --out coverage.csv [--worlds 100] [--jobs 1]

World w (`tests/stack/slice_tables.py`) has 300 + 7 w training studies, two members of three fold
models each, the real prevalence, and 2,000 hidden studies that every fold model has seen. The
out-of-fold score and its 95 % interval are what `make stack` prints of what ships; the hidden score
is what the same stack gives on the hidden studies. The interval should hold the hidden score in 90
to 99 worlds and be at most 1.3 times as wide as a bootstrap of the hidden score at the size of the
training set. Finished worlds are skipped, so the run may be stopped and repeated; `--every 3
--first 1` takes every third world from the second on. About 12 s of one core per world.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "stack"))

from goals import record  # noqa: E402
from slice_tables import World, make_world  # noqa: E402

from cspine_kit.core.anatomy import TARGETS  # noqa: E402
from cspine_kit.core.config import StackConfig, load_config  # noqa: E402
from cspine_kit.core.metric import bootstrap_interval, metric, weights  # noqa: E402
from cspine_kit.core.numbers import log_losses  # noqa: E402
from cspine_kit.stack.features.aggregate import aggregate  # noqa: E402
from cspine_kit.stack.model.fit import STRICT, fit_stack  # noqa: E402
from cspine_kit.stack.model.stack import SHIPPED, STACK  # noqa: E402
from cspine_kit.stack.scores.baselines import MEAN_OF_MEMBERS  # noqa: E402
from cspine_kit.stack.scores.table import expected_interval  # noqa: E402

HIDDEN, REPEATS = 2000, 1000


def truth(world: World, study_uid: object) -> np.ndarray:
    """Labels (n, 8) of some studies."""
    return world.labels.set_index("study_uid").loc[list(study_uid), list(TARGETS)].to_numpy()


def bootstrap_width(y: np.ndarray, p: np.ndarray, size: int) -> float:
    """Width of the 95 % interval of the mean loss of `size` studies drawn from the hidden ones."""
    w = weights(y)
    loss = (w * log_losses(y, p)).sum(axis=1) / w.sum(axis=1)
    draws = np.random.default_rng(0).integers(0, len(loss), (REPEATS, size))
    low, high = np.quantile(loss[draws].mean(axis=1), [0.025, 0.975])
    return float(high - low)


def measure(number: int, config: StackConfig, jobs: int) -> dict[str, object]:
    """One world: what is printed, and what comes true."""
    n = 300 + 7 * number
    world = make_world(n, hidden=HIDDEN, boost=1.0, seed=1000 + number)
    start = time.process_time()
    features = aggregate(world.slices, world.levels)
    fit = fit_stack(features, world.labels, config, seed=1, jobs=jobs)
    y = truth(world, fit.study_uid)
    crossing, strict = (metric(y, fit.probs[model]) for model in (STACK, STRICT))
    low, high = expected_interval(
        y, fit.probs[SHIPPED], "per_exam", gap=strict - crossing, chains=len(fit.stack.folds)
    )
    plain_low, _ = bootstrap_interval(y, fit.probs[SHIPPED], seed=0)
    table = fit.stack.predict_all(aggregate(world.hidden.slices, world.hidden.levels))
    found = {
        model: rows.pivot(index="study_uid", columns="target", values="prob")[list(TARGETS)]
        for model, rows in table.groupby("model")
    }
    y_hidden = truth(world.hidden, found[SHIPPED].index)
    p_hidden = found[SHIPPED].to_numpy()
    score = metric(y_hidden, p_hidden)
    return {
        "world": number,
        "n": n,
        "ships": fit.stack.ships,
        "oof": metric(y, fit.probs[SHIPPED]),
        "strict": strict,
        "plain_low": plain_low,
        "low": low,
        "high": high,
        "hidden": score,
        "inside": low <= score <= high,
        "width": high - low,
        "boot_width": bootstrap_width(y_hidden, p_hidden, n),
        "stack_hidden": metric(y_hidden, found[STACK].to_numpy()),
        "mean_hidden": metric(y_hidden, found[MEAN_OF_MEMBERS].to_numpy()),
        "fit_s": time.process_time() - start,
    }


def summary(table: pd.DataFrame) -> str:
    """Coverage, width and error over the worlds measured so far."""
    mean = table[["width", "boot_width", "hidden", "oof"]].mean()
    error = table["hidden"] - table["oof"]
    return (
        f"{len(table)} worlds of {table['n'].min()} to {table['n'].max()} studies: "
        f"hidden score inside the interval in {int(table['inside'].sum())}; "
        f"mean width {mean['width']:.4f}, {mean['width'] / mean['boot_width']:.2f} times a "
        f"bootstrap of the hidden score; hidden {mean['hidden']:.4f}, "
        f"out-of-fold {mean['oof']:.4f} "
        f"(hidden minus out-of-fold {error.mean():+.4f}, sd {error.std():.4f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="CSV, one line per world")
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    config = load_config(ROOT / "configs" / "demo.yaml").stack
    done = set(pd.read_csv(args.out)["world"]) if args.out.exists() else set()
    for number in range(args.first, args.worlds, args.every):
        if number not in done:
            row = pd.DataFrame([measure(number, config, args.jobs)])
            row.to_csv(args.out, mode="a", header=not args.out.exists(), index=False)
    table = pd.read_csv(args.out)
    sys.stdout.write(summary(table) + "\n")
    width = table["width"].mean() / table["boot_width"].mean()
    record(f"share of {len(table)} worlds inside the interval", table["inside"].mean(), 0.9)
    record("width of the interval over a bootstrap's", width, 1.3, most=True)


if __name__ == "__main__":
    main()

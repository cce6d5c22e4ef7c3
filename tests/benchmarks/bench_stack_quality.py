"""The stack against every baseline at the real size, on generated slices; prints both tables.

Run: python tests/benchmarks/bench_stack_quality.py [--studies 2019]

2,019 studies x 3 members x 5 folds with the real prevalence per level and known noise
(`tests/stack/slice_tables.py`); fitted once for each form of the metric. One core: about two
minutes.
"""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "stack"))

from goals import record  # noqa: E402
from slice_tables import make_world  # noqa: E402

from cspine_kit.core.config import load_config  # noqa: E402
from cspine_kit.stack.features.aggregate import aggregate  # noqa: E402
from cspine_kit.stack.model.fit import fit_stack  # noqa: E402
from cspine_kit.stack.scores.baselines import all_predictions, held_out_constant  # noqa: E402
from cspine_kit.stack.scores.console import NOTES, render_scores  # noqa: E402
from cspine_kit.stack.scores.fitted import fitted_baselines  # noqa: E402
from cspine_kit.stack.scores.table import FORMS, score_table  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2019)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7, help="of the generated world")
    args = parser.parse_args()
    world = make_world(
        args.studies,
        n_folds=5,
        members=("a", "b", "c"),
        boost=1.0,
        step_mm=1.0,
        noise=0.9,
        seed=args.seed,
    )
    config = load_config(ROOT / "configs" / "rsna2022.yaml").stack
    folds = world.folds.set_index("study_uid")["fold"]
    start = time.perf_counter()
    features = aggregate(world.slices, world.levels)
    seconds = {"aggregate": time.perf_counter() - start}
    for form in FORMS:
        start = time.perf_counter()
        fitted = config.model_copy(update={"form": form})
        fit = fit_stack(features, world.labels, fitted, seed=1, jobs=args.jobs)
        seconds[f"fit {form}"] = time.perf_counter() - start
        own_folds = folds.loc[list(fit.study_uid)].to_numpy()
        constant = {"best_constant": held_out_constant(fit.y, own_folds, form)}
        others = fitted_baselines(features, world.labels, form, seed=0)
        own = all_predictions(fit.study_uid, constant | fit.probs, folds)
        predictions = pd.concat([others, own])
        for baseline in ("visibility_weighted_mean", "mlp_5th_place", "logistic_regression"):
            table = score_table(predictions, world.labels, folds, baselines=(baseline,))
            row = table.set_index("model").loc["stack"]
            gain = row[f"{form}_gain_high"]
            record(f"{form}: stack minus {baseline}, upper end", gain, 0, most=True)
            sys.stdout.write(
                f"fitted for {form}: stack minus {baseline}, paired 95 %: "
                f"{row[f'{form}_gain_low']:+.4f} to {row[f'{form}_gain_high']:+.4f}\n"
            )
        sys.stdout.write(render_scores(table, NOTES) + "\n\n")
    sys.stdout.write(", ".join(f"{k} {v:.1f} s" for k, v in seconds.items()) + "\n")


if __name__ == "__main__":
    main()

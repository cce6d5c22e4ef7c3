"""Decoded levels of a run against its phantoms' own truth, variety by variety.

Run: python tests/benchmarks/bench_vertebra_levels.py [--run oof/demo] [--varied DIR ...]

Out-of-fold levels of the run's phantoms, and those of any other phantom folder (training studies),
by the vertebra model of every fold.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]

from cspine_kit.core.anatomy import LEVELS  # noqa: E402
from cspine_kit.core.config import load_config  # noqa: E402
from cspine_kit.core.paths import RunPaths  # noqa: E402
from cspine_kit.core.tables import read_table  # noqa: E402
from cspine_kit.data.centers import HALF_VERTEBRA_MM  # noqa: E402
from cspine_kit.data.confidence import Calibration  # noqa: E402
from cspine_kit.data.volumes.read import read_coarse  # noqa: E402
from cspine_kit.vision.names import VERTEBRA  # noqa: E402
from cspine_kit.vision.nets.store import load_model  # noqa: E402
from cspine_kit.vision.predict import predict  # noqa: E402
from cspine_kit.vision.tasks.vertebra import decode_study  # noqa: E402

PLAIN = "plain"


def of_run(run: Path) -> pd.DataFrame:
    """Out-of-fold levels."""
    paths = RunPaths(run)
    fold_of = pd.read_csv(paths.folds).set_index("study_uid")["fold"]
    levels = read_table(paths.table("levels"), "levels")
    return levels[levels["study_uid"].map(fold_of) == levels["model_fold"]]


def of_folder(run: Path, phantom: Path) -> pd.DataFrame:
    """Levels of other phantoms by every fold's model."""
    config, paths = load_config(run / "config.yaml"), RunPaths(run)
    folders = [paths.model(VERTEBRA, fold) for fold in range(config.folds.n)]
    models = {fold: load_model(folder) for fold, folder in enumerate(folders)}
    lines = [Calibration.load(folder) for folder in folders]
    found = []
    for folder in sorted((phantom / "train_images").iterdir()):
        coarse, _ = read_coarse(folder, config.volumes)
        said = predict(models, coarse, None, config.kernel.batch_size)
        for fold, one in said.items():
            levels = lines[fold].applied(decode_study(one.require()))
            found.append(levels.assign(study_uid=folder.name, model_fold=fold))
    return pd.concat(found, ignore_index=True)


def told(levels: pd.DataFrame, phantom: Path) -> None:
    """Print presence, errors and confidence by variety."""
    truth = pd.read_csv(phantom / "truth" / "levels.csv", keep_default_na=False)
    both = levels.merge(truth, on=["study_uid", "level"], suffixes=("", "_true"))
    both["variety"] = both["variety"].replace("", PLAIN)
    both["right"] = both["present"] == both["present_true"]
    both["error"] = (both["center_z_mm"] - both["center_z_mm_true"]).where(
        both["present"] & both["present_true"]
    )
    for name, own in [*both.groupby("variety"), ("all", both)]:
        away, said = own["error"].abs(), own[own["present"]]
        near = said["error"].abs() <= HALF_VERTEBRA_MM
        sure = near[said["confidence"] >= 0.9]
        sys.stdout.write(
            f"{name:13s} {own['study_uid'].nunique():4d} studies | present right "
            f"{own['right'].mean():.3f} | error median {away.median():5.2f}, 95 % "
            f"{away.quantile(0.95):5.1f} mm | near {near.mean():.3f} | said with 0.9: "
            f"{len(sure) / max(1, len(said)):.2f}, near {sure.mean():.3f}\n"
        )
    signed = both.groupby("level")["error"].median()
    sys.stdout.write(f"median signed error {np.round(signed[list(LEVELS)].to_numpy(), 1)}\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "oof" / "demo")
    parser.add_argument("--varied", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    config = load_config(args.run / "config.yaml")
    told(of_run(args.run), config.competition.dir)
    for phantom in args.varied:
        sys.stdout.write(f"{phantom}\n")
        told(of_folder(args.run, phantom), phantom)


if __name__ == "__main__":
    main()

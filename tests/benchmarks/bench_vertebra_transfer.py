"""Errors of a run's vertebra stage in mm: on the real CT by fold, and out-of-fold on its phantoms.

Run: CSPINE_REAL_DATA=DIR python tests/benchmarks/bench_vertebra_transfer.py [--run oof/demo]
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "vision"))

from goals import record  # noqa: E402
from reader_levels import transfer_errors  # noqa: E402

from cspine_kit.core.anatomy import LEVELS  # noqa: E402
from cspine_kit.core.paths import RunPaths  # noqa: E402
from cspine_kit.core.tables import MASK_COLUMNS, read_table  # noqa: E402


def phantom_errors(run: Path) -> NDArray[np.float64]:
    """Out-of-fold errors (studies, 7) against the middle of the slices that show each level; NaN
    for a level that the scan does not show."""
    paths = RunPaths(run)
    slices = read_table(paths.table("slices"), "slices")
    fold_of = pd.read_csv(paths.folds).set_index("study_uid")["fold"]
    levels = read_table(paths.table("levels"), "levels")
    own = levels[levels["study_uid"].map(fold_of) == levels["model_fold"]]
    centers = own.pivot_table(index="study_uid", columns="level", values="center_z_mm")
    errors = []
    for uid, rows in slices.groupby("study_uid"):
        masks = rows[list(MASK_COLUMNS)].to_numpy()
        if uid in centers.index and not np.isnan(masks).any():
            z = rows["z_mm"].to_numpy()
            shown = masks > 0
            middle = (z @ shown) / np.where(shown.any(axis=0), shown.sum(axis=0), np.nan)
            errors.append(centers.loc[uid, list(LEVELS)].to_numpy() - middle)
    return np.array(errors, dtype=np.float64)


def show(name: str, values: NDArray[np.float64]) -> None:
    cells = " ".join(f"{v:6.1f}" for v in values)
    sys.stdout.write(
        f"{name:24s} {cells} | {np.abs(values).mean():5.1f} {np.abs(values).max():5.1f}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "oof" / "demo")
    run = parser.parse_args().run
    real = Path(os.environ.get("CSPINE_REAL_DATA", ROOT.parent / "shared" / "real"))
    sys.stdout.write(f"{'error in mm':24s} {'    '.join(LEVELS):>46s} |  mean   max\n")
    for name, error in transfer_errors(run, real / "head_neck_ct").items():
        show(f"real CT, {name}", error)
        if "fold" not in name:
            record("real CT, mean error, mm", np.abs(error).mean(), 5, most=True)
            record("real CT, largest error, mm", np.abs(error).max(), 8, most=True)
    errors = phantom_errors(run)
    show(f"{len(errors)} phantoms, bias", np.nanmean(errors, axis=0))
    show("mean absolute", np.nanmean(np.abs(errors), axis=0))
    show("95 %", np.nanquantile(np.abs(errors), 0.95, axis=0))
    record("phantoms, median error, mm", np.nanmedian(np.abs(errors)), 2, most=True)


if __name__ == "__main__":
    main()

"""What it is worth to start the vertebra stage from the finder that ships, by the number of masks.

Run: python tests/benchmarks/bench_vertebra_start.py --out /tmp/start [--masks 54 20 5 0]

The same phantoms of difficulty real, two folds (each model learns from half of the masks), the
finder's own network and sizes, epochs such that each training takes as many steps; levels
out-of-fold against the phantoms' truth. No masks: the finder itself. --out keeps what was made: a
second call goes on.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

from cspine_kit.core.config import Config, PhantomConfig, load_config  # noqa: E402
from cspine_kit.core.execution import tune_process  # noqa: E402
from cspine_kit.core.paths import RunPaths  # noqa: E402
from cspine_kit.core.tables import MASK_COLUMNS, SPINE_BOX_COLUMNS, read_table, write_table  # noqa: E402
from cspine_kit.data.stages import prepare  # noqa: E402
from cspine_kit.phantom.competition.write import write_competition  # noqa: E402
from cspine_kit.vision.finder.score import figures, judge, read_truth  # noqa: E402
from cspine_kit.vision.inputs.tables import open_inputs  # noqa: E402
from cspine_kit.vision.oof.run import make_levels  # noqa: E402

FOLDS = 2


def world(out: Path, studies: int, seed: int) -> Config:
    """Phantoms that the finder has not seen, and the stage that learns from them."""
    config = load_config(ROOT / "configs" / "finder.yaml")
    spec = PhantomConfig(
        **{"studies": studies, "test_studies": 1, "size_px": 128, "masked": 1.0, "boxed": 0.0},
        **{"variety": 0.2, "files": "nifti", "seed": seed},
    )
    competition = config.competition.model_copy(
        update={"dir": out / "competition", "phantom": spec}
    )
    folds = config.folds.model_copy(update={"n": FOLDS})
    return config.model_copy(update={"competition": competition, "folds": folds})


def arm(whole: RunPaths, root: Path, masks: int) -> RunPaths:
    """The run with the masks of some studies alone, as many of each fold."""
    paths = RunPaths(root)
    if root.exists():
        return paths
    shutil.copytree(whole.root / "tables", root / "tables")
    shutil.copy(whole.folds, paths.folds)
    studies, slices = (read_table(paths.table(name), name) for name in ("studies", "slices"))
    inputs = open_inputs(whole)
    kept = set[str]()
    for fold in range(FOLDS):
        own = [
            u for u in inputs.studies_of(fold, training=False) if inputs.studies.loc[u, "has_mask"]
        ]
        kept |= set(own[: (masks + FOLDS - 1 - fold) // FOLDS])
    bare = set(studies["study_uid"]) - kept
    studies.loc[studies["study_uid"].isin(bare), "has_mask"] = False
    columns = [*MASK_COLUMNS, *SPINE_BOX_COLUMNS]
    slices.loc[slices["study_uid"].isin(bare), columns] = np.nan
    write_table(studies, paths.table("studies"), "studies", f"{masks} masks")
    write_table(slices, paths.table("slices"), "slices", f"{masks} masks")
    return paths


def main() -> None:
    """Train and judge; one line for each number of masks and start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=60)
    parser.add_argument("--masks", type=int, nargs="+", default=[54, 20, 5, 0])
    parser.add_argument("--epochs", type=int, default=8, help="with the first number of masks")
    parser.add_argument("--seed", type=int, default=181)
    args = parser.parse_args()
    tune_process()
    config = world(args.out, args.studies, args.seed)
    competition = write_competition(config.competition.dir, config.competition.phantom, jobs=1)
    whole, truth = RunPaths(args.out / "whole"), read_truth(competition, "train")
    prepare(config, whole)
    for masks in args.masks:
        epochs = round(args.epochs * args.masks[0] / masks) if masks else 1
        for start in ("finder", None) if masks else ("finder",):
            paths = arm(whole, args.out / f"{masks}_{start}", masks)
            stage = config.vertebra.model_copy(update={"weights": start, "epochs": epochs})
            make_levels(config.model_copy(update={"vertebra": stage}), paths)
            levels, fold_of = (
                read_table(paths.table("levels"), "levels"),
                open_inputs(paths).fold_of,
            )
            own = levels[levels["study_uid"].map(fold_of) == levels["model_fold"]]
            found = figures(judge(own, truth))
            told = ", ".join(f"{name} {value:g}" for name, value in found.items())
            sys.stdout.write(f"{masks:3d} masks, starts from {start}, {epochs} epochs: {told}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

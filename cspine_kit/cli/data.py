"""Verbs of the data room: tables, splits, volumes, and a look at one study.

In: a config, or a folder of DICOM files. Out: tables and volumes under `oof/<name>/`, or text.
Example: `cspine cache --config configs/demo.yaml`.
"""

import argparse
import json
from pathlib import Path

from cspine_kit.cli.verb import DEMO, Verb, config_argument, ensure_competition, open_run


def _index(args: argparse.Namespace) -> int:
    from cspine_kit.data.stages import run_index

    config, paths = open_run(args, makes="oof")
    ensure_competition(config)
    run_index(config, paths)
    return 0


def _folds(args: argparse.Namespace) -> int:
    from cspine_kit.data.stages import run_folds, run_index

    config, paths = open_run(args, makes="oof")
    ensure_competition(config)
    run_index(config, paths)
    run_folds(config, paths)
    print(f"folds in {paths.folds}")
    return 0


def _cache_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument(
        "--shard-gb", type=float, metavar="GB", help="lay volumes into folders of at most this size"
    )


def _cache(args: argparse.Namespace) -> int:
    from cspine_kit.data.stages import prepare, run_fine, run_shards

    config, paths = open_run(args, makes="oof")
    ensure_competition(config)
    prepare(config, paths)
    if paths.table("levels").exists():
        run_fine(config, paths)
    if args.shard_gb is not None:
        run_shards(config, paths, args.shard_gb)
    return 0


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="DICOM files, a .zip of them, or a NIfTI file"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--png", type=Path, metavar="FILE", help="axial, sagittal, coronal view")


def _inspect(args: argparse.Namespace) -> int:
    from cspine_kit.data.inspect import inspect_study

    facts, study = inspect_study(args.folder)
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        for name, value in facts.items():
            if name not in ("problems", "unusable_files", "left_out"):
                print(f"{name:20s} {value}")
                continue
            print(f"{name:20s} {len(value)}")
            for line in value:
                print(f"  {line}: {value[line]}" if isinstance(value, dict) else f"  {line}")
    if args.png is not None:
        from cspine_kit.show.study import draw_study

        draw_study(study, args.png)
    return 0


VERBS = {
    "index": Verb(
        "geometry-true study and slice tables", f"cspine index {DEMO}", config_argument, _index
    ),
    "folds": Verb(
        "grouped, stratified folds as a CSV", f"cspine folds {DEMO}", config_argument, _folds
    ),
    "cache": Verb(
        "compact volumes of every study: coarse ones, and fine ones where there are levels",
        f"cspine cache {DEMO}; cspine cache {DEMO} --shard-gb 18",
        _cache_arguments,
        _cache,
    ),
    "inspect": Verb(
        "what a study holds and what is wrong with it",
        "cspine inspect train_images/1.2.826.0.1.3680043.6200 --png study.png; "
        "cspine inspect scan.nii.gz --json",
        _inspect_arguments,
        _inspect,
    ),
}

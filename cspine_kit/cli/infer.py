"""Verbs of the infer room: the kernel, and the levels of one study."""

import argparse
import json
import sys
from pathlib import Path

from cspine_kit.cli.verb import SUBMISSIONS, Verb, config_argument, open_run
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.paths import SUBMISSION


def _kernel_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser, required=False)
    parser.add_argument("--competition", type=Path, metavar="DIR")
    parser.add_argument("--bundle", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--hours", type=float, metavar="H", help="time limit; else the bundle's")


def _kernel(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.infer.run import run_kernel, run_kernel_of

    if args.config is not None:
        config, paths = open_run(args)
        out = SUBMISSIONS / config.name / SUBMISSION
        print(run_kernel_of(config, paths.bundle, out))
        return 0
    if not (args.competition and args.bundle and args.out):
        raise ConfigError("kernel needs --competition, --bundle and --out, or --config")
    report = run_kernel(args.competition, args.bundle, args.out, hours=args.hours)
    print(report.summary())
    return 0


def _levels_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw them on the sagittal view")


def _levels(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.data.reader.problems import explain
    from cspine_kit.infer.levels import study_levels

    found = study_levels(args.folder, args.bundle)
    result = found.as_dict()
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{'level':6s} {'slices':>11s} {'center z mm':>12s} {'confidence':>11s}  source")
        for level, row in result["levels"].items():
            slices = f"{row['first_slice']}..{row['last_slice']}"
            print(
                f"{level:6s} {slices:>11s} {row['center_z_mm']:12.1f} {row['confidence']:11.3f}"
                f"  {row['source']}"
            )
        for level in found.unseen:
            print(f"{level}: no slice shows it; placed by counting")
        for line in explain(found.geometry.problems):
            print(line)
    if args.png is not None:
        from cspine_kit.show.levels import draw_levels

        draw_levels(found, args.png)
    for line in found.warnings:
        print(f"not to be relied on: {line}", file=sys.stderr)
    return 1 if found.warnings else 0


VERBS = {
    "kernel": Verb(
        "run the very inference that Kaggle runs",
        "cspine kernel --competition DIR --bundle DIR --out submission.csv",
        _kernel_arguments,
        _kernel,
    ),
    "levels": Verb(
        "decoded vertebra levels of one study",
        "cspine levels FOLDER --bundle oof/demo/bundle --png levels.png",
        _levels_arguments,
        _levels,
    ),
}

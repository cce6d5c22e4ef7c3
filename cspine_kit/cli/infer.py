"""Verbs of the infer room: the kernel, any folders judged, and the levels of one study.

In: a competition and a bundle, or folders of DICOM files. Out: a submission, judgments, or levels.
Example: `cspine kernel --config configs/demo.yaml`.
"""

import argparse
import json
import sys
from pathlib import Path

from cspine_kit.cli.verb import (
    CANNOT_JUDGE,
    DEMO,
    SUBMISSIONS,
    Verb,
    config_argument,
    open_run,
    phantom_argument,
)
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.paths import SUBMISSION


def _hours(text: str) -> float:
    """A time limit that leaves some time."""
    hours = float(text)
    if not hours > 0:
        raise argparse.ArgumentTypeError(f"a time limit must be above 0 hours, got {text}")
    return hours


def _kernel_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser, required=False)
    parser.add_argument("--competition", type=Path, metavar="DIR", help="else the config's")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="else the config's")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"else submissions/<name>/{SUBMISSION}"
    )
    parser.add_argument("--hours", type=_hours, metavar="H", help="time limit; else the bundle's")


def _kernel(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.infer.run import run_kernel, run_kernel_once

    if args.config is not None:
        config, paths = open_run(args)
        competition = args.competition or config.competition.dir
        out = args.out or SUBMISSIONS / config.name / SUBMISSION
        print(run_kernel_once(competition, args.bundle or paths.bundle, out, hours=args.hours))
        return 0
    if not (args.competition and args.bundle and args.out):
        raise ConfigError("kernel needs --competition, --bundle and --out, or --config")
    report = run_kernel(args.competition, args.bundle, args.out, hours=args.hours)
    print(report.summary())
    report.require_predictions()
    return 0


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="DICOM files, a .zip of them, or a NIfTI file",
    )
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dicom-seg", action="store_true", help="levels as DICOM segmentation")
    parser.add_argument("--dicom-sr", action="store_true", help="DICOM structured report, TID 1500")
    phantom_argument(parser)


def _predict(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.infer.judgment import USE
    from cspine_kit.infer.origin import note_of, origin_of
    from cspine_kit.show.exports.predictions import SUMMARY, Wanted, predict_folders

    wanted = Wanted(
        *(args.bundle, args.out, args.dicom_seg, args.dicom_sr),
        phantom_bundle=args.phantom_bundle,
    )
    done = predict_folders(args.folders, wanted)
    for line in (USE, note_of(origin_of(args.bundle))):
        print(line, end="\n" if line else "", file=sys.stderr)
    for one in done:
        told = f"{one.status}: {one.reason}" if one.reason else one.status
        print(f"{one.path}: {told}{' (finished before)' if one.skipped else ''}")
    print(f"{len(done)} studies in {args.out / SUMMARY}")
    return 0 if all(one.status == "ok" for one in done) else CANNOT_JUDGE


def _levels_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="DICOM files, a .zip of them, or a NIfTI file"
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="whose models; else the finder that ships"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw them on the sagittal view")


def _levels(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.data.reader.problems import explain
    from cspine_kit.infer.levels import study_levels
    from cspine_kit.infer.origin import NOTE_OF_FINDER, note_of, origin_of

    found = study_levels(args.folder, args.bundle)
    result = found.as_dict()
    if note := note_of(origin_of(args.bundle)) if args.bundle else NOTE_OF_FINDER:
        print(note, file=sys.stderr)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{'level':6s} {'slices':>11s} {'center z mm':>12s} {'confidence':>11s}  source")
        for level, row in result["levels"].items():
            if not row["in_scan"]:
                print(f"{level:6s} {'not in scan':>11s}")
                continue
            slices = f"{row['first_slice']}..{row['last_slice']}"
            print(
                f"{level:6s} {slices:>11s} {row['center_z_mm']:12.1f} {row['confidence']:11.3f}"
                f"  {row['source']}"
            )
        for level in found.counted:
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
        f"cspine kernel {DEMO}; cspine kernel --competition DIR --bundle DIR --out submission.csv",
        _kernel_arguments,
        _kernel,
    ),
    "predict": Verb(
        "eight probabilities of any scans as JSON; finished ones are skipped",
        "cspine predict FOLDER --bundle oof/demo/bundle --out predictions; "
        "cspine predict scans/* --bundle DIR --out predictions --dicom-seg --dicom-sr",
        _predict_arguments,
        _predict,
    ),
    "levels": Verb(
        "decoded vertebra levels of one study",
        "cspine levels FOLDER --png levels.png; cspine levels scan.nii.gz --json; "
        "cspine levels FOLDER --bundle oof/demo/bundle",
        _levels_arguments,
        _levels,
    ),
}

"""Verbs of the show room: scores, ledger, the state of a run, its report, studies explained.

In: a config, a submission or folders. Out: text, JSON, a page or a PNG.
Example: `cspine info --config configs/demo.yaml`.
"""

import argparse
import json
import sys
from pathlib import Path

from cspine_kit.cli.verb import (
    CANNOT_JUDGE,
    DEMO,
    OOF_ROOT,
    SUBMISSIONS,
    Verb,
    config_argument,
    ensure_competition,
    no_arguments,
    open_run,
    phantom_argument,
)
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.paths import RESULTS


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="submission.csv")
    parser.add_argument("--truth", type=Path, metavar="CSV", help="train.csv's shape or row_id,...")
    parser.add_argument("--json", action="store_true")
    config_argument(parser, required=False)


def _score(args: argparse.Namespace) -> int:
    if args.config is not None:
        from cspine_kit.show.results import run_results

        config, paths = open_run(args)
        text = run_results(config, paths, SUBMISSIONS)
        if args.json:
            import pandas as pd

            table = pd.read_csv(SUBMISSIONS / config.name / RESULTS)
            text = table.to_json(orient="records", indent=2)
        print(text)
        return 0
    if args.file is None or args.truth is None:
        raise ConfigError("score needs FILE and --truth, or --config")
    from cspine_kit.infer.score import score_submission

    score = score_submission(args.file, args.truth)
    if args.json:
        print(json.dumps(score, indent=2))
        return 0
    for form, letter in (("per_exam", "A, per exam"), ("global", "B, global")):
        low, high = score[f"metric_{form}_interval"]
        value = score[f"metric_{form}"]
        print(f"metric {letter:12s} {value:.4f}  (95 % interval {low:.4f} to {high:.4f})")
    print(f"studies {score['n_studies']}; plain log loss per target:")
    for target, loss in score["per_target"].items():
        print(f"  {target:16s} {loss:.4f}")
    return 0


def _leaderboard(args: argparse.Namespace) -> int:
    from cspine_kit.show.leaderboard import read_ledger, render

    print(render(read_ledger(SUBMISSIONS / "leaderboard.csv")))
    return 0


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser, required=False)
    parser.add_argument("--json", action="store_true")


def _info(args: argparse.Namespace) -> int:
    from cspine_kit.show.info import describe, render

    state = describe(args.config or Path("configs/demo.yaml"), OOF_ROOT, SUBMISSIONS)
    print(json.dumps(state, indent=2) if args.json else render(state))
    return 0


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: oof/<name>/report.html")


def _report(args: argparse.Namespace) -> int:
    from cspine_kit.show.info import describe
    from cspine_kit.show.report.page import write_report
    from cspine_kit.show.report.run import Run

    config, paths = open_run(args)
    state = describe(args.config, OOF_ROOT, SUBMISSIONS)
    out = args.out or paths.report
    print(f"{write_report(Run(config, paths, SUBMISSIONS), state, out)}: {out.resolve()}")
    return 0


def _montage_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="study folders")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG")


def _montage(args: argparse.Namespace) -> int:
    from cspine_kit.data.reader.dicom import read_study
    from cspine_kit.show.study import write_montage

    studies = [read_study(folder) for folder in args.folders]
    write_montage(args.out, studies)
    print(f"{len(studies)} studies in {args.out}")
    return 0


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="DICOM files, a .zip of them, or a NIfTI file"
    )
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    phantom_argument(parser)


def _explain(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.infer.judgment import USE
    from cspine_kit.infer.predictor import Predictor
    from cspine_kit.show.explain.page import write_explanation

    predictor = Predictor(args.bundle, phantom_bundle=args.phantom_bundle)
    explained = write_explanation(predictor, args.folder, args.out)
    print("\n".join([USE, *explained.judgment.notes]), file=sys.stderr)
    if explained.page is None:
        print(f"cannot judge: {explained.judgment.reason}", file=sys.stderr)
        return CANNOT_JUDGE
    print(explained.page.resolve())
    return 0


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="scans, each named")
    parser.add_argument(
        "--labels", type=Path, required=True, metavar="CSV", help="train.csv's shape, ids as named"
    )
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    phantom_argument(parser)


def _evaluate(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.infer.judgment import USE
    from cspine_kit.show.evaluation.page import write_evaluation
    from cspine_kit.show.exports.predictions import Wanted

    wanted = Wanted(args.bundle, args.out, phantom_bundle=args.phantom_bundle)
    page = write_evaluation(args.folders, args.labels, wanted)
    print(USE, file=sys.stderr)
    print(page.resolve())
    return 0


def _viewer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--port", type=int, default=8017, metavar="N", help="0: any that is free")
    parser.add_argument("--phantoms", type=Path, metavar="DIR", help="phantom studies to pick from")


def _viewer(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.infer.judgment import USE
    from cspine_kit.show.viewer.server import Server

    with Server(args.bundle, port=args.port, phantoms=args.phantoms) as server:
        print(f"{USE}\nopen {server.url} (this machine only); Ctrl-C ends it", flush=True)
        server.wait()
    return 0


def _ablate_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument(
        "--grid", type=Path, required=True, metavar="FILE", help="YAML under configs/grids/"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        choices=range(1, 10),
        default=1,
        metavar="N",
        help="times that every row is made, with other seeds of the members; default: 1",
    )


def _ablate(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.show.ablation.grid import read_grid
    from cspine_kit.show.ablation.run import ablate, check_rows
    from cspine_kit.show.ablation.table import render

    rows = read_grid(args.config, args.grid)
    check_rows(rows)
    config, paths = open_run(args)
    ensure_competition(config)
    table = ablate(config, paths, rows, args.grid.stem, seeds=args.seeds)
    print(render(table))
    print(f"{paths.ablation / args.grid.stem}.csv and .svg; make report shows them too")
    return 1 if (table["fault"] != "").any() else 0


VERBS = {
    "score": Verb(
        "metric A and B of a submission; with --config the results table and a ledger row",
        f"cspine score {DEMO}; cspine score submission.csv --truth solution.csv --json",
        _score_arguments,
        _score,
        apart={"--config": ("FILE", "--truth")},
    ),
    "leaderboard": Verb(
        "local ledger beside the real final leaderboard",
        "cspine leaderboard",
        no_arguments,
        _leaderboard,
    ),
    "info": Verb("what exists, what is stale, what is next", "cspine info", _info_arguments, _info),
    "ablate": Verb(
        "one change of a config at a time, each scored out-of-fold beside the config; resumable",
        f"cspine ablate {DEMO} --grid configs/grids/crop.yaml --seeds 2",
        _ablate_arguments,
        _ablate,
    ),
    "report": Verb(
        "one page that shows a run, whatever its state: checks, then figures",
        f"cspine report {DEMO}; cspine report {DEMO} --out report.html",
        _report_arguments,
        _report,
    ),
    "explain": Verb(
        "one scan explained: where networks looked, the spine in 3D, NIfTI for other viewers",
        "cspine explain FOLDER --bundle oof/demo/bundle --out explained",
        _explain_arguments,
        _explain,
    ),
    "evaluate": Verb(
        "what a bundle is worth on scans whose truth is known: one page, with intervals",
        "cspine evaluate scans/* --labels truth.csv --bundle DIR --out evaluated",
        _evaluate_arguments,
        _evaluate,
    ),
    "viewer": Verb(
        "a page on this machine: drop a scan, see what is said of it, nothing is kept",
        "cspine viewer --bundle oof/demo/bundle --phantoms oof/demo/competition/test_images",
        _viewer_arguments,
        _viewer,
    ),
    "montage": Verb(
        "several studies side by side: sagittal, coronal and axial views",
        "cspine montage train_images/1.2.826.0.1.3680043.6200 real_ct --out montage.png",
        _montage_arguments,
        _montage,
    ),
}

"""The console script `cspine`: thin verbs that load, call and print.

In: arguments. Out: exit status 0, 1 (an error the kit explains), 2 (invalid submission or usage),
130 (interrupted; the next run resumes). Example: `cspine oof --config configs/demo.yaml`.

A verb imports its room inside itself, so that `cspine --help` and `cspine info` answer at once.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspine_kit import __version__
from cspine_kit.core.errors import ConfigError, CSpineError, SubmissionError

OOF_ROOT, SUBMISSIONS = Path("oof"), Path("submissions")


@dataclass(frozen=True)
class Verb:
    """One sub-command: what it does, an example, its arguments and its action."""

    summary: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    action: Callable[[argparse.Namespace], int]


def _config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--config", type=Path, required=required, metavar="FILE", help="YAML under configs/"
    )


def _open(args: argparse.Namespace) -> tuple[Any, Any]:
    """The config and its run folder; writes the resolved config that everything below reads."""
    from cspine_kit.core.config import load_config, resolved_yaml
    from cspine_kit.core.paths import RunPaths
    from cspine_kit.core.runs import publish

    config = load_config(args.config)
    paths = RunPaths(OOF_ROOT / config.name)
    text = resolved_yaml(config)
    if not paths.resolved_config.exists() or paths.resolved_config.read_text() != text:
        with publish(paths.resolved_config) as temporary:
            temporary.write_text(text)
    return config, paths


def _ensure_competition(config: Any) -> None:
    """Write the phantom competition where the config asks for one and it is not there yet."""
    if config.competition.phantom is not None:
        from cspine_kit.phantom.competition import write_competition

        write_competition(
            config.competition.dir, config.competition.phantom, jobs=config.execution.jobs
        )


def _phantom_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--studies", type=int, default=20, metavar="N", help="training studies")
    parser.add_argument("--test-studies", type=int, default=5, metavar="M")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--size", type=int, metavar="PX", help="rows and columns (512; with --hostile 64)"
    )
    parser.add_argument(
        "--hostile", action="store_true", help="one test study per defect, and manifest.csv"
    )
    parser.add_argument("--difficulty", choices=["easy", "real"], default="real")
    parser.add_argument("--masked", type=float, default=0.5, metavar="SHARE")
    parser.add_argument("--boxed", type=float, default=0.5, metavar="SHARE")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 = the usable cores")


def _phantom(args: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from cspine_kit.core.config import PhantomConfig
    from cspine_kit.phantom.competition import write_competition

    if args.hostile:
        from cspine_kit.phantom.hostile import write_hostile

        write_hostile(args.out, seed=args.seed, size_px=args.size or 64, jobs=args.jobs)
        print(f"hostile competition in {args.out}; {args.out / 'manifest.csv'} says what is wrong")
        return 0
    try:
        spec = PhantomConfig(
            studies=args.studies,
            test_studies=args.test_studies,
            size_px=args.size if args.size is not None else 512,
            difficulty=args.difficulty,
            masked=args.masked,
            boxed=args.boxed,
            seed=args.seed,
        )
    except ValidationError as error:
        faults = [f"{e['loc'][0]}: {e['msg']} (got {e['input']})" for e in error.errors()]
        raise ConfigError("phantom: " + "; ".join(faults)) from error
    write_competition(args.out, spec, jobs=args.jobs)
    print(f"phantom competition in {args.out}")
    return 0


def _index(args: argparse.Namespace) -> int:
    from cspine_kit.data.stages import run_index

    config, paths = _open(args)
    _ensure_competition(config)
    run_index(config, paths)
    return 0


def _folds(args: argparse.Namespace) -> int:
    from cspine_kit.data.stages import run_folds, run_index

    config, paths = _open(args)
    _ensure_competition(config)
    run_index(config, paths)
    run_folds(config, paths)
    print(f"folds in {paths.folds}")
    return 0


def _cache(args: argparse.Namespace) -> int:
    from cspine_kit.data.stages import prepare

    config, paths = _open(args)
    _ensure_competition(config)
    prepare(config, paths)
    return 0


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--member", required=True, help="a member's name, or vertebra")
    parser.add_argument("--fold", type=int, help="one fold; all of them where it is left out")


def _train(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.data.stages import prepare
    from cspine_kit.vision.oof import train_member

    config, paths = _open(args)
    _ensure_competition(config)
    prepare(config, paths)
    for fold in range(config.folds.n) if args.fold is None else [args.fold]:
        train_member(config, paths, args.member, fold)
    return 0


def _oof(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.data.stages import prepare
    from cspine_kit.ship.plan import describe_plan

    config, paths = _open(args)
    print(describe_plan(config))
    _ensure_competition(config)
    prepare(config, paths)
    from cspine_kit.vision.oof import run_oof

    run_oof(config, paths)
    print(f"out-of-fold slice table in {paths.table('oof_slices')}")
    return 0


def _stack_arguments(parser: argparse.ArgumentParser) -> None:
    _config(parser, required=False)
    parser.add_argument("--headers", type=Path, metavar="PARQUET", help="stack headers alone")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="with --headers: train.csv")
    parser.add_argument("--out", type=Path, metavar="DIR", help="with --headers: where results go")
    parser.add_argument("--seed", type=int, default=0, help="with --headers: first fold seed")
    parser.add_argument("--jobs", type=int, default=0, help="with --headers: folds at once")
    parser.add_argument("--json", action="store_true")


def _stack_headers(args: argparse.Namespace) -> int:
    from cspine_kit.stack.headers import run_headers

    if args.labels is None or args.out is None:
        raise ConfigError("stack --headers needs --labels CSV and --out DIR as well")
    result = run_headers(args.headers, args.labels, args.out, seed=args.seed, jobs=args.jobs)
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    repeats = len(result["fold_seeds"])
    print(f"{result['n_studies']} studies, out-of-fold, mean over {repeats} fold seeds")
    for model, score in result["models"].items():
        print(f"  {model:24s} A {score['per_exam']:.4f}  B {score['global']:.4f}")
    print(
        f"{args.out / 'predictions.parquet'}: metric_per_exam {result['metric_per_exam']:.4f}, "
        f"metric_global {result['metric_global']:.4f}"
    )
    return 0


def _stack(args: argparse.Namespace) -> int:
    if args.headers is not None:
        return _stack_headers(args)
    if args.config is None:
        raise ConfigError("stack needs --config, or --headers with --labels and --out")
    from cspine_kit.stack.pipeline import run_stack

    config, paths = _open(args)
    scores = run_stack(config, paths)
    if args.json:
        print(scores.to_json(orient="records", indent=2))
        return 0
    from cspine_kit.stack.scores import render_scores

    print(render_scores(scores))
    return 0


def _bundle_arguments(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: oof/<name>/bundle")
    parser.add_argument("--kernel-folder", type=Path, default=Path("kernels/submit"), metavar="DIR")


def _bundle(args: argparse.Namespace) -> int:
    from cspine_kit.ship.bundle import build_bundle, write_kernel_metadata

    config, paths = _open(args)
    out = args.out or paths.bundle
    manifest = build_bundle(config, paths, out)
    write_kernel_metadata(config, args.kernel_folder)
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    print(f"bundle in {out}: {len(manifest['files'])} files, {size / 1e6:.1f} MB")
    print(f"kernel in {args.kernel_folder}")
    return 0


def _kernel_arguments(parser: argparse.ArgumentParser) -> None:
    _config(parser, required=False)
    parser.add_argument("--competition", type=Path, metavar="DIR")
    parser.add_argument("--bundle", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FILE")


def _kernel(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.ship.kernel import run_kernel, run_kernel_of

    if args.config is not None:
        config, paths = _open(args)
        out = SUBMISSIONS / config.name / "submission.csv"
        print(run_kernel_of(config, paths.bundle, out))
        return 0
    if not (args.competition and args.bundle and args.out):
        raise ConfigError("kernel needs --competition, --bundle and --out, or --config")
    report = run_kernel(args.competition, args.bundle, args.out)
    print(report.summary())
    return 0


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="submission.csv")
    parser.add_argument("--truth", type=Path, metavar="CSV", help="train.csv's shape or row_id,...")
    parser.add_argument("--json", action="store_true")
    _config(parser, required=False)


def _score(args: argparse.Namespace) -> int:
    if args.config is not None:
        from cspine_kit.ship.results import run_results

        config, paths = _open(args)
        print(run_results(config, paths, SUBMISSIONS))
        return 0
    if args.file is None or args.truth is None:
        raise ConfigError("score needs FILE and --truth, or --config")
    from cspine_kit.ship.submission import score_submission

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
    from cspine_kit.ship.leaderboard import read_ledger, render

    print(render(read_ledger(SUBMISSIONS / "leaderboard.csv")))
    return 0


def _probes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", type=Path, required=True, metavar="CSV", help="train.csv")
    parser.add_argument("--test", type=Path, required=True, metavar="CSV", help="test.csv")
    parser.add_argument("--out", type=Path, default=SUBMISSIONS / "probes", metavar="DIR")
    parser.add_argument("--json", action="store_true")


def _probes(args: argparse.Namespace) -> int:
    from cspine_kit.ship.probes import write_probes

    probes = write_probes(args.labels, args.test, args.out)
    print(probes.expected.to_json(orient="records", indent=2) if args.json else probes.text)
    return 0


def _levels_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw them on the sagittal view")


def _levels(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.ship.levels import draw_levels, study_levels

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
    if args.png is not None:
        draw_levels(found, args.png)
    return 0


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--png", type=Path, metavar="FILE", help="axial, sagittal, coronal view")


def _inspect(args: argparse.Namespace) -> int:
    from cspine_kit.data.inspect import draw_study, inspect_study

    facts, study = inspect_study(args.folder)
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        for name, value in facts.items():
            several = isinstance(value, dict) and name in ("problems", "unusable_files")
            print(f"{name:20s} {len(value) if several else value}")
            if several:
                for key, text in value.items():
                    print(f"  {key}: {text}")
    if args.png is not None:
        draw_study(study, args.png)
    return 0


def _montage_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="study folders")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG")


def _montage(args: argparse.Namespace) -> int:
    from cspine_kit.data.dicom import read_study
    from cspine_kit.phantom.montage import write_montage

    studies = [read_study(folder) for folder in args.folders]
    rows = [(s.study_uid, s.hu, s.spacing_mm) for s in studies]
    write_montage(args.out, rows)
    print(f"{len(rows)} studies in {args.out}")
    return 0


def _headers_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slices", type=Path, required=True, metavar="FILE", help="slice headers")
    parser.add_argument("--presence", type=Path, required=True, metavar="CSV", help="C1..C7 0/1")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV or parquet")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")


def _headers(args: argparse.Namespace) -> int:
    from cspine_kit.stack.vertebra_headers import render, run_vertebra_headers

    result = run_vertebra_headers(
        args.slices, args.presence, args.out, folds=args.folds, seed=args.seed
    )
    print(json.dumps(result, indent=2) if args.json else render(result))
    return 0


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    _config(parser, required=False)
    parser.add_argument("--json", action="store_true")


def _info(args: argparse.Namespace) -> int:
    from cspine_kit.ship.info import describe, render

    state = describe(args.config or Path("configs/demo.yaml"), OOF_ROOT, SUBMISSIONS)
    print(json.dumps(state, indent=2) if args.json else render(state))
    return 0


def _nothing(parser: argparse.ArgumentParser) -> None:
    """A verb without arguments."""


DEMO = "--config configs/demo.yaml"

VERBS: dict[str, Verb] = {
    "phantom": Verb(
        "write a synthetic competition in the RSNA 2022 layout",
        "cspine phantom --out data/phantom --studies 20 --test-studies 5 --seed 1 --size 256",
        _phantom_arguments,
        _phantom,
    ),
    "index": Verb("geometry-true study and slice tables", f"cspine index {DEMO}", _config, _index),
    "folds": Verb("grouped, stratified folds as a CSV", f"cspine folds {DEMO}", _config, _folds),
    "cache": Verb("one compact volume per study", f"cspine cache {DEMO}", _config, _cache),
    "train": Verb(
        "train one fold model, resumable",
        f"cspine train {DEMO} --member vertebra --fold 0",
        _train_arguments,
        _train,
    ),
    "oof": Verb(
        "everything missing up to the out-of-fold slice table", f"cspine oof {DEMO}", _config, _oof
    ),
    "stack": Verb(
        "aggregated statistics, nested LightGBM stack, score table; or a stack on headers alone",
        f"cspine stack {DEMO}; cspine stack --headers H.parquet --labels train.csv --out DIR",
        _stack_arguments,
        _stack,
    ),
    "bundle": Verb(
        "offline Kaggle dataset and kernel folder",
        f"cspine bundle {DEMO}",
        _bundle_arguments,
        _bundle,
    ),
    "kernel": Verb(
        "run the very inference that Kaggle runs",
        "cspine kernel --competition DIR --bundle DIR --out submission.csv",
        _kernel_arguments,
        _kernel,
    ),
    "score": Verb(
        "metric A and B of a submission; with --config the results table and a ledger row",
        "cspine score submission.csv --truth solution.csv --json",
        _score_arguments,
        _score,
    ),
    "probes": Verb(
        "two constant submissions that would settle the server's metric form",
        "cspine probes --labels train.csv --test test.csv --out submissions/probes",
        _probes_arguments,
        _probes,
    ),
    "leaderboard": Verb(
        "local ledger beside the real final leaderboard",
        "cspine leaderboard",
        _nothing,
        _leaderboard,
    ),
    "levels": Verb(
        "decoded vertebra levels of one study",
        "cspine levels FOLDER --bundle oof/demo/bundle --png levels.png",
        _levels_arguments,
        _levels,
    ),
    "inspect": Verb(
        "what a study holds and what is wrong with it",
        "cspine inspect train_images/1.2.826.0.1.3680043.6200 --png study.png",
        _inspect_arguments,
        _inspect,
    ),
    "montage": Verb(
        "several studies side by side: sagittal, coronal and axial views",
        "cspine montage train_images/1.2.826.0.1.3680043.6200 real_ct --out montage.png",
        _montage_arguments,
        _montage,
    ),
    "headers": Verb(
        "which vertebrae a slice shows, from DICOM headers alone",
        "cspine headers --slices slice_headers.parquet --presence presence.csv --out v.csv",
        _headers_arguments,
        _headers,
    ),
    "info": Verb("what exists, what is stale, what is next", "cspine info", _info_arguments, _info),
}


def build_parser() -> argparse.ArgumentParser:
    """The argument parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="cspine", description="Cervical spine fractures in CT: from studies to a submission."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=verb.summary,
            description=verb.summary[0].upper() + verb.summary[1:] + ".",
            epilog=f"example: {verb.example}",
        )
        verb.arguments(sub)
        sub.set_defaults(action=verb.action)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the kit's own errors are printed without a traceback."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        status: int = args.action(args)
    except SubmissionError as error:
        print(f"invalid submission: {error}", file=sys.stderr)
        return 2
    except CSpineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    return status

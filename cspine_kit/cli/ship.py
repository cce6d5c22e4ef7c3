"""Verbs of the ship room: bundle, push, kernel, scores, ledger, levels, state of a run."""

import argparse
import json
from pathlib import Path

from cspine_kit.cli.verb import (
    DEMO,
    OOF_ROOT,
    SUBMISSIONS,
    Verb,
    config_argument,
    ensure_competition,
    no_arguments,
    open_run,
)
from cspine_kit.core.errors import ConfigError

CONSTRAINTS = Path("constraints-kaggle.txt")


def _bundle_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: oof/<name>/bundle")
    parser.add_argument("--kernel-folder", type=Path, default=Path("kernels/submit"), metavar="DIR")


def _bundle(args: argparse.Namespace) -> int:
    from cspine_kit.ship.bundle import build_bundle, sizes_of, write_kernel_metadata
    from cspine_kit.ship.constraints import write_probe_metadata

    config, paths = open_run(args)
    out = args.out or paths.bundle
    score = build_bundle(config, paths, out)["score"]
    write_kernel_metadata(config, args.kernel_folder)
    probe = args.kernel_folder.with_name("probe")
    if probe.is_dir():
        write_probe_metadata(config, probe)
    sizes = sizes_of(out)
    wheels = {name: size for name, size in sizes.items() if name.endswith(".whl")}
    print(f"bundle in {out}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")
    print(f"  of which wheels {sum(wheels.values()) / 1e6:.1f} MB: {', '.join(sorted(wheels))}")
    print(
        f"  ships {score['model']}, out-of-fold A {score['per_exam']:.4f} B {score['global']:.4f}"
    )
    print(f"kernel in {args.kernel_folder}")
    return 0


def _push_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument("--kernel-folder", type=Path, default=Path("kernels/submit"), metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent")
    parser.add_argument("--submit", action="store_true", help="also submit to the competition")
    parser.add_argument("--message", metavar="TEXT", help="of the dataset version and submission")


def _push(args: argparse.Namespace) -> int:
    from cspine_kit.ship.push import dry_run, push

    config, paths = open_run(args)
    if args.dry_run:
        print(dry_run(config, paths, args.kernel_folder))
        return 0
    print(push(config, paths, args.kernel_folder, submitting=args.submit, message=args.message))
    return 0


def _kernel_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser, required=False)
    parser.add_argument("--competition", type=Path, metavar="DIR")
    parser.add_argument("--bundle", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--hours", type=float, metavar="H", help="time limit; else the bundle's")


def _kernel(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.ship.kernel import run_kernel, run_kernel_of

    if args.config is not None:
        config, paths = open_run(args)
        out = SUBMISSIONS / config.name / "submission.csv"
        print(run_kernel_of(config, paths.bundle, out))
        return 0
    if not (args.competition and args.bundle and args.out):
        raise ConfigError("kernel needs --competition, --bundle and --out, or --config")
    report = run_kernel(args.competition, args.bundle, args.out, hours=args.hours)
    print(report.summary())
    return 0


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="submission.csv")
    parser.add_argument("--truth", type=Path, metavar="CSV", help="train.csv's shape or row_id,...")
    parser.add_argument("--json", action="store_true")
    config_argument(parser, required=False)


def _score(args: argparse.Namespace) -> int:
    if args.config is not None:
        from cspine_kit.ship.results import run_results

        config, paths = open_run(args)
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


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser, required=False)
    parser.add_argument("--json", action="store_true")


def _info(args: argparse.Namespace) -> int:
    from cspine_kit.ship.info import describe, render

    state = describe(args.config or Path("configs/demo.yaml"), OOF_ROOT, SUBMISSIONS)
    print(json.dumps(state, indent=2) if args.json else render(state))
    return 0


def _rehearse_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="default: oof/<name>/bundle")
    parser.add_argument(
        "--environments", type=Path, default=OOF_ROOT / "rehearsal", metavar="DIR",
        help="where environments (several GB) and phantoms are kept between runs",
    )  # fmt: skip
    parser.add_argument("--constraints", type=Path, default=CONSTRAINTS, metavar="FILE")
    parser.add_argument("--python", type=Path, metavar="FILE", help="default: Kaggle's, else this")
    parser.add_argument("--clean", type=int, default=8, metavar="N", help="sound studies to score")
    parser.add_argument("--memory-gib", type=float, default=29.0)
    parser.add_argument("--minutes", type=float, default=60.0, help="time budget of each run")
    parser.add_argument("--guard", action="store_true", help="no namespaces, even where allowed")


def _rehearse(args: argparse.Namespace) -> int:
    from cspine_kit.core.config import PhantomConfig
    from cspine_kit.core.paths import Competition
    from cspine_kit.core.runs import publish
    from cspine_kit.phantom.competition import GENERATOR, write_competition
    from cspine_kit.phantom.hostile import write_hostile
    from cspine_kit.ship.constraints import read_pins
    from cspine_kit.ship.environment import build_environment
    from cspine_kit.ship.rehearsal_inputs import Inputs
    from cspine_kit.ship.rehearsal_page import render_page
    from cspine_kit.ship.rehearse import rehearse
    from cspine_kit.ship.sandbox import Sandbox, best_isolation

    config, paths = open_run(args)
    ensure_competition(config)
    full = write_competition(
        args.environments / f"full_{GENERATOR}",
        PhantomConfig(studies=1, test_studies=3, size_px=512, masked=0, boxed=0, seed=29),
    )
    hostile = write_hostile(args.environments / f"hostile_{GENERATOR}", seed=29)
    own = Competition(config.competition.dir) if config.competition.phantom else full
    out = paths.root / "rehearsal"
    result = rehearse(
        args.bundle or paths.bundle,
        Inputs(hostile, own, full, args.clean),
        build_environment(
            args.constraints, args.environments, python=args.python, extra=config.bundle.wheels
        ),
        Sandbox(out / "sandbox", "guard" if args.guard else best_isolation(), args.memory_gib),
        kernels=Path("kernels"),
        out=out,
        pins=read_pins(args.constraints),
        limit_s=60 * args.minutes,
    )
    page = paths.root / "rehearsal.md"
    with publish(page) as temporary:
        temporary.write_text(render_page(result))
    print(page.read_text())
    print(f"page in {page}; submissions, logs and outputs in {out}")
    return 0 if result.ok else 1


def _constraints_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="probe", type=Path, required=True, metavar="JSON", help="probe.json"
    )
    parser.add_argument("--out", type=Path, default=CONSTRAINTS, metavar="FILE")


def _constraints(args: argparse.Namespace) -> int:
    from cspine_kit.ship.constraints import refresh

    changes = refresh(args.probe, args.out)
    print("\n".join([f"{args.out}: {len(changes)} packages changed", *changes]))
    return 0


VERBS = {
    "bundle": Verb(
        "offline Kaggle dataset and kernel folder",
        f"cspine bundle {DEMO}",
        _bundle_arguments,
        _bundle,
    ),
    "push": Verb(
        "bundle and kernel to Kaggle, wait, fetch and check the output; resumes, never sends twice",
        "cspine push --config configs/rsna2022.yaml --dry-run",
        _push_arguments,
        _push,
    ),
    "kernel": Verb(
        "run the very inference that Kaggle runs",
        "cspine kernel --competition DIR --bundle DIR --out submission.csv",
        _kernel_arguments,
        _kernel,
    ),
    "rehearse": Verb(
        "run the bundle as Kaggle will: its packages, paths and limits, on hostile studies too",
        f"cspine rehearse {DEMO}",
        _rehearse_arguments,
        _rehearse,
    ),
    "constraints": Verb(
        "refresh the pins of Kaggle's image from a probe kernel's report",
        "cspine constraints --from probe.json",
        _constraints_arguments,
        _constraints,
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
        no_arguments,
        _leaderboard,
    ),
    "levels": Verb(
        "decoded vertebra levels of one study",
        "cspine levels FOLDER --bundle oof/demo/bundle --png levels.png",
        _levels_arguments,
        _levels,
    ),
    "info": Verb("what exists, what is stale, what is next", "cspine info", _info_arguments, _info),
}

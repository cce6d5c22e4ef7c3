"""Verbs of the ship room: bundle, push, rehearsal, Kaggle's pins, metric probes.

In: a config with a finished run. Out: the Kaggle dataset and kernel, here or there, and verdicts.
Example: `cspine push --config configs/demo.yaml --dry-run`.
"""

import argparse
from pathlib import Path

from cspine_kit.cli.verb import (
    DEMO,
    OOF_ROOT,
    SUBMISSIONS,
    Verb,
    config_argument,
    ensure_competition,
    open_run,
)

CONSTRAINTS = Path("constraints-kaggle.txt")


def _bundle_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: oof/<name>/bundle")
    parser.add_argument("--kernel-folder", type=Path, default=Path("kernels/submit"), metavar="DIR")


def _bundle(args: argparse.Namespace) -> int:
    from cspine_kit.phantom.competition.write import write_competition
    from cspine_kit.ship.bundle.build import (
        PROOF_PHANTOM,
        build_bundle,
        sizes_of,
        write_kernel_metadata,
    )
    from cspine_kit.ship.kaggle.owner import with_owner
    from cspine_kit.ship.kaggle.parcels import write_parcels
    from cspine_kit.ship.rehearsal.constraints import write_probe_metadata

    config, paths = open_run(args)
    named, out = with_owner(config), args.out or paths.bundle
    [proof] = (write_competition(paths.proof, PROOF_PHANTOM, jobs=1).root / "test_images").iterdir()
    score = build_bundle(config, paths, out, proof=proof)["score"]
    write_kernel_metadata(named, args.kernel_folder)
    probe = args.kernel_folder.with_name("probe")
    if probe.is_dir():
        write_probe_metadata(named, probe)
    sizes = sizes_of(out)
    wheels = {name: size for name, size in sizes.items() if name.endswith(".whl")}
    print(f"bundle in {out}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")
    print(f"  of which wheels {sum(wheels.values()) / 1e6:.1f} MB: {', '.join(sorted(wheels))}")
    print(
        f"  ships {score['model']}, out-of-fold A {score['per_exam']:.4f} B {score['global']:.4f}"
    )
    for parcel in write_parcels(named, out, out.with_name(paths.upload.name)):
        size = sum(parcel.sizes.values()) / 1e6
        print(f"  to Kaggle as {parcel.ref}: {parcel.folder}, {size:.1f} MB")
    print(f"kernel in {args.kernel_folder}")
    return 0


def _push_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument("--kernel-folder", type=Path, metavar="DIR", help="default: kernels/submit")
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent")
    parser.add_argument("--submit", action="store_true", help="also submit to the competition")
    parser.add_argument("--wait", action="store_true", help="and wait until it is scored")
    parser.add_argument(
        "--scores", action="store_true",
        help="send nothing: ask for the scores of what was submitted, for the ledger",
    )  # fmt: skip
    parser.add_argument("--message", metavar="TEXT", help="of the dataset version and submission")
    parser.add_argument(
        "--train", action="store_true",
        help="train on Kaggle in place of this machine, until nothing is left for cspine oof",
    )  # fmt: skip


def _push(args: argparse.Namespace) -> int:
    from cspine_kit.ship.kaggle.push import dry_run, fetch_scores, push
    from cspine_kit.ship.kaggle.scores import Scores
    from cspine_kit.show.leaderboard import add_scores

    if args.train:
        return _push_training(args)
    config, paths = open_run(args)
    kernel_folder = args.kernel_folder or Path("kernels/submit")
    what = {"submitting": args.submit, "message": args.message}
    if args.dry_run:
        print(dry_run(config, paths, kernel_folder, **what))
        return 0
    scores: Scores | None
    if args.scores:
        scores = fetch_scores(config, paths, kernel_folder)
        print(f"the submission: {scores}")
    else:
        outcome = push(config, paths, kernel_folder, wait=args.wait, **what)
        print(outcome.told)
        scores = outcome.scores
    if scores is not None and (scores.public is not None or scores.private is not None):
        ledger = SUBMISSIONS / "leaderboard.csv"
        add_scores(ledger, config.name, public=scores.public, private=scores.private)
        print(f"its scores are in {ledger}")
    return 0


def _push_training(args: argparse.Namespace) -> int:
    from cspine_kit.ship.training.push import dry_run, push_training
    from cspine_kit.show.plan import describe_plan, describe_sessions

    config, paths = open_run(args, makes=None if args.dry_run else "oof")
    print(f"{describe_plan(config)}\n{describe_sessions(config)}")
    if args.dry_run:
        print(dry_run(config, paths))
    else:
        print(push_training(config, paths, Path("kernels")))
    return 0


def _probes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", type=Path, required=True, metavar="CSV", help="train.csv")
    parser.add_argument("--test", type=Path, required=True, metavar="CSV", help="test.csv")
    parser.add_argument("--out", type=Path, default=SUBMISSIONS / "probes", metavar="DIR")
    parser.add_argument("--json", action="store_true")


def _probes(args: argparse.Namespace) -> int:
    from cspine_kit.ship.kaggle.probes import write_probes

    probes = write_probes(args.labels, args.test, args.out)
    print(probes.expected.to_json(orient="records", indent=2) if args.json else probes.text)
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
    from cspine_kit.phantom.competition.hostile import write_hostile
    from cspine_kit.phantom.competition.misfits import ALL_DEFECTS
    from cspine_kit.phantom.competition.write import GENERATOR, write_competition
    from cspine_kit.ship.bundle.wheelhouse import kept_wheels
    from cspine_kit.ship.rehearsal.constraints import read_pins
    from cspine_kit.ship.rehearsal.environment import build_environment
    from cspine_kit.ship.rehearsal.inputs import Inputs
    from cspine_kit.ship.rehearsal.page import render_page
    from cspine_kit.ship.rehearsal.rehearse import rehearse
    from cspine_kit.ship.rehearsal.sandbox import Sandbox, best_isolation

    config, paths = open_run(args)
    ensure_competition(config)
    full = write_competition(
        args.environments / f"full_{GENERATOR}",
        PhantomConfig(studies=1, test_studies=3, size_px=512, masked=0, boxed=0, seed=29),
    )
    hostile = write_hostile(args.environments / f"hostile_{GENERATOR}_{len(ALL_DEFECTS)}", seed=29)
    scans = write_competition(
        args.environments / f"training_{GENERATOR}",
        PhantomConfig(
            studies=4, test_studies=1, size_px=64, difficulty="easy", masked=1.0, boxed=0, seed=31
        ),
    )
    bundle, kept = args.bundle or paths.bundle, args.environments / "training_wheels"
    own = Competition(config.competition.dir) if config.competition.phantom else full
    out = paths.root / "rehearsal"
    result = rehearse(
        bundle,
        Inputs(hostile, own, full, args.clean),
        build_environment(
            args.constraints, args.environments, python=args.python, extra=config.bundle.wheels
        ),
        Sandbox(out / "sandbox", "guard" if args.guard else best_isolation(), args.memory_gib),
        kernels=Path("kernels"),
        out=out,
        pins=read_pins(args.constraints),
        scans=scans,
        wheels=[
            *sorted(bundle.glob("*.whl")),
            *kept_wheels(config.bundle, config.bundle.training, kept),
        ],
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
    from cspine_kit.ship.rehearsal.constraints import refresh

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
        "cspine push --config configs/rsna2022.yaml --dry-run; "
        "cspine push --config configs/rsna2022.yaml --train --dry-run",
        _push_arguments,
        _push,
        {"--train": ("--submit", "--wait", "--scores", "--message", "--kernel-folder")},
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
    "probes": Verb(
        "two constant submissions that would settle the server's metric form",
        "cspine probes --labels train.csv --test test.csv --out submissions/probes",
        _probes_arguments,
        _probes,
    ),
}

"""Verbs of the vision room: train fold models, run them out-of-fold.

In: a config. Out: models and tables under `oof/<name>/`.
Example: `cspine train --config configs/demo.yaml --member vertebra --fold 0`.
"""

import argparse
from pathlib import Path

from cspine_kit.cli.verb import DEMO, Verb, config_argument, ensure_competition, open_run
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.paths import FINDER, Competition


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument("--member", required=True, help="a member's name, or vertebra")
    parser.add_argument("--fold", type=int, help="one fold; all of them where it is left out")


def _train(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.core.config import load_config
    from cspine_kit.data.stages import prepare
    from cspine_kit.vision.check import check_config
    from cspine_kit.vision.oof.run import train_member
    from cspine_kit.vision.training.processes import main_first

    check_config(load_config(args.config))
    with main_first():
        config, paths = open_run(args, makes="oof")
        ensure_competition(config)
        prepare(config, paths)
    for fold in range(config.folds.n) if args.fold is None else [args.fold]:
        train_member(config, paths, args.member, fold)
    return 0


def _oof_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument("--plan", action="store_true", help="say what it will cost, do nothing")
    parser.add_argument(
        "--measure",
        type=int,
        nargs="?",
        const=50,
        metavar="STEPS",
        help="with --plan: time so many training steps of every network here (default 50)",
    )


def _oof(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    import pandas as pd

    from cspine_kit.core.config import load_config
    from cspine_kit.core.failures import summary
    from cspine_kit.core.resolved import finish
    from cspine_kit.data.stages import prepare
    from cspine_kit.show.plan import describe_plan
    from cspine_kit.show.presence import report_presence
    from cspine_kit.vision.check import check_config
    from cspine_kit.vision.compare.detection import DETECTIONS, told
    from cspine_kit.vision.compare.measure import measure_speeds
    from cspine_kit.vision.oof.run import run_oof

    if args.measure is not None and (not args.plan or args.measure < 1):
        raise ConfigError("--measure goes with --plan and needs 1 step or more")
    check_config(load_config(args.config))
    if args.plan:
        config = load_config(args.config)
        measured = measure_speeds(config, args.measure) if args.measure else None
        print(describe_plan(config, measured))
        return 0
    config, paths = open_run(args, makes="oof")
    print(describe_plan(config))
    ensure_competition(config)
    prepare(config, paths)

    left_out = summary(run_oof(config, paths))
    finish(config, paths, "oof")
    print(report_presence(config, paths))
    if (paths.root / DETECTIONS).exists():
        print("\n".join(told(pd.read_csv(paths.root / DETECTIONS))))
    print(f"out-of-fold slice table in {paths.table('oof_slices')}")
    if left_out:
        print(f"{left_out}\n  all of them: {paths.table('failures')}")
    return 0


def _backbones_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="of timm or torchvision; fourteen by default"
    )
    parser.add_argument("--best", type=int, default=5, help="cross-validated (default 5)")
    parser.add_argument(
        "--stage", choices=("vertebra", "fracture"), default="vertebra", help="default: vertebra"
    )
    parser.add_argument("--member", help="with --stage fracture; default: the config's first one")


def _backbones(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.data.stages import prepare
    from cspine_kit.vision.compare.backbones import FOURTEEN, PUBLISHED, compare, summary

    config, paths = open_run(args, makes="oof")
    ensure_competition(config)
    prepare(config, paths)
    if args.stage == "fracture":
        from cspine_kit.vision.compare import fracture_backbones as fracture

        member = args.member or next(iter(config.members))
        table = fracture.compare(config, paths, member, args.names or fracture.FOUR, best=args.best)
        print(fracture.summary(table).to_string(float_format="{:.4g}".format))
        print(f"by fold in {paths.root / fracture.FOLDER / member}.csv")
        return 0
    if args.member is not None:
        raise ConfigError(f"--member {args.member} says nothing without --stage fracture")
    table = compare(config, paths, args.names or FOURTEEN, best=args.best)
    print(summary(table).to_string(float_format="{:.4g}".format))
    for name, value in PUBLISHED.items():
        print(f"published, on other data: {name}: {value:.4f}")
    print(f"by fold and level in {paths.root / 'backbones' / 'backbones.csv'}")
    return 0


def _finder_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument(
        "--out", type=Path, default=FINDER, metavar="DIR", help="default: the one that ships"
    )


def _finder(args: argparse.Namespace) -> int:
    from cspine_kit.core.execution import tune_process

    tune_process()
    from cspine_kit.core.command import commit_of_kit
    from cspine_kit.core.config import load_config
    from cspine_kit.data.stages import prepare
    from cspine_kit.phantom.competition.write import write_competition
    from cspine_kit.vision.check import check_config
    from cspine_kit.vision.finder.make import CHECK_PHANTOM, make_finder
    from cspine_kit.vision.inputs.tables import open_inputs
    from cspine_kit.vision.oof.chain import FoldChain
    from cspine_kit.vision.oof.run import train_member

    check_config(load_config(args.config))
    config, paths = open_run(args, makes="oof")
    if config.competition.phantom is None:
        raise ConfigError(f"{args.config}: a finder learns from phantoms: set competition.phantom")
    ensure_competition(config)
    prepare(config, paths)
    train_member(config, paths, "vertebra", 0)
    chain = FoldChain(config, paths, open_inputs(paths), 0)
    check = write_competition(paths.root / "check", CHECK_PHANTOM, jobs=config.execution.jobs)
    judged_on = {"test": Competition(config.competition.dir), "check": check}
    card = make_finder(chain, args.out, judged_on, commit_of_kit())
    for name, figures in card["figures"]["test"].items():
        print(f"{name:13s} " + ", ".join(f"{key} {value:g}" for key, value in figures.items()))
    print(f"finder of {card['megabytes']} MB in {args.out}")
    return 0


VERBS = {
    "finder": Verb(
        "draw phantoms, train the level finder that ships, write its weights and card; resumable",
        "cspine finder --config configs/finder.yaml",
        _finder_arguments,
        _finder,
    ),
    "train": Verb(
        "train one fold model, resumable",
        f"cspine train {DEMO} --member vertebra --fold 0",
        _train_arguments,
        _train,
    ),
    "backbones": Verb(
        "accuracy and time of backbones as vertebra networks; or loss, F1 and AUC as a member",
        f"cspine backbones {DEMO} --names basic_cnn test_resnet test_efficientnet --best 2; "
        f"cspine backbones {DEMO} --stage fracture --member axial --names basic_cnn test_resnet",
        _backbones_arguments,
        _backbones,
    ),
    "oof": Verb(
        "everything missing up to the out-of-fold slice table",
        f"cspine oof {DEMO}",
        _oof_arguments,
        _oof,
    ),
}

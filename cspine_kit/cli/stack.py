"""Verbs of the stack room: the stack and the header-only vertebra baseline.

In: a config whose out-of-fold table is there, or tables of headers. Out: models, predictions and a
score table. Example: `cspine stack --config configs/demo.yaml`.
"""

import argparse
import json
import logging
from pathlib import Path

from cspine_kit.cli.verb import DEMO, Verb, config_argument, open_run
from cspine_kit.core.errors import ConfigError

log = logging.getLogger(__name__)


def _stack_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser, required=False)
    parser.add_argument(
        "--external", type=Path, metavar="CSV", action="append", help="study scores; repeat it"
    )
    parser.add_argument("--headers", type=Path, metavar="PARQUET", help="slice headers")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="without --config: train.csv")
    parser.add_argument("--out", type=Path, metavar="DIR", help="without --config: results")
    parser.add_argument("--seed", type=int, help="without --config: first fold seed (0)")
    parser.add_argument("--jobs", type=int, help="without --config: folds at once (0: the cores)")
    parser.add_argument("--json", action="store_true")


def _without_config(args: argparse.Namespace) -> int:
    """Stack external files, or headers alone."""
    if args.labels is None or args.out is None:
        raise ConfigError("stack --external or --headers needs --labels CSV and --out DIR as well")
    from cspine_kit.stack.external.run import render_external, run_external

    result = run_external(
        args.external or [],
        args.labels,
        args.out,
        headers=args.headers,
        seed=args.seed or 0,
        jobs=args.jobs or 0,
    )
    print(json.dumps(result, indent=2) if args.json else render_external(args.out, result))
    return 0


def _stack(args: argparse.Namespace) -> int:
    if args.config is None:
        if not args.external and args.headers is None:
            raise ConfigError(
                "stack needs --config, or --external or --headers with --labels and --out"
            )
        return _without_config(args)
    from cspine_kit.core.resolved import changed, finish
    from cspine_kit.stack.pipeline import run_stack
    from cspine_kit.stack.scores.console import render_stack
    from cspine_kit.stack.scores.disagreements import DISAGREEMENTS, render, write_disagreements

    config, paths = open_run(args, makes="stack")
    if older := changed(config, paths, "oof"):
        log.warning(
            "the out-of-fold tables were not made from this config (%s); make oof brings them up "
            "to date, a bundle would be refused",
            ", ".join(older),
        )
    scores = run_stack(config, paths)
    finish(config, paths, "stack")
    doubted = write_disagreements(paths)
    if args.json:
        print(scores.to_json(orient="records", indent=2))
    else:
        print(render_stack(paths.stack))
        print(f"\n{render(doubted)}\n  all of them: {paths.stack / DISAGREEMENTS}")
    return 0


def _headers_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slices", type=Path, required=True, metavar="FILE", help="slice headers")
    parser.add_argument("--presence", type=Path, required=True, metavar="CSV", help="C1..C7 0/1")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV or parquet")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")


def _headers(args: argparse.Namespace) -> int:
    from cspine_kit.stack.headers.vertebrae import render, run_vertebra_headers

    result = run_vertebra_headers(
        args.slices, args.presence, args.out, folds=args.folds, seed=args.seed
    )
    print(json.dumps(result, indent=2) if args.json else render(result))
    return 0


VERBS = {
    "stack": Verb(
        "aggregated statistics, nested LightGBM stack, score table; or a stack of anybody's scores",
        f"cspine stack {DEMO}; cspine stack --external a.csv --external b.csv --labels train.csv "
        "--out DIR; cspine stack --headers H.parquet --labels train.csv --out DIR",
        _stack_arguments,
        _stack,
        apart={"--config": ("--external", "--headers", "--labels", "--out", "--seed", "--jobs")},
    ),
    "headers": Verb(
        "which vertebrae a slice shows, from DICOM headers alone",
        "cspine headers --slices slice_headers.parquet --presence presence.csv --out v.csv",
        _headers_arguments,
        _headers,
    ),
}

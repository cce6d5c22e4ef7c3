"""Verbs of the phantom room: synthetic competitions.

In: sizes and a seed. Out: a folder in the layout of the competition. Example:
`cspine phantom --out data/small --studies 1 --test-studies 1 --size 48 --difficulty easy --jobs 1`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cspine_kit.cli.verb import Verb
from cspine_kit.core.errors import ConfigError

if TYPE_CHECKING:
    from cspine_kit.core.config import PhantomConfig


def _phantom_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--studies", type=int, metavar="N", help="training studies (20)")
    parser.add_argument("--test-studies", type=int, metavar="M", help="test studies (5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--size", type=int, metavar="PX", help="rows and columns (512; with --hostile 64)"
    )
    parser.add_argument(
        "--hostile", action="store_true", help="one test study per defect, and manifest.csv"
    )
    parser.add_argument("--difficulty", choices=["easy", "real"], help="of the fractures (real)")
    parser.add_argument("--masked", type=float, metavar="SHARE", help="studies with masks (0.5)")
    parser.add_argument("--boxed", type=float, metavar="SHARE", help="fractured with boxes (0.5)")
    parser.add_argument(
        "--variety", type=float, metavar="SHARE", help="studies that are no plain, whole neck (0)"
    )
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 = the usable cores")


OF_PLAIN = ("--studies", "--test-studies", "--difficulty", "--masked", "--boxed", "--variety")
"""Options that a hostile competition, whose studies are its defects, has no use for."""


def _spec(args: argparse.Namespace) -> PhantomConfig:
    """The arguments as a checked `PhantomConfig`; what was not given has its default.

    Raises:
        ConfigError: a value out of range; names the option and the value.
    """
    from pydantic import ValidationError

    from cspine_kit.core.config import PhantomConfig

    usual = {"studies": 20, "test_studies": 5, "size_px": 64 if args.hostile else 512}
    given = {
        "studies": args.studies,
        "test_studies": args.test_studies,
        "size_px": args.size,
        "difficulty": args.difficulty,
        "masked": args.masked,
        "boxed": args.boxed,
        "variety": args.variety,
        "seed": args.seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return PhantomConfig.model_validate({**usual, **given})
    except ValidationError as error:
        faults = [f"{e['loc'][0]}: {e['msg']} (got {e['input']})" for e in error.errors()]
        raise ConfigError("phantom: " + "; ".join(faults)) from error


def _phantom(args: argparse.Namespace) -> int:
    spec = _spec(args)
    if args.hostile:
        from cspine_kit.phantom.competition.hostile import write_hostile

        write_hostile(args.out, seed=spec.seed, size_px=spec.size_px, jobs=args.jobs)
        print(f"hostile competition in {args.out}; {args.out / 'manifest.csv'} says what is wrong")
        return 0
    from cspine_kit.phantom.competition.write import write_competition

    write_competition(args.out, spec, jobs=args.jobs)
    print(f"phantom competition in {args.out}")
    return 0


VERBS = {
    "phantom": Verb(
        "write a synthetic competition in the RSNA 2022 layout",
        "cspine phantom --out data/phantom --studies 20 --test-studies 5 --seed 1 --size 256",
        _phantom_arguments,
        _phantom,
        apart={"--hostile": OF_PLAIN},
    ),
}

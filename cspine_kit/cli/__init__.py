"""The console script `cspine`: thin verbs that load, call and print; one file for each room.

In: arguments. Out: exit status 0, 1 (an error the kit explains), 2 (invalid submission or usage),
3 (a scan that cannot be judged), 130 (interrupted; the next run resumes).
Example: `cspine oof --config configs/demo.yaml`.
"""

import argparse
import logging
import sys

from cspine_kit import __version__
from cspine_kit.cli import data, infer, phantom, ship, show, stack, vision
from cspine_kit.cli.verb import refuse_apart
from cspine_kit.core.errors import CSpineError, SubmissionError

ROOMS = (phantom, data, vision, stack, infer, ship, show)
VERBS = {name: verb for room in ROOMS for name, verb in room.VERBS.items()}


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
            epilog="\n  ".join(["example:", *verb.example.split("; ")]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.arguments(sub)
        sub.set_defaults(action=verb.action)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the kit's own errors are printed without a traceback."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        refuse_apart(args.verb, VERBS[args.verb], args)
        status: int = args.action(args)
    except SubmissionError as error:
        print(f"invalid submission: {error}", file=sys.stderr)
        return 2
    except CSpineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}; check that the path is right and may be written", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    return status

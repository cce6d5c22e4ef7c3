"""What every verb shares: its shape, the config it opens, the competition it needs.

In: arguments of a verb. Out: a config and its run folder. Example::

    config, paths = open_run(argparse.Namespace(config=Path("configs/demo.yaml")))
    ensure_competition(config)

A verb imports its room inside itself, so that `cspine --help` and `cspine info` answer at once.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OOF_ROOT, SUBMISSIONS = Path("oof"), Path("submissions")
DEMO = "--config configs/demo.yaml"


@dataclass(frozen=True)
class Verb:
    """One sub-command: what it does, an example, its arguments and its action."""

    summary: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    action: Callable[[argparse.Namespace], int]


def config_argument(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--config", type=Path, required=required, metavar="FILE", help="YAML under configs/"
    )


def open_run(args: argparse.Namespace) -> tuple[Any, Any]:
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


def ensure_competition(config: Any) -> None:
    """Write the phantom competition where the config asks for one and it is not there yet."""
    if config.competition.phantom is not None:
        from cspine_kit.phantom.competition.write import write_competition

        write_competition(
            config.competition.dir, config.competition.phantom, jobs=config.execution.jobs
        )


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """A verb without arguments."""

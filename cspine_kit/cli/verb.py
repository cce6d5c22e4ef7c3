"""What every verb shares: its shape, the config it opens, the competition it needs.

In: parsed arguments. Out: a config and its run folder, or an error that names what does not fit.
Example::

    config, paths = open_run(argparse.Namespace(config=Path("configs/demo.yaml")))
    ensure_competition(config)

A verb imports its room inside itself, so that `cspine --help` and `cspine info` answer at once.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cspine_kit.core.errors import ConfigError

if TYPE_CHECKING:
    from cspine_kit.core.resolved import Stage

OOF_ROOT, SUBMISSIONS = Path("oof"), Path("submissions")
DEMO = "--config configs/demo.yaml"

CANNOT_JUDGE = 3
"""Exit status where a scan could not be judged."""


@dataclass(frozen=True)
class Verb:
    """One sub-command: what it does, example commands ("; " between), arguments, action."""

    summary: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    action: Callable[[argparse.Namespace], int]
    apart: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Option to the options that would say nothing beside it. None of them has a default but None
    or False: what was given can then be told from what was not."""


def _given(args: argparse.Namespace, option: str) -> object:
    """What was given for an option ("--test-studies") or an argument ("FILE"); None for nothing."""
    value = getattr(args, option.lstrip("-").replace("-", "_").lower())
    if isinstance(value, list):  # an option that may be repeated
        return " ".join(map(str, value))
    return None if value is False else value


def refuse_apart(name: str, verb: Verb, args: argparse.Namespace) -> None:
    """An option that would be ignored is refused before anything runs.

    Raises:
        ConfigError: two options that do not go together; names both and the value given.
    """
    for option, others in verb.apart.items():
        if _given(args, option) is None:
            continue
        for other in others:
            value = _given(args, other)
            if value is not None:
                raise ConfigError(
                    f"{name}: {other}{'' if value is True else f' {value}'} would say nothing "
                    f"beside {option}; leave out one of the two"
                )


def config_argument(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--config", type=Path, required=required, metavar="FILE", help="YAML under configs/"
    )


def open_run(args: argparse.Namespace, *, makes: "Stage | None" = None) -> tuple[Any, Any]:
    """The config and its run folder; `makes`: the stage whose files this verb makes anew."""
    from cspine_kit.core.config import load_config
    from cspine_kit.core.paths import RunPaths
    from cspine_kit.core.resolved import begin

    config = load_config(args.config)
    paths = RunPaths(OOF_ROOT / config.name)
    if makes is not None:
        begin(config, paths, makes)
    return config, paths


def ensure_competition(config: Any) -> None:
    """Write the phantom competition where the config asks for one and it is not there yet."""
    if config.competition.phantom is not None:
        from cspine_kit.phantom.competition.write import write_competition

        write_competition(
            config.competition.dir, config.competition.phantom, jobs=config.execution.jobs
        )


def phantom_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--phantom-bundle",
        action="store_true",
        help="let a bundle born on phantoms judge other scans; its numbers mean nothing for them",
    )


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """A verb without arguments."""

"""Every verb says what it does and shows commands that its own parser takes."""

import shlex

import pytest

from cspine_kit.cli import VERBS, build_parser
from cspine_kit.cli.verb import refuse_apart


@pytest.mark.parametrize("name", VERBS)
def test_every_example_is_a_command_that_parses(name, capsys):
    commands = VERBS[name].example.split("; ")
    for command in commands:
        program, *arguments = shlex.split(command)
        args = build_parser().parse_args(arguments)
        refuse_apart(args.verb, VERBS[args.verb], args)
        assert (program, args.verb) == ("cspine", name), command
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args([name, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in shown[-len(commands) :]] == commands

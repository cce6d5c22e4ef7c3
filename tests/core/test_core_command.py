"""Long commands: their output is kept, their time is shown, and none outlives its caller."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from cspine_kit.core import command
from cspine_kit.core.command import run_command, waiting

TALK = """
import sys, time
print("Collecting torch", flush=True)
time.sleep(0.6)
print("the reason", file=sys.stderr)
sys.exit(3)
"""


def test_a_command_shows_its_seconds_and_its_last_line_and_keeps_both_streams(capsys, monkeypatch):
    monkeypatch.setattr(command, "TICK_S", 0.05)
    done = run_command([sys.executable, "-c", TALK], "packages", env={"PATH": "/bin"})
    assert (done.returncode, done.stdout, done.stderr) == (3, "Collecting torch\n", "the reason\n")
    shown = capsys.readouterr().err
    assert re.search(r"packages: 00:0\d, Collecting torch", shown)
    assert "the reason" not in shown


def test_a_wait_is_renewed_and_ends_with_its_block(capsys, monkeypatch):
    monkeypatch.setattr(command, "TICK_S", 0.02)
    with pytest.raises(RuntimeError), waiting("kernel") as tell:
        tell("RUNNING")
        time.sleep(0.5)
        raise RuntimeError
    shown = capsys.readouterr().err
    assert shown.count("kernel: 00:00, RUNNING") > 3
    time.sleep(0.1)
    assert capsys.readouterr().err == "", "the line is not renewed after the end"


SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
INTERRUPTED = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from cspine_kit.core.command import run_command
run_command([sys.executable, "-c", {SLEEPER!r}], "long")
"""


def test_an_interrupted_command_does_not_run_on():
    child = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stderr=subprocess.PIPE, text=True)
    shown = ""
    while not (found := re.search(r"long: \d+:\d+, (\d+)\D", shown)):
        assert child.poll() is None
        shown += child.stderr.read(1)
    child.send_signal(signal.SIGINT)
    assert child.wait(20) != 0
    child.stderr.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[1]), 0)

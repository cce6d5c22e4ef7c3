"""Processes of a run: what they are, what memory and disk they take, and their certain end.

In: the id of a session (its leader's process id). Out: what lives of it, the limit it ran into.
Example::

    import subprocess

    process = subprocess.Popen(["sleep", "0.1"], start_new_session=True)
    wait_for(process, Limits(seconds=60.0, memory_mib=1024.0, disk_gb=20.0), Path()).ended_for
    end_left_over(process.pid)
"""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cspine_kit.core.room import size_gb

POLL_S = 0.25
LEAVE_S = 3.0
GRACE_S = 20.0
"""Between the polite and the certain end of a run that is past its time."""

EndedFor = Literal["", "time", "memory", "disk"]
"""The limit that a run was ended for."""


@dataclass(frozen=True)
class Limits:
    """What a run may take: seconds, MiB of memory, 10^9 bytes of its working folder."""

    seconds: float
    memory_mib: float
    disk_gb: float


@dataclass
class Taken:
    """The most that a run took, and which limit it was ended for; empty where none."""

    memory_mib: float = 0.0
    disk_gb: float = 0.0
    ended_for: EndedFor = ""


def session_processes(session: int) -> list[int]:
    """Ids of the living processes of a session (a run's leader and everything it started)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = stat.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(sid) == session and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def memory_mib(session: int) -> float:
    """Memory of all processes of a session, MiB; shared pages are split among them."""
    total = 0
    for pid in session_processes(session):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, IndexError, ValueError):
            continue
    return total / 1024


def wait_for(process: "subprocess.Popen[bytes]", limits: Limits, working: Path) -> Taken:
    """Wait for a session's leader, and end the session where it goes beyond a limit.

    Args:
        process: the leader.
        limits: from now on.
        working: the folder whose files count.
    """
    taken, deadline = Taken(), time.monotonic() + limits.seconds
    while process.poll() is None:
        taken.memory_mib = max(taken.memory_mib, memory_mib(process.pid))
        taken.disk_gb = max(taken.disk_gb, size_gb(working))
        if taken.memory_mib > limits.memory_mib:
            taken.ended_for = "memory"
        elif taken.disk_gb > limits.disk_gb:
            taken.ended_for = "disk"
        elif time.monotonic() > deadline:
            taken.ended_for = "time"
        if taken.ended_for:
            _end(process)
            return taken
        time.sleep(POLL_S)
    taken.disk_gb = max(taken.disk_gb, size_gb(working))
    if taken.disk_gb > limits.disk_gb:
        taken.ended_for = "disk"
    return taken


def end_left_over(session: int) -> int:
    """Kill what is still alive of a session whose leader ended; returns how many that were.

    Helpers that end by themselves when their pipe closes get a moment to do so.
    """
    patience = time.monotonic() + LEAVE_S
    while session_processes(session) and time.monotonic() < patience:
        time.sleep(0.01)
    found = session_processes(session)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + GRACE_S
    while session_processes(session) and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(found)


def _end(process: "subprocess.Popen[bytes]") -> None:
    for sign, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return

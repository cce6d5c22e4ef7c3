"""Processes of a run: what they are, what memory they take, and their certain end.

In: the id of a session (its leader's process id). Out: what lives of it, the limit it ran into.
Example::

    import subprocess, time

    process = subprocess.Popen(["sleep", "0.1"], start_new_session=True)
    peak_mib, ended_for = wait_for(process, time.monotonic() + 60.0, limit_mib=1024.0)
    end_left_over(process.pid)
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Literal

POLL_S = 0.25
LEAVE_S = 3.0
GRACE_S = 20.0
"""Between the polite and the certain end of a run that is past its time."""

EndedFor = Literal["", "time", "memory"]
"""The limit that a run was ended for."""


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


def wait_for(
    process: "subprocess.Popen[bytes]", deadline: float, limit_mib: float
) -> tuple[float, EndedFor]:
    """Wait for a session's leader; peak memory in MiB, and the limit that it was ended for."""
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory_mib(process.pid))
        if peak > limit_mib:
            _end(process)
            return peak, "memory"
        if time.monotonic() > deadline:
            _end(process)
            return peak, "time"
        time.sleep(POLL_S)
    return peak, ""


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

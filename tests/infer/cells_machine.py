"""Faults of processes, clocks and disks: what is finished stands, and a successor does the rest.

In: a `Ground`. Out: a `Count`. Example: `CELLS["loading", "dies"](ground)`.
"""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import faults
import pandas as pd
from faults import PATIENCE_S, SUBMIT, Count, Ground, count_one, count_rows, run_here, uids

from cspine_kit.infer.log import IMAGE
from cspine_kit.infer.run import run_kernel
from cspine_kit.ship.rehearsal.session import session_processes

STUDIES = 8


def parent_of(pid: int) -> int:
    """The parent of a process; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def workers_of(process: subprocess.Popen) -> list[int]:
    """The script's child that does the work."""
    return [pid for pid in session_processes(process.pid) if parent_of(pid) == process.pid]


def helpers_of(process: subprocess.Popen) -> list[int]:
    """Living helpers of a run: what its worker started, but Python's own resource tracker."""
    found = []
    for pid in session_processes(process.pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        of_script = pid == process.pid or parent_of(pid) == process.pid
        if not of_script and b"resource_tracker" not in command:
            found.append(pid)
    return found


def wait_until(process: subprocess.Popen, reached: Callable[[], object]) -> bool:
    """Wait for something in a run; False where the run ended before."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        if reached():
            return True
        time.sleep(0.005)
    return False


def _dies(event: str, times: int = 1) -> Callable[[Ground], Count]:
    def cell(ground: Ground) -> Count:
        """The working process is killed when the log shows `event` so often: all is done anew."""
        competition = ground.competition(f"dies_{event}", STUDIES)
        process, out = faults.start_kernel(ground, competition)

        def reached() -> bool:
            return [e["event"] for e in faults.logged(out)].count(event) >= times

        killed = 0
        if wait_until(process, reached):
            for pid in workers_of(process):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        ended = faults.end(process) and process.returncode == 0
        result = faults.read_result(competition, out)
        name = f"the kernel dies after {event}"
        return count_rows(name, killed, ground, result, uids(STUDIES), ended=ended)

    return cell


def killed_workers(ground: Ground, count: int = 24, kills: int = 2) -> Count:
    """Helpers are killed one after the other; each may cost the study it holds, and no other."""
    competition = ground.competition("killed", count)
    process, out = faults.start_kernel(ground, competition)
    faults.wait_for(process, out, 1)
    killed = set()
    while process.poll() is None and len(killed) < kills:
        for pid in helpers_of(process):
            if pid not in killed and len(killed) < kills:
                done = len(faults.finished(out))
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.add(pid)
                faults.wait_for(process, out, done + 2)  # they shall not all hit the same study
        time.sleep(0.01)
    ended = faults.end(process)
    result = faults.read_result(competition, out)
    lost = ground.differing(result, uids(count))[len(killed) :]
    return count_one("a reading process killed", len(killed), result, lost, ended=ended)


def terminated(ground: Ground, count: int = 16, after: int = 4) -> Count:
    """SIGTERM in the middle: finished studies keep their rows, and no helper lives on."""
    competition = ground.competition("terminated", count)
    process, out = faults.start_kernel(ground, competition)
    faults.wait_for(process, out, after)
    alive = process.poll() is None
    process.send_signal(signal.SIGTERM)
    done = faults.finished(out)
    try:
        process.wait(faults.GRACE_S)
        ended = process.returncode == 0
    except subprocess.TimeoutExpired:
        ended = False
    wait_until_alone = time.monotonic() + faults.GRACE_S
    while session_processes(process.pid) and time.monotonic() < wait_until_alone:
        time.sleep(0.05)
    orphans = session_processes(process.pid)
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    result = faults.read_result(competition, out)
    # The study whose event was written last may still have been on its way into the file.
    lost = ground.differing(result, done)[1:]
    counted = count_one("SIGTERM during the run", int(alive), result, lost, ended=ended)
    if orphans:
        counted.lost += len(orphans)
        counted.remark = f"{len(orphans)} helpers live on"
    return counted


def writing_damaged(ground: Ground) -> Count:
    """What a run that died left is damaged: its successor trusts none of it."""
    competition = ground.competition("writing_damaged", STUDIES)
    run_here(ground, competition)
    out = competition / "out" / "submission.csv"
    out.write_bytes(out.read_bytes()[:-40])
    log = out.with_name("kernel_log.jsonl")
    log.write_bytes(log.read_bytes()[:-25])
    result = run_here(ground, competition, resume=True)
    return count_rows("a damaged submission and log", 1, ground, result, uids(STUDIES))


def writing_missing(ground: Ground) -> Count:
    """Somebody removes the submission during the run."""
    competition = ground.competition("writing_missing", STUDIES)
    out = competition / "out" / "submission.csv"
    removed = []

    def remove() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not removed and time.monotonic() < deadline:
            if len(faults.finished(out)) >= 2 and out.exists():
                out.unlink()
                removed.append(out)
            time.sleep(0.005)

    thread = threading.Thread(target=remove, daemon=True)
    thread.start()
    result = run_here(ground, competition)
    return count_rows("the submission is removed", len(removed), ground, result, uids(STUDIES))


HANGING = """
import json, os, pathlib, submit, threading, time
real = pathlib.Path.replace
def replace(self, target):
    log = pathlib.Path(os.environ["CSPINE_OUT"]).with_name("kernel_log.jsonl")
    studies = log.read_text().count('"study"') if log.exists() else 0
    if pathlib.Path(target).name == "submission.csv" and studies >= 2:
        threading.Event().wait()
    return real(self, target)
pathlib.Path.replace = replace
submit.SHARE = 60.0 / 3600 / submit.HOURS
raise SystemExit(submit.main())
"""


def writing_hangs(ground: Ground) -> Count:
    """The disk hangs at the end: the script ends in time and well, and the file is whole."""
    competition = ground.competition("writing_hangs", STUDIES)
    process, out = faults.start_kernel(ground, competition, HANGING)
    start = time.monotonic()
    ended = faults.end(process) and process.returncode == 0 and time.monotonic() - start < 120.0
    result = faults.read_result(competition, out)
    return count_one("writing hangs", len(faults.finished(out)), result, [], ended=ended)


def disk_full_for_a_while(ground: Ground, count: int = 12) -> Count:
    """The submission cannot be written between first and last study: in the end all is there."""
    competition = ground.competition("for_a_while", count)
    rename, failed = pathlib.Path.replace, []
    out = competition / "out" / "submission.csv"

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == "submission.csv" and 0 < len(faults.finished(out)) < count:
            failed.append(target)
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return rename(self, target)

    with mock.patch.object(pathlib.Path, "replace", replace):
        result = run_here(ground, competition)
    name = "disk full for a while"
    return count_rows(name, len(failed), ground, result, uids(count))


FULL_DISK = """
set -e
mkdir -p "$PLACE"
mount -t tmpfs -o size="$SIZE" tmpfs "$PLACE"
cd "$PLACE"
set +e
"$PYTHON" "$SUBMIT" > "$LOG" 2>&1
code=$?
mkdir -p "$KEPT" && cp "$PLACE"/submission.csv "$PLACE"/kernel_log.jsonl "$KEPT"
exit $code
"""


def full_disk(
    ground: Ground, count: int = 20, size_kib: int = 16, *, rows_fit: bool = False
) -> Count:
    """The working folder is full: after the priors, or (`rows_fit`) only for what comes last."""
    competition = ground.competition("full", count)
    place, kept = ground.work / "full_place", ground.work / "full_kept"
    shutil.rmtree(kept, ignore_errors=True)
    env = {
        **faults.submit_environment(ground, competition, place / "submission.csv"),
        "PLACE": str(place),
        "KEPT": str(kept),
        "SIZE": f"{size_kib}k",
        "PYTHON": sys.executable,
        "SUBMIT": str(SUBMIT),
        "LOG": str(ground.work / "full.log"),
    }
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", FULL_DISK]
    done = subprocess.run(command, env=env, capture_output=True, check=False, timeout=PATIENCE_S)
    result = faults.read_result(competition, kept / "submission.csv")
    lost = ground.differing(result, uids(count)) if rows_fit else []
    name = "disk full at the end" if rows_fit else "disk full after the priors"
    return count_one(name, 1, result, lost, ended=done.returncode == 0)


def clock_jumps(ground: Ground, count: int = 4) -> Count:
    """The wall clock leaps ten hours ahead and then a day back: nothing changes."""
    competition = ground.competition("clock", count)
    real, calls = time.time, []

    def jumping() -> float:
        calls.append(1)
        return real() + (0, 36_000, -86_400)[min(2, len(calls) // 3)]

    with mock.patch.object(time, "time", jumping):
        result = run_here(ground, competition)
    jumps = min(2, len(calls) // 3)
    return count_rows("the clock jumps", jumps, ground, result, uids(count))


def hostile(ground: Ground, competition: Path) -> Count:
    """Every defect of the hostile phantom; `lost` are those that are not what its manifest says."""
    manifest = pd.read_csv(competition / "manifest.csv", dtype={"study_uid": str})
    manifest = manifest[manifest["listed"]]
    out = ground.work / "hostile_out" / "submission.csv"
    run_kernel(competition, ground.bundle, out)
    result = faults.read_result(competition, out)
    sources = result.sources()
    expected = manifest["outcome"] == "predicted"
    wrong = expected != (manifest["study_uid"].map(sources) == IMAGE)
    return count_one("hostile phantom", len(manifest), result, list(manifest["defect"][wrong]))


CELLS: dict[tuple[str, str], Callable[[Ground], Count]] = {
    ("listing", "dies"): _dies("origin"),
    ("headers", "dies"): _dies("headers_written"),
    ("bundle", "dies"): _dies("priors_written"),
    ("loading", "dies"): _dies("bundle"),
    ("stack", "dies"): _dies("study", 3),
    ("writing", "damaged"): writing_damaged,
    ("writing", "missing"): writing_missing,
    ("writing", "error"): disk_full_for_a_while,
    ("writing", "hangs"): writing_hangs,
    ("writing", "dies"): terminated,
    ("writing", "no room"): full_disk,
}

"""Faults a kernel run must survive, each injected from outside and counted.

In: a bundle, sound study folders, a working folder. Out: a `Count` per fault: how many were tried,
how many runs ended with a valid submission, how many studies lost more than themselves. Example::

    ground = Ground(bundle, studies, tmp_path)
    corrupted(ground, 200, spared=20)

A study that a fault does not touch must get the very rows of a run without faults; one more that
differs is "lost more than themselves". No production code knows of any of this: files, signals,
mounts, a torch hook and patched clocks are all there is.
"""

import errno
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.runs import file_hash, read_json, write_json
from cspine_kit.infer.log import IMAGE, KernelEvents, read_kernel_log
from cspine_kit.infer.manifest import MANIFEST
from cspine_kit.infer.run import run_kernel
from cspine_kit.infer.submission import read_submission, read_wanted_rows
from cspine_kit.ship.rehearsal.sandbox import session_processes
from cspine_kit.vision.model import SliceModel

SUBMIT = Path(__file__).resolve().parents[2] / "kernels" / "submit" / "submit.py"
PATIENCE_S = 300.0
GRACE_S = 20.0
SMALL_BATCH = 4


@dataclass
class Count:
    """What came of one kind of fault."""

    fault: str
    tried: int
    runs: int
    valid: int
    lost: int
    """Studies that lost their rows, or got others, though the fault was not theirs."""
    remark: str = ""

    @property
    def ok(self) -> bool:
        """True where the fault was tried, every run ended well and nobody else paid."""
        return self.tried > 0 and self.valid == self.runs and self.lost == 0


@dataclass(frozen=True)
class Ground:
    """Where faults are tried."""

    bundle: Path
    studies: tuple[Path, ...]
    """Sound study folders that competitions are copied from."""
    work: Path
    every: int = 4
    """One of so many slices is used: faults need studies, not resolution."""
    sound: "dict[str, Result]" = field(default_factory=dict)
    """Keeps the run without faults."""

    @property
    def period(self) -> int:
        """Study number n + period is made of the same files as study n."""
        return math.lcm(len(self.studies), self.every)

    def reference(self) -> pd.DataFrame:
        """Rows of studies 1.1 to 1.<period> in a run without faults; made once."""
        if "run" not in self.sound:
            competition = self.competition("sound", self.period)
            self.sound["run"] = run_here(self, competition)
        result = self.sound["run"]
        if result.rows is None or set(result.sources().values()) != {IMAGE}:
            raise RuntimeError(f"the run without faults is not sound: {result.fault}")
        return result.rows

    def differing(self, result: "Result", uids: list[str], tolerance: float = 1e-6) -> list[str]:
        """Which of `uids` have other rows than in the run without faults."""
        if result.rows is None:
            return list(uids)
        twins = [f"1.{(int(uid[2:]) - 1) % self.period + 1}" for uid in uids]
        gap = np.abs(result.rows.loc[uids].to_numpy() - self.reference().loc[twins].to_numpy())
        return [uid for uid, g in zip(uids, gap.max(axis=1), strict=True) if not g <= tolerance]

    def competition(self, name: str, count: int) -> Path:
        """A competition of `count` studies named 1.1, 1.2, ...; files are hard links."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        uids = [f"1.{number}" for number in range(1, count + 1)]
        for i, uid in enumerate(uids):
            target = folder / "test_images" / uid
            target.mkdir(parents=True)
            files = sorted(self.studies[i % len(self.studies)].iterdir(), key=lambda p: p.name)
            for file in files[i % self.every :: self.every]:
                os.link(file, target / file.name)
        write_listing(folder, uids)
        return folder

    def bundle_copy(self, name: str) -> Path:
        """A bundle that may be damaged."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.bundle, folder)
        return folder


def write_listing(competition: Path, uids: list[str]) -> None:
    """A test.csv that asks for all targets of these studies."""
    rows = [(f"{uid}_{target}", uid, target) for uid in uids for target in TARGETS]
    names = ["row_id", "StudyInstanceUID", "prediction_type"]
    pd.DataFrame(rows, columns=names).to_csv(competition / "test.csv", index=False)


@dataclass(frozen=True)
class Result:
    """A submission and the log beside it."""

    rows: pd.DataFrame | None
    """Probabilities by study_uid and target; None where the submission is not valid."""
    events: KernelEvents
    fault: str = ""

    def sources(self) -> dict[str, str]:
        """Where each study's rows came from."""
        return dict(
            zip(self.events.studies["study_uid"], self.events.studies["source"], strict=True)
        )


def read_result(competition: Path, out: Path) -> Result:
    """What a run left behind, checked as a submission."""
    wanted = read_wanted_rows(competition / "test.csv")
    empty = KernelEvents(pd.DataFrame(columns=["study_uid", "source", "cause"]), {}, [])
    try:
        events = read_kernel_log(out.with_name("kernel_log.jsonl"))
    except CSpineError:
        events = empty
    try:
        values = read_submission(out, wanted["row_id"]).to_numpy()
    except CSpineError as error:
        return Result(None, events, str(error))
    table = wanted.assign(prob=values).pivot(index="study_uid", columns="target", values="prob")
    return Result(table[list(TARGETS)], events)


def run_here(ground: Ground, competition: Path, bundle: Path | None = None) -> Result:
    """Run the kernel in this process, so that hooks and patches reach it."""
    out = competition / "out" / "submission.csv"
    shutil.rmtree(out.parent, ignore_errors=True)
    run_kernel(competition, bundle or ground.bundle, out)
    return read_result(competition, out)


def start_kernel(ground: Ground, competition: Path) -> tuple[subprocess.Popen, Path]:
    """Start submit.py in a process and session of its own, without installing wheels again."""
    out = competition / "out" / "submission.csv"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(SUBMIT)],
        env=submit_environment(ground, competition, out),
        cwd=out.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return process, out


def submit_environment(ground: Ground, competition: Path, out: Path) -> dict[str, str]:
    """Both sources below one input folder; the kit comes from here, not from the wheel."""
    inputs = ground.work / f"input_{competition.name}"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir()
    (inputs / "competition").symlink_to(competition)
    slim = inputs / "bundle"
    slim.mkdir()
    for file in ground.bundle.iterdir():
        if file.suffix != ".whl":
            (slim / file.name).symlink_to(file.resolve())
    manifest = read_json(ground.bundle / MANIFEST)
    manifest["files"] = {n: e for n, e in manifest["files"].items() if not n.endswith(".whl")}
    (slim / MANIFEST).unlink()
    write_json(slim / MANIFEST, manifest)
    root = str(SUBMIT.parents[2])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        "CSPINE_INPUT": str(inputs),
        "CSPINE_OUT": str(out),
        "CSPINE_PACKAGES": str(inputs / "packages"),
    }


def finished(out: Path) -> list[str]:
    """Studies that the log says are done."""
    log = out.with_name("kernel_log.jsonl")
    lines = log.read_text().splitlines() if log.exists() else []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:  # the last line is being written
            continue
    return [e["study_uid"] for e in events if e["event"] == "study"]


def wait_for(process: subprocess.Popen, out: Path, count: int) -> list[str]:
    """Wait until `count` studies are done or the process ends; the studies done by then."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        done = finished(out)
        if len(done) >= count:
            return done
        time.sleep(0.01)
    return finished(out)


def end(process: subprocess.Popen) -> bool:
    """Wait for the end; False where it had to be killed."""
    try:
        process.wait(PATIENCE_S)
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def count_one(
    fault: str, tried: int, result: Result, lost: list[str], *, ended: bool = True
) -> Count:
    """The count of a single run."""
    remark = (
        result.fault or ("" if ended else "did not end") or (f"lost {lost[:3]}" if lost else "")
    )
    return Count(fault, tried, 1, int(result.rows is not None and ended), len(lost), remark)


# --- faults of the data -----------------------------------------------------------------------


def hostile(ground: Ground, competition: Path) -> Count:
    """Every defect of the hostile phantom; `lost` are those that are not what its manifest says."""
    manifest = pd.read_csv(competition / "manifest.csv", dtype={"study_uid": str})
    manifest = manifest[manifest["listed"]]
    out = ground.work / "hostile_out" / "submission.csv"
    run_kernel(competition, ground.bundle, out)
    result = read_result(competition, out)
    sources = result.sources()
    expected = manifest["outcome"] == "predicted"
    wrong = expected != (manifest["study_uid"].map(sources) == IMAGE)
    return count_one("hostile phantom", len(manifest), result, list(manifest["defect"][wrong]))


def corrupt(path: Path, rng: np.random.Generator, most: int) -> None:
    """Give one file up to `most` random injuries: bytes, a block, a cut, zeros, a lost piece."""
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, most + 1))):
        if not data:
            break
        # Half of the injuries hit the header, where they hurt most.
        at = int(rng.integers(0, min(len(data), 1200) if rng.random() < 0.5 else len(data)))
        kind = int(rng.integers(0, 6))
        size = min(int(rng.integers(1, 400)), len(data) - at)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[at : at + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at : at + size] = bytes(size)
        elif kind == 4:
            data[at : at + 2] = b"\xff\xff"
        else:
            del data[at : at + size]
    path.unlink()  # a hard link: the sound study must stay sound
    path.write_bytes(bytes(data))


def corrupted(ground: Ground, count: int, *, spared: int, seed: int = 0) -> Count:
    """Random bytes in one to all files of `count` studies, `spared` sound ones among them.

    A quarter has one injured file, a quarter one in five, a quarter all, a quarter all badly.
    """
    rng = np.random.default_rng(seed)
    competition = ground.competition("corrupted", count + spared)
    uids = [f"1.{n}" for n in range(1, count + spared + 1)]
    untouched = set(rng.choice(uids, spared, replace=False).tolist())
    for uid in uids:
        if uid not in untouched:
            files = sorted((competition / "test_images" / uid).iterdir())
            share, most = ((0.0, 4), (0.2, 4), (1.0, 4), (1.0, 100))[int(rng.integers(0, 4))]
            for i in rng.permutation(len(files))[: max(1, round(share * len(files)))]:
                corrupt(files[i], rng, most)
    result = run_here(ground, competition)
    silent = [
        row.study_uid
        for row in result.events.studies.itertuples()
        if row.source != IMAGE and not row.cause
    ]
    missing = [uid for uid in uids if uid not in result.sources()]
    lost = ground.differing(result, sorted(untouched)) + silent + missing
    counted = count_one("random bytes in a study", count, result, lost)
    images = sum(source == IMAGE for source in result.sources().values()) - spared
    counted.remark = counted.remark or f"{images} of {count} still predicted from what was sound"
    return counted


def vanishing(ground: Ground, count: int) -> Count:
    """Files and folders of half of the studies disappear after the first study is done."""
    competition = ground.competition("vanishing", count)
    process, out = start_kernel(ground, competition)
    wait_for(process, out, 1)
    uids = [f"1.{n}" for n in range(1, count + 1)]
    victims = uids[1::2]
    for i, uid in enumerate(victims):
        folder = competition / "test_images" / uid
        files = sorted(folder.iterdir())
        for file in files if i % 2 else files[::2]:
            file.unlink(missing_ok=True)
        if i % 4 == 1:
            folder.rmdir()
    ended = end(process)
    result = read_result(competition, out)
    spared = [uid for uid in uids if uid not in victims]
    lost = ground.differing(result, spared)
    return count_one("files vanish during the run", len(victims), result, lost, ended=ended)


# --- faults of the machine --------------------------------------------------------------------


def helpers_of(process: subprocess.Popen) -> list[int]:
    """Living helpers of a run: its children and theirs, but Python's own resource tracker."""
    found = []
    for pid in session_processes(process.pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if pid != process.pid and b"resource_tracker" not in command:
            found.append(pid)
    return found


def killed_workers(ground: Ground, count: int, kills: int) -> Count:
    """Helpers are killed one after the other; each may cost the study it holds, and no other."""
    competition = ground.competition("killed", count)
    process, out = start_kernel(ground, competition)
    wait_for(process, out, 1)
    killed = set()
    while process.poll() is None and len(killed) < kills:
        for pid in helpers_of(process):
            if pid not in killed and len(killed) < kills:
                done = len(finished(out))
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.add(pid)
                wait_for(process, out, done + 2)  # they shall not all hit the same study
        time.sleep(0.01)
    ended = end(process)
    result = read_result(competition, out)
    changed = ground.differing(result, [f"1.{n}" for n in range(1, count + 1)])
    lost = changed[len(killed) :]
    return count_one("a worker killed", len(killed), result, lost, ended=ended)


@contextmanager
def out_of_memory(backbone: str, fails: Callable[[int], bool]) -> Iterator[list[int]]:
    """Networks of one backbone raise torch's own error for the batches that `fails` names."""
    raised: list[int] = []

    def hook(module: torch.nn.Module, inputs: tuple) -> None:
        if isinstance(module, SliceModel) and module.config.backbone == backbone:
            size = len(inputs[0])
            if fails(size):
                raised.append(size)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield raised
    finally:
        handle.remove()


def memory_runs_out(ground: Ground, count: int, backbone: str) -> Count:
    """Batches over a few slices do not fit: the batch halves and no study loses anything."""
    competition = ground.competition("memory", count)
    with out_of_memory(backbone, lambda size: size > SMALL_BATCH) as raised:
        result = run_here(ground, competition)
    uids = [f"1.{n}" for n in range(1, count + 1)]
    lost = ground.differing(result, uids, tolerance=1e-5)
    return count_one("out of memory in a member (batch halves)", len(raised), result, lost)


def memory_never_there(ground: Ground, count: int, backbone: str) -> Count:
    """A member that fits in no batch size: the others go on, no study falls to the priors."""
    competition = ground.competition("no_memory", count)
    with out_of_memory(backbone, lambda size: True) as raised:
        result = run_here(ground, competition)
    return count_one("a member out of memory at any batch", len(raised), result, priors_in(result))


def priors_in(result: Result) -> list[str]:
    """Studies that got nothing better than the priors."""
    return [uid for uid, source in result.sources().items() if source == "priors"]


def poisoned(ground: Ground, count: int, member: str) -> Count:
    """NaN weights in every fold of a member: no study may fall to the priors for it."""
    competition = ground.competition("poisoned", count)
    bundle = ground.bundle_copy("poisoned_bundle")
    manifest = read_json(bundle / MANIFEST)
    names = [n for n in manifest["files"] if n.startswith(f"models__{member}__") and "weights" in n]
    for name in names:
        state = {key: value.clone() for key, value in load_file(bundle / name).items()}
        next(v for v in state.values() if v.is_floating_point()).view(-1)[0] = float("nan")
        save_file(state, bundle / name)
        manifest["files"][name]["sha256"] = file_hash(bundle / name)
    write_json(bundle / MANIFEST, manifest)
    result = run_here(ground, competition, bundle)
    return count_one("NaN from a member", len(names), result, priors_in(result))


def damaged_bundle(ground: Ground, *, limit: int | None = None) -> Count:
    """One bit of one bundle file at a time: the priors stand, and the log says why."""
    competition = ground.competition("damaged", 1)
    names = sorted(p.name for p in ground.bundle.iterdir() if p.suffix not in (".whl", ".key"))
    tried, valid, silent = names[:limit], 0, []
    for name in tried:
        bundle = ground.bundle_copy("damaged_bundle")
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 0x10
        (bundle / name).write_bytes(data)
        result = run_here(ground, competition, bundle)
        valid += result.rows is not None
        causes = [e for e in result.events.others if "cause" in e or "why" in e]
        causes += [c for c in result.events.studies["cause"] if c]
        if not causes and name != "dataset-metadata.json":
            silent.append(name)
    remark = f"silent about {silent}" if silent else ""
    return Count("a damaged bundle file", len(tried), len(tried), valid, len(silent), remark)


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


def full_disk(ground: Ground, count: int, size_kib: int, *, rows_fit: bool) -> Count:
    """The working folder is full: after the priors, or (`rows_fit`) only for what comes last."""
    competition = ground.competition("full", count)
    place, kept = ground.work / "full_place", ground.work / "full_kept"
    shutil.rmtree(kept, ignore_errors=True)
    env = {
        **submit_environment(ground, competition, place / "submission.csv"),
        "PLACE": str(place),
        "KEPT": str(kept),
        "SIZE": f"{size_kib}k",
        "PYTHON": sys.executable,
        "SUBMIT": str(SUBMIT),
        "LOG": str(ground.work / "full.log"),
    }
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", FULL_DISK]
    done = subprocess.run(command, env=env, capture_output=True, check=False, timeout=PATIENCE_S)
    result = read_result(competition, kept / "submission.csv")
    uids = [f"1.{n}" for n in range(1, count + 1)]
    lost = ground.differing(result, uids) if rows_fit else []
    name = "disk full at the end" if rows_fit else "disk full after the priors"
    return count_one(name, 1, result, lost, ended=done.returncode == 0)


def disk_full_for_a_while(ground: Ground, count: int) -> Count:
    """The submission cannot be written between first and last study: in the end all is there."""
    competition = ground.competition("for_a_while", count)
    rename, failed = pathlib.Path.replace, []
    out = competition / "out" / "submission.csv"

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == "submission.csv" and 0 < len(finished(out)) < count:
            failed.append(target)
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return rename(self, target)

    fault = ""
    with mock.patch.object(pathlib.Path, "replace", replace):
        try:
            result = run_here(ground, competition)
        except OSError as error:
            fault = f"ended by {error.strerror}"
            result = read_result(competition, out)
    lost = ground.differing(result, [f"1.{n}" for n in range(1, count + 1)])
    counted = count_one("disk full for a while", len(failed), result, lost)
    counted.remark = fault or counted.remark
    return counted


def clock_jumps(ground: Ground, count: int) -> Count:
    """The wall clock leaps ten hours ahead and then a day back: nothing changes."""
    competition = ground.competition("clock", count)
    real, calls = time.time, []

    def jumping() -> float:
        calls.append(1)
        return real() + (0, 36_000, -86_400)[min(2, len(calls) // 3)]

    with mock.patch.object(time, "time", jumping):
        result = run_here(ground, competition)
    lost = ground.differing(result, [f"1.{n}" for n in range(1, count + 1)])
    return count_one("the clock jumps", min(2, len(calls) // 3), result, lost)


def terminated(ground: Ground, count: int, after: int) -> Count:
    """SIGTERM in the middle: finished studies keep their rows, and no helper lives on."""
    competition = ground.competition("terminated", count)
    process, out = start_kernel(ground, competition)
    wait_for(process, out, after)
    alive = process.poll() is None
    process.send_signal(signal.SIGTERM)
    done = finished(out)
    try:
        process.wait(GRACE_S)
        ended = True
    except subprocess.TimeoutExpired:
        ended = False
    deadline = time.monotonic() + GRACE_S
    while session_processes(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    orphans = session_processes(process.pid)
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    result = read_result(competition, out)
    # The study whose event was written last may still have been on its way into the file.
    lost = ground.differing(result, done)[1:]
    counted = count_one("SIGTERM during the run", int(alive), result, lost, ended=ended)
    if orphans:
        counted.lost += len(orphans)
        counted.remark = f"{len(orphans)} helpers live on"
    return counted

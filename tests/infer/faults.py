"""Where faults are tried on the kernel, and how what came of them is counted.

In: a bundle, sound study folders, a working folder. Out: a `Count` per fault: how many were tried,
how many runs ended with a valid submission, how many studies lost more than themselves. Example::

    ground = Ground(bundle, studies, tmp_path)
    result = run_here(ground, ground.competition("sound", 4))
    count_rows("nothing", 1, ground, result, ["1.1", "1.2"])

A study that a fault does not touch must get the very rows of a run without faults; one more that
differs is "lost more than themselves". No production code knows of any of this: files, signals,
mounts, a torch hook and patched functions are all there is (`matrix`).
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.runs import read_json, write_json
from cspine_kit.infer.log import IMAGE, KernelEvents, read_kernel_log
from cspine_kit.infer.manifest import COPY, MANIFEST
from cspine_kit.infer.patience import Patience
from cspine_kit.infer.run import run_kernel
from cspine_kit.infer.submission import read_submission, read_wanted_rows

SUBMIT = Path(__file__).resolve().parents[2] / "kernels" / "submit" / "submit.py"
PATIENCE_S = 300.0
GRACE_S = 20.0
NETWORKS = (IMAGE, "header_levels")
QUICK = {
    "listing": Patience(study_s=2.0),
    "headers": Patience(study_s=2.0),
    "pixels": Patience(read_s=8.0),
    "bundle": Patience(bundle_s=6.0),
    "loading": Patience(load_s=15.0),
    "networks": Patience(network_s=10.0),
    "stack": Patience(network_s=10.0),
}
"""For runs in which that stage hangs: sound work takes a tenth of it on a busy machine."""


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


def run_here(
    ground: Ground,
    competition: Path,
    bundle: Path | None = None,
    *,
    patience: Patience | None = None,
    resume: bool = False,
) -> Result:
    """Run the kernel in this process, so that hooks and patches reach it."""
    out = competition / "out" / "submission.csv"
    if not resume:
        shutil.rmtree(out.parent, ignore_errors=True)
    run_kernel(competition, bundle or ground.bundle, out, patience=patience, resume=resume)
    return read_result(competition, out)


def start_kernel(
    ground: Ground, competition: Path, code: str | None = None
) -> tuple[subprocess.Popen, Path]:
    """Start submit.py in a process and session of its own, without installing wheels again.

    `code` is run instead of the script: it imports `submit`, changes something and calls its main.
    """
    out = competition / "out" / "submission.csv"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    process = subprocess.Popen(
        [sys.executable, *(["-c", code] if code else [str(SUBMIT)])],
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
        if ".whl" not in file.name:
            (slim / file.name).symlink_to(file.resolve())
    manifest = read_json(ground.bundle / MANIFEST)
    manifest["files"] = {n: e for n, e in manifest["files"].items() if not n.endswith(".whl")}
    for name in (MANIFEST, MANIFEST + COPY):
        (slim / name).unlink()
        write_json(slim / name, manifest)
    before = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    places = [str(SUBMIT.parents[2]), str(SUBMIT.parent), *before]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "CSPINE_INPUT": str(inputs),
        "CSPINE_OUT": str(out),
        "KAGGLE_IS_COMPETITION_RERUN": "1",
    }


def logged(out: Path) -> list[dict]:
    """Events in the log so far."""
    log = out.with_name("kernel_log.jsonl")
    lines = log.read_text().splitlines() if log.exists() else []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:  # the last line is being written
            continue
    return events


def finished(out: Path) -> list[str]:
    """Studies that the log says are done."""
    return [e["study_uid"] for e in logged(out) if e["event"] == "study"]


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


def patience_with(stage: str, kind: str) -> Patience | None:
    """The kernel's own patience but where something hangs."""
    return QUICK[stage] if kind == "hangs" else None


def uids(count: int) -> list[str]:
    """Studies of a competition of so many."""
    return [f"1.{n}" for n in range(1, count + 1)]


def count_one(
    fault: str, tried: int, result: Result, lost: list[str], *, ended: bool = True
) -> Count:
    """The count of a single run; a fallback without a cause in the log is lost too."""
    silent = [
        str(row.study_uid)
        for row in result.events.studies.itertuples()
        if row.source != IMAGE and not row.cause
    ]
    lost = [*lost, *silent]
    remark = (
        result.fault or ("" if ended else "did not end") or (f"lost {lost[:3]}" if lost else "")
    )
    return Count(fault, tried, 1, int(result.rows is not None and ended), len(lost), remark)


def count_rows(
    fault: str,
    tried: int,
    ground: Ground,
    result: Result,
    spared: list[str],
    *,
    victims: Sequence[str] = (),
    ended: bool = True,
) -> Count:
    """The count of a run that must leave `spared` the very rows of a sound one.

    A study that nobody answered is lost, a victim or not.
    """
    unanswered = [uid for uid in (*spared, *victims) if uid not in result.sources()]
    lost = [*ground.differing(result, spared), *unanswered]
    return count_one(fault, tried, result, lost, ended=ended)


def count_sources(fault: str, tried: int, result: Result, expected: list[str]) -> Count:
    """The count of a run whose rows may change, but in which networks must answer `expected`."""
    answered = {uid for uid, source in result.sources().items() if source in NETWORKS}
    return count_one(fault, tried, result, [uid for uid in expected if uid not in answered])


def altogether(fault: str, counts: Sequence[Count]) -> Count:
    """Several runs with one kind of fault as one count."""
    remark = next((count.remark for count in counts if not count.ok), "")
    return Count(
        *(fault, sum(c.tried for c in counts), sum(c.runs for c in counts)),
        *(sum(c.valid for c in counts), sum(c.lost for c in counts), remark),
    )

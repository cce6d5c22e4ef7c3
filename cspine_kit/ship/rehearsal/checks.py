"""What must hold in a rehearsal, and what was found.

In: a bundle, what the probe saw, how runs ended, their submissions and logs. Out: checks in a
`Rehearsal`. Example::

    here = Environment(Path("env"), "3.12", "3.12", build_s=60.0, built_now=False)
    result = Rehearsal(config, here, {"network": "off"})
    check_bundle(bundle, config, result)
    result.ok, result.checks
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.metric import Score, evaluate
from cspine_kit.core.paths import KERNEL_LOG, SUBMISSION, Competition
from cspine_kit.core.runs import read_json
from cspine_kit.data.labels import read_labels
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.infer.log import IMAGE, KernelEvents, read_kernel_log
from cspine_kit.infer.manifest import MANIFEST, open_bundle
from cspine_kit.infer.submission import read_submission, read_wanted_rows
from cspine_kit.ship.bundle.wheelhouse import check_wheels
from cspine_kit.ship.rehearsal.constraints import Pins
from cspine_kit.ship.rehearsal.environment import Environment
from cspine_kit.ship.rehearsal.forecast import Forecast, forecast_run
from cspine_kit.ship.rehearsal.inputs import PUBLIC_ROWS, Inputs
from cspine_kit.ship.rehearsal.sandbox import SandboxRun

START_LIMIT_S = 60.0
"""From the start of the script to the first study predicted from its images."""

SAME = 1e-6
GUESSED = "no_position"
"""The reader's code where spacing is a guess: equal voxels then need not give equal rows."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    name: str
    ok: bool
    detail: str


@dataclass
class Rehearsal:
    """Everything that was found; the page is written from it."""

    config: Config
    environment: Environment
    isolation: dict[str, str]
    checks: list[Check] = field(default_factory=list)
    probe: dict[str, object] = field(default_factory=dict)
    runs: dict[str, SandboxRun] = field(default_factory=dict)
    hostile: pd.DataFrame = field(default_factory=pd.DataFrame)
    score: Score | None = None
    score_of_priors: Score | None = None
    start_s: float = float("nan")
    forecast: Forecast | None = None

    @property
    def ok(self) -> bool:
        """True where every check holds."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def check(self, name: str, ok: bool, detail: str = "") -> bool:
        """Record one check."""
        self.checks.append(Check(name, bool(ok), detail))
        return bool(ok)


def check_bundle(bundle: Path, config: Config, result: Rehearsal) -> None:
    """Hashes of all files, and wheels for every Python the kernel may meet."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            open_bundle(bundle, Path(scratch))
        listed = read_json(bundle / MANIFEST)["files"]
        result.check("bundle: every file is what its hash says", True, f"{len(listed)} files")
    except CSpineError as error:
        result.check("bundle: every file is what its hash says", False, str(error))
        return
    wheels = ", ".join(name for name in listed if name.endswith(".whl"))
    try:
        check_wheels(config.bundle, bundle)
        result.check("bundle: wheels for every Python, by tag and hash", True, wheels)
    except CSpineError as error:
        result.check("bundle: wheels for every Python, by tag and hash", False, str(error))


def check_environment(result: Rehearsal, pins: Pins, namespaces: bool) -> None:
    """What the probe saw inside the sandbox: pins, network, mounts."""
    seen = result.probe.get("packages")
    seen = seen if isinstance(seen, dict) else {}
    wrong = {
        name: f"{seen.get(name)} instead of {version}"
        for name, version in pins.versions.items()
        if str(seen.get(name)).split("+")[0] != version
    }
    result.check("environment: every pin of Kaggle's image", not wrong, str(wrong or len(seen)))
    result.check("environment: no internet", result.probe.get("internet") is False)
    mounts = result.probe.get("mounts")
    mounts = mounts if isinstance(mounts, list) else []
    writable = [m["path"] for m in mounts if m.get("writable") and "test.csv" in m.get("names", [])]
    if namespaces:
        result.check("environment: inputs cannot be written to", not writable, str(writable or ""))


def check_run(
    result: Rehearsal, name: str, run: SandboxRun, competition: Competition, working: Path
) -> tuple[pd.Series, KernelEvents] | None:
    """Check how one kernel run ended and what it wrote; None where that cannot be read."""
    result.runs[name] = run
    tail = " / ".join(run.output.strip().splitlines()[-2:])
    how = f"exit code {run.code}, {run.seconds:.0f} s, {run.peak_mib:.0f} MiB"
    how += f", ended for its {run.ended_for}" if run.ended_for else ""
    how += f": {tail}" if run.code else ""
    result.check(f"{name}: ends by itself with code 0", run.code == 0 and not run.ended_for, how)
    result.check(f"{name}: leaves no process behind", not run.left_over, f"{run.left_over} left")
    wanted = read_wanted_rows(competition.test_csv)
    sample = pd.read_csv(competition.sample_submission_csv, dtype=str)["row_id"]
    try:
        probs = read_submission(working / SUBMISSION, wanted["row_id"])
        read_submission(working / SUBMISSION, sample)
        events = read_kernel_log(working / KERNEL_LOG)
    except CSpineError as error:
        result.check(f"{name}: valid submission and log", False, f"{error}; {tail}")
        return None
    ended = events.first("end") is not None
    result.check(f"{name}: valid submission and log", ended, f"{len(probs)} rows")
    given_up = [str(e.get("what")) for e in events.others if e["event"] == "degraded"]
    result.check(f"{name}: nothing given up for time", not given_up, "; ".join(given_up))
    return probs, events


def judge_hostile(
    result: Rehearsal, inputs: Inputs, probs: pd.Series, events: KernelEvents
) -> None:
    """Compare every hostile study with its manifest."""
    manifest = pd.read_csv(inputs.hostile.root / "manifest.csv", dtype={"study_uid": str})
    table = manifest.merge(events.studies, on="study_uid", how="left", suffixes=("", "_read"))
    table["source"] = table["source"].fillna("nothing")
    table["cause"] = table["cause"].fillna("")
    reference = table.loc[table["defect"] == "clean", "study_uid"].iloc[0]
    rows = {uid: [f"{uid}_{target}" for target in TARGETS] for uid in table["study_uid"]}
    found = []
    for row in table.to_dict("records"):
        faults = []
        if not row["listed"]:
            if row["source"] != "nothing":
                faults.append("predicted though no row asks for it")
        elif row["outcome"] == "predicted":
            if row["source"] != IMAGE:
                faults.append(f"from {row['source']}: {row['cause']}")
            elif row["slices"] == row["slices"] and row["slices"] != row["slices_read"]:
                faults.append(f"{row['slices_read']:.0f} slices, promised {row['slices']:.0f}")
            elif row["same_as_clean"] and GUESSED not in row["problems"]:
                gap = np.abs(
                    probs[rows[row["study_uid"]]].to_numpy() - probs[rows[reference]].to_numpy()
                )
                if gap.max() > SAME:
                    faults.append(f"differs from the clean study by {gap.max():.2g}")
        elif row["source"] in (IMAGE, "nothing"):
            faults.append(f"from {row['source']}, promised a fallback")
        elif not row["cause"]:
            faults.append("a fallback without a cause")
        found.append("; ".join(faults))
    table["fault"] = found
    result.hostile = table
    bad = table[table["fault"] != ""]
    detail = (
        "; ".join(f"{r.defect}: {r.fault}" for r in bad.itertuples()) or f"{len(table)} studies"
    )
    result.check("hostile studies: each as its manifest says", bad.empty, detail)


def judge_clean(
    result: Rehearsal,
    inputs: Inputs,
    probs: pd.Series,
    events: KernelEvents,
    *,
    started: float,
    priors: Mapping[str, float],
) -> None:
    """Sources and score of the sound studies, fallback of the rows without images, forecast.

    Args:
        result: takes the checks and figures.
        inputs: what was run.
        probs: the submission by row_id.
        events: the kernel's log.
        started: time of day when the script was started, s.
        priors: the bundle's constants by target; their score stands beside the submission's.
    """
    clean, full = inputs.clean_uids, inputs.full_uids
    source = events.studies.set_index("study_uid")["source"]
    lost = [uid for uid in {*clean, *full} if source.get(uid) != IMAGE]
    count = len({*clean, *full})
    result.check("sound studies: all from their images", not lost, f"{count} studies; lost {lost}")
    absent = [row.split("_")[0] for row in PUBLIC_ROWS]
    bad = [uid for uid in absent if source.get(uid) in (None, IMAGE)]
    result.check("rows without images: a logged fallback", not bad, f"{len(absent)} rows; {bad}")
    truth = read_labels(inputs.clean.solution_csv).set_index("study_uid").loc[clean]
    labels = truth[list(TARGETS)].to_numpy()
    values = [[probs[f"{uid}_{target}"] for target in TARGETS] for uid in clean]
    result.score = evaluate(labels, np.array(values))
    constant = np.broadcast_to([priors[target] for target in TARGETS], labels.shape)
    result.score_of_priors = evaluate(labels, constant)
    times = events.studies.loc[events.studies["source"] == IMAGE, "time"]
    result.start_s = float(times.min() - started)
    result.check(
        f"start to first prediction under {START_LIMIT_S:.0f} s",
        result.start_s < START_LIMIT_S,
        f"{result.start_s:.1f} s",
    )
    try:
        pixels = np.prod(read_study(inputs.full.images("test", full[0])).hu.shape[1:])
        decoders = next((e["readers"] for e in events.others if "readers" in e), 1)
        result.forecast = forecast_run(
            events, set(full), pixels=float(pixels), decoders=int(decoders)
        )
    except CSpineError as error:
        result.check("forecast of the hidden test set", False, str(error))

"""The dress rehearsal: the bundle run as Kaggle will run it, on studies whose truth is known.

In: a bundle, the kernel's script, a hostile and two plain phantom competitions, an environment of
Kaggle's packages. Out: every check with its detail. Example::

    rows = read_submission(submission, read_wanted_rows(competition.test_csv)["row_id"])
    here = Environment(Path("env"), "3.12", "3.12", build_s=60.0, built_now=False)
    result = Rehearsal(config, here, {"network": "off"})
    compare(result, "both layouts give the same rows", rows, rows + 1e-9, SAME)
    result.ok, result.checks

Three runs: everything under the new mount layout, everything under the old one, and the public
listing, whose rows have no images, as a push runs it. Then a training in small, cut and continued.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cspine_kit.core.command import run_command
from cspine_kit.core.config import load_config
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.paths import SUBMISSION, Competition
from cspine_kit.core.runs import read_json
from cspine_kit.infer.log import KernelEvents
from cspine_kit.infer.submission import read_submission, read_wanted_rows
from cspine_kit.ship.kaggle.parcels import write_parcels
from cspine_kit.ship.rehearsal.checks import (
    SAME,
    Rehearsal,
    check_bundle,
    check_environment,
    check_run,
    judge_clean,
    judge_hostile,
)
from cspine_kit.ship.rehearsal.constraints import Pins
from cspine_kit.ship.rehearsal.environment import Environment
from cspine_kit.ship.rehearsal.inputs import (
    Inputs,
    assemble,
    content_fingerprint,
    layouts,
    public_competition,
)
from cspine_kit.ship.rehearsal.sandbox import Sandbox
from cspine_kit.ship.rehearsal.training import rehearse_training

Found = tuple[pd.Series, KernelEvents] | None

LOCAL_GAP = 1e-5
"""Between the rows of Kaggle's packages and of this machine's, on equal devices."""


def local_rows(bundle: Path, competition: Competition, out: Path) -> pd.Series:
    """The rows of `cspine kernel`, run here with this machine's packages.

    Raises:
        SubmissionError: it wrote no valid submission.
    """
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["--competition", competition.root, "--bundle", bundle, "--out", out / SUBMISSION]
    command = [sys.executable, "-m", "cspine_kit", "kernel", *map(str, arguments)]
    run_command(command, "cspine kernel with this machine's packages")
    return read_submission(out / SUBMISSION, read_wanted_rows(competition.test_csv)["row_id"])


def compare(
    result: Rehearsal, name: str, rows: pd.Series, others: pd.Series, tolerance: float
) -> None:
    """Record whether two submissions agree."""
    gap = float((rows - others).abs().max())
    result.check(name, gap <= tolerance, f"largest gap {gap:.2g}")


def rehearse(
    bundle: Path,
    inputs: Inputs,
    environment: Environment,
    sandbox: Sandbox,
    *,
    kernels: Path,
    out: Path,
    pins: Pins,
    scans: Competition,
    wheels: Sequence[Path],
    limit_s: float,
) -> Rehearsal:
    """Run the whole rehearsal; see the module. Nothing wrong is raised, everything is a check.

    Args:
        bundle: folder that `build_bundle` wrote.
        inputs: the three phantom competitions.
        environment: of Kaggle's packages.
        sandbox: where the script runs.
        kernels: folder with submit, cache, train and probe, each with its script.
        out: submissions, logs and outputs of the runs land below it.
        pins: what the environment must hold.
        scans: a competition with a few training studies, for a training in small.
        wheels: what such a training finds there.
        limit_s: time budget of each run, s.
    """
    config = load_config(bundle / "config.yaml")
    result = Rehearsal(config, environment, sandbox.describe())
    check_bundle(bundle, config, result)
    everything = assemble(inputs, out / "competition")
    public = public_competition(inputs, out / "public")
    before = content_fingerprint(everything, bundle)
    parcels = write_parcels(config, bundle, out / "upload")
    mounts = layouts(config, everything.root, parcels)
    submit, probe = kernels / "submit" / "submit.py", kernels / "probe" / "probe.py"
    sandbox.run(environment.folder, probe, mounts["new"], limit_s=limit_s)
    report = sandbox.working / "probe.json"
    result.probe = read_json(report) if report.exists() else {}
    check_environment(result, pins, sandbox.isolation == "namespaces")

    def kernel(name: str, places: dict[str, Path], competition: Competition) -> Found:
        rerun = competition is everything
        run = sandbox.run(environment.folder, submit, places, limit_s=limit_s, rerun=rerun)
        kept = out / name.replace(" ", "_")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(sandbox.working, kept)
        (kept / "output.txt").write_text(run.output)
        return check_run(result, name, run, competition, kept)

    started = time.time()
    new = kernel("new layout", mounts["new"], everything)
    old = kernel("old layout", mounts["old"], everything)
    kernel("public listing", layouts(config, public.root, parcels)["new"], public)
    result.check("inputs are as they were", content_fingerprint(everything, bundle) == before)
    rehearse_training(
        result,
        config,
        scans,
        environment,
        sandbox,
        kernels=kernels,
        wheels=wheels,
        out=out / "training",
        limit_s=limit_s,
    )
    if new is None:
        return result
    if old is not None:
        compare(result, "both layouts give the same rows", new[0], old[0], SAME)
    try:
        here = local_rows(bundle, everything, out / "local")
        compare(result, "cspine kernel here gives the same rows", new[0], here, LOCAL_GAP)
    except CSpineError as error:
        result.check("cspine kernel here gives the same rows", False, str(error))
    judge_hostile(result, inputs, *new)
    priors = read_json(bundle / "priors.json")
    judge_clean(result, inputs, *new, started=started, priors=priors)
    return result

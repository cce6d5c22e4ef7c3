"""A training on Kaggle, rehearsed: a fold cut by its time limit and continued, in small.

In: scans, wheels, a sandbox. Out: checks. Example::

    small(config).vertebra.epochs            # two, of a network of a few thousand weights

Four sessions of `kernels/train/train.py`: volumes, a training that its time limit cuts after a
step, one that goes on from there under the other mount layout, and one that was never cut. On a CPU
the last two end in the same bits.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cspine_kit.core.config import Config
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.paths import Competition
from cspine_kit.ship.kaggle.parcels import Parcel
from cspine_kit.ship.rehearsal.checks import Rehearsal
from cspine_kit.ship.rehearsal.environment import Environment
from cspine_kit.ship.rehearsal.sandbox import Sandbox, SandboxRun
from cspine_kit.ship.training.dataset import write_dataset
from cspine_kit.ship.training.names import Kind
from cspine_kit.ship.training.output import SESSION, Report, read_report
from cspine_kit.vision.names import VERTEBRA, WEIGHTS_FILE

KEPT_GB = 20.0
"""What the service keeps of a session's output, in 10^9 bytes."""

NEVER, LONG = 0.0, 1.0
"""Hours of a session that its limit cuts at its first step, and of one that is not cut."""


def small(config: Config) -> Config:
    """The config with a vertebra stage of seconds: two folds of two epochs, on one thread."""
    network = {
        **{"backbone": "tiny_cnn", "pretrained": False, "weights": None, "in_chans": 3},
        **{"size_px": 32, "epochs": 2, "batch_size": 4, "slices_per_study": 16},
        **{"slice_step_mm": 8.0, "rounds": 0},
    }
    return config.model_copy(
        update={
            "exclude": {},
            "folds": config.folds.model_copy(update={"n": 2, "file": None}),
            "vertebra": config.vertebra.model_copy(update=network),
            "vertebra_members": {},
            "training": config.training.model_copy(update={"workers": 0, "log_with": None}),
            "execution": config.execution.model_copy(
                update={"backend": "local", "jobs": 1, "threads": 1}
            ),
        }
    )


@dataclass
class _Sessions:
    """The sessions of one training in a sandbox."""

    environment: Environment
    sandbox: Sandbox
    script: Path
    out: Path
    slug: str
    limit_s: float
    runs: list[SandboxRun] = field(default_factory=list)

    def run(
        self, name: str, dataset: Parcel, earlier: Sequence[str], scans: Path | None = None
    ) -> Report:
        """One session, whose output is kept under its name.

        Raises:
            ArtifactError: it left no report.
        """
        slug = dataset.ref.partition("/")[2]
        mounts = {f"datasets/{dataset.ref}": dataset.folder}
        outputs = {f"notebooks/me/{other}": self.out / other for other in earlier}
        if name == "continued":  # the layout that Kaggle had before
            mounts = {slug: dataset.folder}
            outputs = {other: self.out / other for other in earlier}
        if scans is not None:
            mounts[f"competitions/{self.slug}"] = scans
        self.runs.append(
            self.sandbox.run(
                self.environment.folder,
                self.script,
                {**mounts, **outputs},
                limit_s=self.limit_s,
                rerun=False,
            )
        )
        shutil.copytree(self.sandbox.working, self.out / name)
        (self.out / f"{name}.txt").write_text(self.runs[-1].output)
        return read_report(self.out / name / SESSION)


def rehearse_training(
    result: Rehearsal,
    config: Config,
    scans: Competition,
    environment: Environment,
    sandbox: Sandbox,
    *,
    script: Path,
    wheels: Sequence[Path],
    out: Path,
    limit_s: float,
) -> None:
    """Run the four sessions; nothing wrong is raised, everything is a check.

    Args:
        result: takes the checks.
        config: what is trained is a small likeness of it.
        scans: a competition with a few training studies that have masks.
        environment: of Kaggle's packages.
        sandbox: where the sessions run.
        script: kernels/train/train.py.
        wheels: of the kit and what Kaggle lacks.
        out: outputs and logs of the sessions land in it.
        limit_s: time budget of each session, s.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    sessions = _Sessions(environment, sandbox, script, out, config.competition.slug, limit_s)
    try:
        faults = _four_sessions(result, small(config), scans, sessions, wheels)
    except CSpineError as error:
        faults = [str(error)]
    taken = ", ".join(f"{run.seconds:.0f} s" for run in sessions.runs)
    faults += [
        f"exit code {run.code} {run.ended_for}: {' / '.join(run.output.splitlines()[-2:])}"
        for run in sessions.runs
        if run.code or run.ended_for
    ]
    result.check(
        "training: four sessions end by themselves with code 0",
        not faults and len(sessions.runs) == 4,
        "; ".join(faults) or taken,
    )


def _four_sessions(
    result: Rehearsal,
    config: Config,
    scans: Competition,
    sessions: _Sessions,
    wheels: Sequence[Path],
) -> list[str]:
    """The sessions and what must hold of them; what went wrong in them."""
    whole, cut = (
        write_dataset(config, sessions.out / f"{hours}", wheels=wheels, pretrained={}, hours=hours)
        for hours in (LONG, NEVER)
    )
    reports = [
        sessions.run("volumes", whole, [], scans.root),
        sessions.run("cut", cut, ["volumes"]),
        sessions.run("continued", whole, ["volumes", "cut"]),
        sessions.run("uncut", whole, ["volumes"]),
    ]
    left = reports[1]
    checkpoint = any(place.endswith("checkpoint.pt") for place in left.files)
    wanted: list[Kind] = ["train", "train", "cache", "cache"]
    result.check(
        "training: its time limit cuts a session, which leaves a checkpoint",
        checkpoint and [report.next for report in reports] == wanted,
        left.left,
    )
    models = [f"oof/{config.name}/models/{VERTEBRA}/fold_{k}/{WEIGHTS_FILE}" for k in (0, 1)]
    files = [[sessions.out / name / model for model in models] for name in ("continued", "uncut")]
    there = all(file.exists() for pair in files for file in pair)
    mine, theirs = ([file.read_bytes() if there else b"" for file in pair] for pair in files)
    differ = sum(a != b for a, b in zip(mine, theirs, strict=True))
    result.check(
        "training: cut and continued it ends in the weights of an uncut one",
        there and (not differ or bool(result.probe.get("gpus"))),
        f"{len(models)} fold models, {differ} of them differ" if there else "there are no weights",
    )
    sizes = [
        sum(path.stat().st_size for path in (sessions.out / name).rglob("*") if path.is_file())
        for name in ("volumes", "cut", "continued", "uncut")
    ]
    result.check(
        f"training: what a session leaves fits the service's {KEPT_GB:.0f} GB",
        max(sizes) < KEPT_GB * 1e9,
        f"{max(sizes) / 1e6:.1f} MB of a few small scans",
    )
    return [f"{report.kind} session: {report.fault}" for report in reports if report.fault]

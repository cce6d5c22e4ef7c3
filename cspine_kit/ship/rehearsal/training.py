"""A training on Kaggle, rehearsed: a fold cut by its time limit and continued, in small.

In: scans, wheels, a sandbox. Out: checks. Example::

    small(config).vertebra.epochs            # two, of a network of a few thousand weights

Three sessions of `kernels/cache`: all volumes; a part of them, because a small working folder holds
no more; the rest. Three of `kernels/train`: one on the parts that its time limit cuts after a
step, one that goes on from there under the other mount layout, and one on all volumes that was
never cut. On a CPU the last two end in the same bits.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cspine_kit.core.config import Config
from cspine_kit.core.errors import CSpineError
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.room import size_gb
from cspine_kit.core.tables import read_table
from cspine_kit.data.volumes.cache import COMPRESSED
from cspine_kit.ship.kaggle.parcels import Parcel
from cspine_kit.ship.rehearsal.checks import Rehearsal
from cspine_kit.ship.rehearsal.environment import Environment
from cspine_kit.ship.rehearsal.sandbox import Sandbox, SandboxRun
from cspine_kit.ship.training.dataset import write_dataset
from cspine_kit.ship.training.names import OUTPUT_GB, SERVICE_GB, Kind, script_of
from cspine_kit.ship.training.output import SESSION, Report, read_report
from cspine_kit.vision.names import VERTEBRA, WEIGHTS_FILE

SESSIONS: dict[str, Kind] = {
    **dict.fromkeys(("volumes", "part", "rest"), "cache"),
    **dict.fromkeys(("cut", "continued", "uncut"), "train"),
}
NEXT: dict[str, Kind] = {
    **{"volumes": "train", "part": "cache", "rest": "train"},
    **{"cut": "train", "continued": "cache", "uncut": "cache"},
}
"""What each session says is needed after it."""

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

    config: Config
    environment: Environment
    sandbox: Sandbox
    kernels: Path
    out: Path
    wheels: Sequence[Path]
    scans: Competition
    limit_s: float
    runs: dict[str, SandboxRun] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)

    def run_of(self, name: str) -> RunPaths:
        """The run folder that a session left."""
        return RunPaths(self.out / name / "oof" / self.config.name)

    def run(
        self,
        name: str,
        earlier: Sequence[str] = (),
        *,
        hours: float = LONG,
        output_gb: float = OUTPUT_GB,
    ) -> Report:
        """One session, whose output is kept under its name.

        Args:
            name: of `SESSIONS`.
            earlier: sessions whose output it sees.
            hours: after which it stops.
            output_gb: that it leaves at most; the sandbox ends it at a ninth more, as Kaggle would.

        Raises:
            ArtifactError: it left no report.
        """
        dataset = self._dataset(hours, output_gb)
        slug, kind = dataset.ref.partition("/")[2], SESSIONS[name]
        mounts = {f"datasets/{dataset.ref}": dataset.folder}
        outputs = {f"notebooks/me/{other}": self.out / other for other in earlier}
        if name == "continued":  # the layout that Kaggle had before
            mounts = {slug: dataset.folder}
            outputs = {other: self.out / other for other in earlier}
        if kind == "cache":
            mounts[f"competitions/{self.config.competition.slug}"] = self.scans.root
        sandbox = replace(self.sandbox, working_gb=output_gb * SERVICE_GB / OUTPUT_GB)
        done = sandbox.run(
            self.environment.folder,
            self.kernels / kind / script_of(kind),
            {**mounts, **outputs},
            limit_s=self.limit_s,
            rerun=False,
        )
        self.runs[name] = done
        shutil.copytree(sandbox.working, self.out / name)
        (self.out / f"{name}.txt").write_text(done.output)
        self.reports[name] = read_report(self.out / name / SESSION)
        return self.reports[name]

    def _dataset(self, hours: float, output_gb: float) -> Parcel:
        folder = self.out / f"dataset_{hours}_{output_gb}"
        limits = {"hours": hours, "output_gb": output_gb}
        return write_dataset(self.config, folder, wheels=self.wheels, pretrained={}, **limits)

    def run_all(self) -> None:
        """Every session, in turn.

        Raises:
            CSpineError: one left no report, or no table.
        """
        self.run("volumes")
        self.run("part", output_gb=self._room_for_some())
        self.run("rest", ["part"])
        self.run("cut", ["part", "rest"], hours=NEVER)
        self.run("continued", ["part", "rest", "cut"])
        self.run("uncut", ["volumes"])

    def _room_for_some(self) -> float:
        """Room for the tables and about half of the volumes, as a session reckons with them."""
        paths = self.run_of("volumes")
        rows = read_table(paths.table("coarse"), "coarse")
        volumes_gb = COMPRESSED * float((rows["nz"] * rows["ny"] * rows["nx"]).sum()) / 1e9
        tables_gb = size_gb(paths.root) - size_gb(paths.cache)
        return round(tables_gb + volumes_gb * (0.5 + 0.5 / len(rows)), 6)


def rehearse_training(
    result: Rehearsal,
    config: Config,
    scans: Competition,
    environment: Environment,
    sandbox: Sandbox,
    *,
    kernels: Path,
    wheels: Sequence[Path],
    out: Path,
    limit_s: float,
) -> None:
    """Run the sessions; nothing wrong is raised, everything is a check.

    Args:
        result: takes the checks.
        config: what is trained is a small likeness of it.
        scans: a competition with a few training studies that have masks.
        environment: of Kaggle's packages.
        sandbox: where the sessions run.
        kernels: holds cache/cache.py and train/train.py.
        wheels: of the kit and what Kaggle lacks.
        out: outputs and logs of the sessions land in it.
        limit_s: time budget of each session, s.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    sessions = _Sessions(small(config), environment, sandbox, kernels, out, wheels, scans, limit_s)
    faults = []
    try:
        sessions.run_all()
    except CSpineError as error:
        faults.append(str(error))
    faults += [f"{name}: {r.fault}" for name, r in sessions.reports.items() if r.fault]
    faults += [
        f"{name}: exit code {run.code} {run.ended_for}: {' / '.join(run.output.splitlines()[-2:])}"
        for name, run in sessions.runs.items()
        if run.code or run.ended_for
    ]
    ended = result.check(
        "training: six sessions end by themselves with code 0",
        not faults and sessions.runs.keys() == SESSIONS.keys(),
        "; ".join(faults) or ", ".join(f"{run.seconds:.0f} s" for run in sessions.runs.values()),
    )
    if ended:
        _check_sessions(result, sessions)


def _check_sessions(result: Rehearsal, sessions: _Sessions) -> None:
    """What must hold of sessions that all ended well."""
    reports, runs = sessions.reports, sessions.runs
    volumes, part, rest = (reports[name].volumes for name in ("volumes", "part", "rest"))
    room_mb = runs["part"].disk_gb * 1e3
    result.check(
        "training: a full working folder ends a session before it overflows",
        0 < part < volumes == part + rest,
        f"{volumes} volumes as {part} and {rest}, {room_mb:.1f} MB at most: {reports['part'].left}",
    )
    result.check(
        "training: each session says what is needed next",
        {name: report.next for name, report in reports.items()} == NEXT,
        "; ".join(f"{name}: {report.next}" for name, report in reports.items()),
    )
    result.check(
        "training: its time limit cuts a session, which leaves a checkpoint",
        any(place.endswith("checkpoint.pt") for place in reports["cut"].files),
        reports["cut"].left,
    )
    folds = range(sessions.config.folds.n)
    pairs = [
        [sessions.run_of(name).model(VERTEBRA, k) / WEIGHTS_FILE for name in ("continued", "uncut")]
        for k in folds
    ]
    there = all(file.exists() for pair in pairs for file in pair)
    differ = sum(one.read_bytes() != other.read_bytes() for one, other in pairs) if there else 0
    result.check(
        "training: cut and continued it ends in the weights of an uncut one",
        there and (not differ or bool(result.probe.get("gpus"))),
        f"{len(pairs)} fold models, {differ} of them differ" if there else "there are no weights",
    )

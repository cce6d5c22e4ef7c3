"""The out-of-fold run: vertebra stage, ordered levels, fracture stage, per fold and resumable.

In: the tables `studies`, `slices`, `coarse` and the folds. Out: fold models and the tables
`vertebra`, `levels`, `oof_slices`, those of `SCORES` that some member fills, and `failures`.
Example::

    run_oof(config, paths)

Fold k is one closed chain: vertebra model k -> levels k -> fracture models k (`vision.chain`).
Between the stages the data room cuts fine volumes, once for the levels of all folds: what a member
k looks at in them follows from levels k alone.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import pandas as pd

from cspine_kit.core.config import Config, ModelConfig
from cspine_kit.core.deadline import time_is_up
from cspine_kit.core.errors import DataError, Unfinished
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.failures import Failure, failures_table, gather
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.room import room_left_gb
from cspine_kit.core.runs import fingerprint, is_fresh, publish, stored_key
from cspine_kit.core.tables import CONTRACTS, read_table, write_table
from cspine_kit.core.tasks import Task, run_tasks
from cspine_kit.data.stages import run_fine
from cspine_kit.vision.check import check_config
from cspine_kit.vision.compare.detection import DETECTIONS, detection
from cspine_kit.vision.inputs.tables import Inputs, open_inputs
from cspine_kit.vision.names import DICE, VERTEBRA
from cspine_kit.vision.oof.attempts import Attempts
from cspine_kit.vision.oof.calibration import calibrate
from cspine_kit.vision.oof.chain import FoldChain
from cspine_kit.vision.oof.lineage import check_lineages
from cspine_kit.vision.oof.steps import (
    make_fracture,
    make_vertebra,
    train_fracture,
    train_vertebra,
)
from cspine_kit.vision.predict import visible_gpus
from cspine_kit.vision.tasks.task import SCORES
from cspine_kit.vision.training.processes import main_first, processes
from cspine_kit.vision.training.room import most_gb

log = logging.getLogger(__name__)


def train_member(config: Config, paths: RunPaths, member: str, fold: int) -> None:
    """Train one fold model of a member (or of "vertebra"); does nothing where it is done.

    Raises:
        DataError: an unknown member or fold, or tables that are missing.
        ConfigError: a network cannot be built, or this machine cannot train as asked.
    """
    known = list(config.trained)
    if member not in known:
        raise DataError(f"member {member!r} is not in the config; there are {known}")
    if not 0 <= fold < config.folds.n:
        raise DataError(f"fold {fold} is not in 0..{config.folds.n - 1}")
    check_config(config)
    if member not in config.fracture:
        train_vertebra(FoldChain(config, paths, open_inputs(paths), fold), member)
    else:
        make_levels(config, paths)
        with main_first():
            run_fine(config, paths)
        train_fracture(FoldChain(config, paths, open_inputs(paths), fold), member)


def _make_fold(
    config: Config,
    paths: RunPaths,
    fold: int,
    member: str,
    *,
    anyway: bool,
    needs_gb: float,
    training_only: bool = False,
) -> str:
    """One task of `run_oof`, in this process or in one of its own; why it was not done to its end.
    `training_only`: the first training of the vertebra stage, without what its network then says.

    Where time is up it is not begun, but for the one that is done `anyway`: a run that is cut again
    and again comes to its end only where each makes a step. Nor is it where room is up.
    """
    if room_left_gb() < needs_gb:
        return "there is no room for more"
    if time_is_up() and not anyway:
        return "time is up"
    chain = FoldChain(config, paths, open_inputs(paths), fold)
    try:
        if training_only:
            train_vertebra(chain)
        elif member == VERTEBRA:
            make_vertebra(chain)
        else:
            make_fracture(chain, member)
    except Unfinished as stopped:
        log.info("%s", stopped)
        return "time is up"
    return ""


def room_for(config: Config, stages: Sequence[str], jobs: int) -> float:
    """What fold models may take on the disk that are trained at once, in 10^9 bytes."""
    parts: list[list[ModelConfig]]
    halves = [half.member for half in config.halves.values()]
    parts = [[config.members[n]] * (1 + halves.count(n)) for n in stages if n != VERTEBRA]
    if VERTEBRA in stages:
        parts.append([m for name, m in config.trained.items() if name not in config.fracture])
    return jobs * max(map(most_gb, parts))


def missing(
    config: Config, paths: RunPaths, stages: Sequence[str], *, needs_gb: float = 0.0
) -> dict[str, Task]:
    """What is still to be made of the vertebra stage, or of members.

    Args:
        config: of the run.
        paths: its folder.
        stages: "vertebra", or members.
        needs_gb: room that must be left (`core.room`) before another fold model is begun.
    """
    inputs = open_inputs(paths)
    left = [
        (fold, name)
        for fold in range(config.folds.n)
        for name in stages
        if not FoldChain(config, paths, inputs, fold).is_done(name)
    ]
    return {
        f"{name} fold {fold}": Task(
            partial(_make_fold, anyway=(fold, name) == left[0], needs_gb=needs_gb),
            (config, paths, fold, name),
        )
        for fold, name in left
    }


def _trained_first(tasks: Mapping[str, Task]) -> dict[str, Task]:
    """The same with the first training of each vertebra fold as a task of its own: what its network
    says of every study takes as long, and of three folds on two cores one would end alone."""
    of_stage = {name: task for name, task in tasks.items() if task.arguments[-1] == VERTEBRA}
    training = {
        f"{name}: training": replace(task, function=partial(task.function, training_only=True))
        for name, task in of_stage.items()
    }
    after = {name: replace(task, after=(f"{name}: training",)) for name, task in of_stage.items()}
    return {**training, **tasks, **after}


def _make(config: Config, paths: RunPaths, stages: Sequence[str]) -> None:
    """Make what is missing: on each GPU one fold model after the other, on a CPU side by side.

    Raises:
        Unfinished: time or room is up.
    """
    gpus = [] if processes().num_processes > 1 else visible_gpus()
    alone = processes().num_processes > 1 or len(gpus) == 1
    jobs = 1 if alone else len(gpus) or config.execution.jobs
    limited = math.isfinite(room_left_gb())
    needs_gb = room_for(config, stages, jobs or usable_cores()) if limited else 0.0
    tasks = missing(config, paths, stages, needs_gb=needs_gb)
    ended = run_tasks(
        tasks if 1 in (jobs, len(tasks)) else _trained_first(tasks),
        jobs=jobs,
        title=f"{' and '.join(stages)} models",
        backend=config.execution.backend,
        environments=[{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus],
    )
    left = {name: ended[name] for name in tasks if ended[name]}
    if left:
        name, why = next(iter(left.items()))
        raise Unfinished(f"{why}: {len(left)} fold models are left, {name} among them")


def make_levels(config: Config, paths: RunPaths) -> None:
    """The vertebra stage of every fold, and its tables.

    Raises:
        ArtifactError: a vertebra model has seen studies of its own fold.
        Unfinished: time or room is up.
    """
    folds = range(config.folds.n)
    if processes().num_processes > 1:  # they share each training; one of them does the rest
        for fold in folds:
            for name in (n for part in config.stage_rounds for n in part):
                train_vertebra(FoldChain(config, paths, open_inputs(paths), fold), name)
    with main_first():
        _make(config, paths, [VERTEBRA])
        inputs = open_inputs(paths)
        chains = [FoldChain(config, paths, inputs, fold) for fold in folds]
        names = [name for networks in config.stage_rounds for name in networks]
        check_lineages(paths, names, inputs.fold_of)
        made = [chain.stage_rows(name) for name in names for chain in chains]
        _collect(made, inputs, paths, VERTEBRA)
        _collect_some(made, inputs, paths, DICE)
        _collect_levels(chains, paths)


def _collect(
    parts: list[Attempts], inputs: Inputs, paths: RunPaths, name: str, own: str | None = None
) -> None:
    """Join the fold files into one contract table with the `fold` each study belongs to."""
    path = paths.table(name)
    key = fingerprint([[part.member, part.fold, part.content()] for part in parts])
    if is_fresh(path, key):
        return
    frame = pd.concat([part.frame(own) for part in parts], ignore_index=True)
    if "fold" in CONTRACTS[name].columns:
        frame["fold"] = frame["study_uid"].map(inputs.fold_of)
    if name == DICE:
        frame = frame[frame["fold"] == frame["model_fold"]]
    write_table(frame, path, name, key)


def _collect_some(made: list[Attempts], inputs: Inputs, paths: RunPaths, table: str) -> None:
    """Join a table that only some networks fill."""
    filled = [part for part in made if table in part.others]
    if filled:
        _collect(filled, inputs, paths, table, table)
    else:  # of networks that are no more
        paths.table(table).unlink(missing_ok=True)


def _collect_levels(chains: Sequence[FoldChain], paths: RunPaths) -> None:
    """Table `levels`, each fold's confidence calibrated."""
    lines, parts = calibrate(chains), [chain.levels for chain in chains]
    key = fingerprint([[part.fold, part.content(), asdict(lines[part.fold])] for part in parts])
    if not is_fresh(paths.table("levels"), key):
        frames = [lines[part.fold].applied(part.frame()) for part in parts]
        write_table(pd.concat(frames, ignore_index=True), paths.table("levels"), "levels", key)


def _detections(paths: RunPaths) -> None:
    """`boxes.csv`: how well members that find boxes do; nothing where none does."""
    boxes, out = paths.table("oof_boxes"), paths.root / DETECTIONS
    if not boxes.exists():
        out.unlink(missing_ok=True)
        return
    key = fingerprint([stored_key(paths.table(t)) for t in ("oof_boxes", "slices", "studies")])
    if not is_fresh(out, key):
        tables = (read_table(paths.table(t), t) for t in ("oof_boxes", "slices", "studies"))
        with publish(out, key) as temporary:
            detection(*tables).to_csv(temporary, index=False)


def run_oof(config: Config, paths: RunPaths) -> list[Failure]:
    """Everything missing up to the out-of-fold slice table; finished work is skipped.

    On a CPU, folds and members run side by side, each on one thread, `execution.jobs` at a time
    (the same numbers as one after the other); each GPU takes them in turn.

    Returns:
        What failed on the way, index and volumes included; also the table `failures`.

    Raises:
        ArtifactError: a model has seen the studies that it is to be scored on.
        DataError: the tables of the data room are missing or hold no usable study; or
            `accelerate launch` started several processes.
        Unfinished: time or room is up (`core.deadline`, `core.room`); the same call goes on.
        ConfigError: a network cannot be built, or this machine cannot train as asked.
    """
    if processes().num_processes > 1:
        raise DataError("several processes share one training: accelerate launch `cspine train`")
    check_config(config)
    make_levels(config, paths)
    run_fine(config, paths)
    _make(config, paths, list(config.members))
    inputs = open_inputs(paths)
    chains = [FoldChain(config, paths, inputs, fold) for fold in range(config.folds.n)]
    check_lineages(paths, [*config.stage, *config.members], inputs.fold_of)
    made = [chain.fracture_rows(member) for chain in chains for member in config.members]
    _collect(made, inputs, paths, "oof_slices")
    for table in SCORES:
        _collect_some(made, inputs, paths, table)
    _detections(paths)
    found = gather(paths, config.trained, config.folds.n)
    failures = [f for f in found if not f.member or f.study_uid in inputs.fold_of]
    table = failures_table(failures)
    key = fingerprint(table.to_dict("records"))
    if not is_fresh(paths.table("failures"), key):
        write_table(table, paths.table("failures"), "failures", key)
    return failures

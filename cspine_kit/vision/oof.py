"""The out-of-fold run: vertebra stage, ordered levels, fracture stage, per fold and resumable.

In: the tables `studies`, `slices`, `volumes` and the folds. Out: fold models and the tables
`vertebra`, `levels`, `oof_slices` and `failures`. Example::

    run_oof(config, paths)

Fold k is one closed chain: vertebra model k -> levels k -> fracture models k (`vision.chain`).
"""

import pandas as pd

from cspine_kit.core.config import Config
from cspine_kit.core.errors import DataError
from cspine_kit.core.failures import Failure, failures_table, gather
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import fingerprint, is_fresh
from cspine_kit.core.tables import CONTRACTS, write_table
from cspine_kit.core.tasks import Task, run_tasks
from cspine_kit.vision.attempts import Attempts
from cspine_kit.vision.chain import FoldChain
from cspine_kit.vision.inputs import Inputs, open_inputs
from cspine_kit.vision.lineage import check_lineages
from cspine_kit.vision.names import VERTEBRA
from cspine_kit.vision.predict import devices
from cspine_kit.vision.steps import (
    make_fracture,
    make_vertebra,
    train_fracture,
    train_vertebra,
)


def train_member(config: Config, paths: RunPaths, member: str, fold: int) -> None:
    """Train one fold model of a member (or of "vertebra"); does nothing where it is done.

    Raises:
        DataError: an unknown member or fold, or tables that are missing.
    """
    known = [VERTEBRA, *config.members]
    if member not in known:
        raise DataError(f"member {member!r} is not in the config; there are {known}")
    if not 0 <= fold < config.folds.n:
        raise DataError(f"fold {fold} is not in 0..{config.folds.n - 1}")
    chain = FoldChain(config, paths, open_inputs(paths), fold)
    if member == VERTEBRA:
        train_vertebra(chain)
    else:
        train_fracture(chain, member)


def _make_fold(config: Config, paths: RunPaths, fold: int, member: str) -> None:
    """One task of `run_oof`, in this process or in one of its own."""
    chain = FoldChain(config, paths, open_inputs(paths), fold)
    if member == VERTEBRA:
        make_vertebra(chain)
    else:
        make_fracture(chain, member)


def missing(config: Config, paths: RunPaths, chains: list[FoldChain]) -> dict[str, Task]:
    """What is still to be made: the vertebra stage of a fold, then each of its members."""
    tasks: dict[str, Task] = {}
    for chain in chains:
        stage, call = f"{VERTEBRA} fold {chain.fold}", (config, paths, chain.fold)
        done = chain.is_done(VERTEBRA)
        # Members of a study that the vertebra stage tries again are asked too.
        members = [m for m in config.members if not (done and chain.is_done(m))]
        if members or not done:
            tasks[stage] = Task(_make_fold, (*call, VERTEBRA))
        for name in members:
            tasks[f"{name} fold {chain.fold}"] = Task(_make_fold, (*call, name), after=(stage,))
    return tasks


def _collect(parts: list[Attempts], inputs: Inputs, paths: RunPaths, name: str) -> None:
    """Join the fold files into one contract table with the `fold` each study belongs to."""
    path = paths.table(name)
    key = fingerprint([[part.member, part.fold, part.content()] for part in parts])
    if is_fresh(path, key):
        return
    frame = pd.concat([part.frame() for part in parts], ignore_index=True)
    if "fold" in CONTRACTS[name].columns:
        frame["fold"] = frame["study_uid"].map(inputs.fold_of)
    write_table(frame, path, name, key)


def run_oof(config: Config, paths: RunPaths) -> list[Failure]:
    """Everything missing up to the out-of-fold slice table; finished work is skipped.

    On a CPU, folds and members run side by side, each on one thread, `execution.jobs` at a time
    (the same numbers as one after the other); a GPU takes them in turn.

    Returns:
        What failed on the way, index and cache included; also the table `failures`.

    Raises:
        ArtifactError: a model has seen the studies that it is to be scored on.
        DataError: the tables of the data room are missing or hold no usable study.
    """
    inputs = open_inputs(paths)
    chains = [FoldChain(config, paths, inputs, fold) for fold in range(config.folds.n)]
    jobs = config.execution.jobs if devices() == ["cpu"] else 1
    run_tasks(missing(config, paths, chains), jobs=jobs, title="models")
    check_lineages(paths, config.members, inputs.fold_of)
    made = [chain.fracture_rows(member) for chain in chains for member in config.members]
    _collect([chain.vertebra_rows for chain in chains], inputs, paths, VERTEBRA)
    _collect([chain.levels for chain in chains], inputs, paths, "levels")
    _collect(made, inputs, paths, "oof_slices")
    found = gather(paths, (VERTEBRA, *config.members), config.folds.n)
    failures = [f for f in found if not f.member or f.study_uid in inputs.fold_of]
    table = failures_table(failures)
    key = fingerprint(table.to_dict("records"))
    if not is_fresh(paths.table("failures"), key):
        write_table(table, paths.table("failures"), "failures", key)
    return failures

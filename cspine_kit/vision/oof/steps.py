"""The steps of a fold's chain: each makes what is missing, and what it stands on.

In: a `FoldChain`. Out: its models, rows and levels on disk. Example::

    from cspine_kit.vision.inputs.tables import open_inputs

    chain = FoldChain(config, paths, open_inputs(paths), fold=0)
    member, *_ = config.members
    make_vertebra(chain)
    make_fracture(chain, member)

Vertebra model k also labels the slices of its own training studies that have no mask; they were
never in its training set, and nothing of fold k's studies reaches their labels.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cspine_kit.core.errors import ArtifactError, DataError, StudyError
from cspine_kit.core.failures import FILES, TRAINING, Failure, write_failures
from cspine_kit.core.runs import derive_seed
from cspine_kit.data.levels import by_finder
from cspine_kit.data.volumes.store import ENDING, in_memory
from cspine_kit.vision.finder.lend import lend_finder
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.names import SLICES, VERTEBRA
from cspine_kit.vision.nets.store import load_model
from cspine_kit.vision.oof.attempts import failure_of
from cspine_kit.vision.oof.chain import FoldChain, by_study
from cspine_kit.vision.oof.lineage import read_lineage, seal_model, write_lineage
from cspine_kit.vision.passes import PLAIN
from cspine_kit.vision.predict import predict, set_device_threads
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.task import Lesson
from cspine_kit.vision.tasks.vertebra import decode_study
from cspine_kit.vision.training.loop import train_model
from cspine_kit.vision.training.processes import is_main, main_first, processes
from cspine_kit.vision.training.state import CHECKPOINT

TRAINING_THREADS = 1
"""Of a network on a CPU: small ones train faster as several processes of one thread each."""

HELD_BYTES = 256 << 20
"""Volumes of a training that are no more than this together are unpacked once, not for every patch:
those of a phantom competition. The real ones stay in their files."""

Rows = dict[str, pd.DataFrame]
"""Of a study, by table."""

Build = Callable[[str], StudyView]


def train_vertebra(chain: FoldChain, name: str = VERTEBRA) -> None:
    """Train model k of a network of the vertebra stage, and what it is taught by.

    Raises:
        DataError: no training study has a mask.
        ConfigError: see `lend_finder`.
    """
    if name == VERTEBRA and chain.by_finder:
        if is_main():
            lend_finder(chain)
        return
    if not chain.masked:
        raise DataError(
            f"fold {chain.fold}: no training study has a segmentation, {name} cannot learn; add "
            "masks under segmentations/, use fewer folds, or set vertebra.weights: finder (the "
            "level finder that ships then tells the levels, without rounds or vertebra_members)"
        )
    task, inputs = task_of(chain.config.trained[name]), chain.inputs
    pseudo = set(chain.pseudo) if task.config.kind == "vertebra" else set[str]()
    teacher, taught = chain.config.teachers.get(name), dict[str, pd.DataFrame]()
    if teacher is not None:
        with main_first():
            make_stage_rows(chain, teacher)
        said = by_study(chain.stage_rows(teacher).frame())
        taught = {uid: said[uid] for uid in chain.unmasked if uid in said}

    def build(uid: str) -> StudyView:
        view = task.view(inputs.volume(uid, task.grid), None)
        slices, weight = inputs.slices[uid], 1.0
        if uid in pseudo:
            slices, weight = inputs.pseudo[uid], chain.pseudo_weight
        lesson = Lesson(slices, inputs.studies.loc[uid], taught.get(uid), weight)
        view.targets = task.targets(view, lesson)
        return view

    upstream = [] if teacher is None else [read_lineage(chain.paths.model(teacher, chain.fold))]
    studies = sorted([*chain.masked, *pseudo, *taught])
    _train(chain, name, studies, chain.masked_here, build, upstream=upstream)


def make_stage_rows(chain: FoldChain, name: str) -> None:
    """Rows of model k of a network of the vertebra stage on every study."""
    train_vertebra(chain, name)
    attempts = chain.stage_rows(name)
    if attempts.todo():
        say = _speaker(chain, name, views=PLAIN)
        attempts.make(lambda uid: say(uid, None), f"{name} fold {chain.fold}: slices")


def make_vertebra(chain: FoldChain) -> None:
    """Rows of all networks of the vertebra stage on every study, and the levels of fold k."""
    for networks in chain.config.stage_rounds:
        for name in networks:
            make_stage_rows(chain, name)
    if chain.levels.todo():
        rows = chain.spoken()

        def decode(uid: str) -> Rows:
            found = decode_study(rows[uid])
            told = by_finder(found) if chain.by_finder else found
            return {"levels": told.assign(model_fold=chain.fold)}

        chain.levels.make(decode, f"{VERTEBRA} fold {chain.fold}: levels")


def train_fracture(chain: FoldChain, name: str) -> None:
    """Train fracture model k of a member, or of one of its rounds, and what it is taught by;
    vertebra stage and fine volumes are there.

    Raises:
        DataError: no training study has levels.
    """
    config, inputs = chain.config.fracture[name], chain.inputs
    teachers = chain.config.halves_before(name)
    said = dict[str, pd.DataFrame]() if chain.has_model(name) else _said(chain, teachers)
    task = task_of(config)
    rows, levels = chain.spoken(), by_study(chain.levels.frame())

    def build(uid: str) -> StudyView:
        view = task.view(inputs.volume(uid, task.grid), levels[uid])
        lesson = Lesson(inputs.slices[uid], inputs.studies.loc[uid], rows[uid], said=said.get(uid))
        view.targets = task.targets(view, lesson)
        view.half = chain.half_of(uid)
        return view

    learned, held = (
        [uid for uid in studies if uid in levels]
        for studies in (chain.learned_by(name), inputs.studies_of(chain.fold, training=False))
    )
    stage = tuple(chain.paths.model(name, chain.fold) for name in chain.config.stage)
    first = chain.config.starts_from(name)
    start = (chain.paths.model(first, chain.fold),) if first else ()
    halves = [chain.paths.model(teacher, chain.fold) for teacher in teachers]
    taught_by = [read_lineage(folder) for folder in (*stage, *halves)]
    _train(chain, name, learned, held, build, upstream=taught_by, start=start)


def _said(chain: FoldChain, teachers: list[str]) -> dict[str, pd.DataFrame]:
    """Rows of each training study by the teacher that has not learned from it, made if need be."""
    for name in teachers:
        train_fracture(chain, name)
    said: dict[str, pd.DataFrame] = {}
    for name in teachers:
        with main_first():
            make_fracture(chain, name)
        said |= by_study(chain.fracture_rows(name).frame())
    return said


def make_fracture(chain: FoldChain, name: str) -> None:
    """Rows of fracture model k on the studies that it is to judge."""
    train_fracture(chain, name)
    attempts = chain.fracture_rows(name)
    if attempts.todo():
        levels = by_study(chain.levels.frame())
        say = _speaker(chain, name, views=chain.config.kernel.views_of(chain.fold))

        def make(uid: str) -> Rows:
            if uid not in levels:
                raise StudyError(uid, f"has no levels in fold {chain.fold}")
            return say(uid, levels[uid])

        attempts.make(make, f"{name} fold {chain.fold}: out-of-fold slices")


def _speaker(
    chain: FoldChain, name: str, *, views: tuple[bool, ...]
) -> Callable[[str, pd.DataFrame | None], Rows]:
    """What fold model k says of a study, given its levels: rows by table."""
    device = set_device_threads(chain.config, TRAINING_THREADS)
    model = load_model(chain.paths.model(name, chain.fold)).to(device)
    grid, batch = task_of(model.config).grid, chain.config.kernel.batch_size

    def say(uid: str, levels: pd.DataFrame | None) -> Rows:
        volume = in_memory(chain.inputs.volume(uid, grid))
        said = predict({name: model}, volume, levels, batch, views=views)[name]
        tables = {SLICES: said.require(), **said.scores}
        return {t: rows.assign(member=name, model_fold=chain.fold) for t, rows in tables.items()}

    return say


def _train(
    chain: FoldChain,
    name: str,
    studies: list[str],
    held: list[str],
    build: Build,
    *,
    upstream: Iterable[list[str]] = (),
    start: tuple[Path, ...] = (),
) -> None:
    """Train a fold model unless it is there.

    A study whose volume breaks under the training is left out, and the training begins anew.

    Args:
        chain: of the fold.
        name: of the member, or of the vertebra stage.
        studies: what it learns from.
        held: the fold's own studies: they are looked at, and decide nothing.
        build: what the network sees of a study, with targets.
        upstream: lineages of what it starts from or is taught by.
        start: folders of networks whose weights it starts from.
    """
    folder, key = chain.paths.model(name, chain.fold), chain.model_key(name)
    if not chain.has_model(name):
        set_device_threads(chain.config, TRAINING_THREADS)
        views, failures = _views(chain, name, studies, build)
        others, _ = _views(chain, name, held, build)
        broken: str | None = ""
        while broken is not None:
            views, others = (
                [view for view in part if view.volume.study_uid != broken]
                for part in (views, others)
            )
            if not views:
                raise DataError(f"fold {chain.fold}: {name} has no study to learn from")
            if is_main():
                write_failures(folder / FILES[TRAINING], failures, key)
                own = [view.volume.study_uid for view in views]
                write_lineage(folder, own, upstream=upstream, key=key)
            broken = _train_once(chain, name, views, others, start=start, failures=failures)
    if is_main():
        seal_model(folder)


def _train_once(
    chain: FoldChain,
    name: str,
    views: list[StudyView],
    others: list[StudyView],
    *,
    start: tuple[Path, ...],
    failures: list[Failure],
) -> str | None:
    """Train a fold model; the study whose volume broke meanwhile, which `failures` then names."""
    folder, config = chain.paths.model(name, chain.fold), chain.config.trained[name]
    try:
        train_model(
            StackDataset(views, config),
            config,
            folder,
            key=chain.model_key(name),
            training=chain.config.training,
            seed=derive_seed(chain.config.seed, name, chain.fold, config.seed),
            title=f"{name} fold {chain.fold}",
            held=StackDataset(others, config) if others else None,
            start=start,
        )
    except ArtifactError as error:
        uids = [view.volume.study_uid for view in (*views, *others)]
        broken = next((uid for uid in uids if f"/{uid}{ENDING}" in str(error)), None)
        # Several processes would have to agree on it.
        if broken is None or processes().num_processes > 1:
            raise
        failures.append(_failure(chain, name, broken, error))
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return broken
    return None


def _views(
    chain: FoldChain, name: str, studies: list[str], build: Build
) -> tuple[list[StudyView], list[Failure]]:
    """What a model learns from, and the studies that it cannot learn from."""
    failures = list[Failure]()

    def made(of: Iterable[str], make: Build) -> dict[str, StudyView]:
        found = dict[str, StudyView]()
        for uid in of:
            try:
                found[uid] = make(uid)
            except Exception as error:  # noqa: BLE001 - one bad study must cost only itself
                failures.append(_failure(chain, name, uid, error))
        return found

    views = made(studies, build)
    if sum(math.prod(view.volume.voxels.shape) for view in views.values()) <= HELD_BYTES:

        def hold(uid: str) -> StudyView:
            return replace(views[uid], volume=in_memory(views[uid].volume))

        views = made(views, hold)
    return list(views.values()), failures


def _failure(chain: FoldChain, name: str, uid: str, error: Exception) -> Failure:
    where = {"stage": TRAINING, "member": name, "state": chain.inputs.file_state(uid)}
    return failure_of(error, uid, fold=chain.fold, **where)

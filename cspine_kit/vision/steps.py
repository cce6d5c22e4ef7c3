"""The steps of a fold's chain: each makes what is missing, and what it stands on.

In: a `FoldChain`. Out: its models, rows and levels on disk. Example::

    from cspine_kit.vision.inputs import open_inputs

    chain = FoldChain(config, paths, open_inputs(paths), fold=0)
    member, *_ = config.members
    make_vertebra(chain)
    make_fracture(chain, member)

Vertebra model k also labels the slices of its own training studies that have no mask; they were
never in its training set, and nothing of fold k's studies reaches their labels.
"""

from collections.abc import Callable, Iterable

import pandas as pd

from cspine_kit.core.config import ModelConfig
from cspine_kit.core.errors import DataError, StudyError
from cspine_kit.core.failures import FILES, TRAINING, Failure, write_failures
from cspine_kit.core.runs import derive_seed
from cspine_kit.vision.attempts import failure_of
from cspine_kit.vision.chain import FoldChain
from cspine_kit.vision.dataset import StackDataset, StudyView
from cspine_kit.vision.lineage import read_lineage, seal_model, write_lineage
from cspine_kit.vision.model import SliceModel, load_model
from cspine_kit.vision.names import HEADS, VERTEBRA
from cspine_kit.vision.predict import (
    decode_study,
    predict_fracture,
    predict_vertebra,
    set_device_threads,
)
from cspine_kit.vision.targets import fracture_targets, vertebra_targets
from cspine_kit.vision.train import train_model

TRAINING_THREADS = 1
"""Of a network on a CPU: small ones train faster as several processes of one thread each."""

Build = Callable[[str], StudyView]


def train_vertebra(chain: FoldChain) -> None:
    """Train vertebra model k.

    Raises:
        DataError: no training study has a mask.
    """
    model, inputs = chain.config.vertebra, chain.inputs

    def build(uid: str) -> StudyView:
        return vertebra_targets(inputs.volume(uid), inputs.slices[uid], model)

    if not chain.masked:
        raise DataError(
            f"fold {chain.fold}: no training study has a segmentation, the vertebra stage cannot "
            "learn; add masks under segmentations/ or use fewer folds"
        )
    _train(chain, VERTEBRA, model, chain.masked, build)


def make_vertebra(chain: FoldChain) -> None:
    """Rows and levels of vertebra model k on every study."""
    train_vertebra(chain)
    attempts, title = chain.vertebra_rows, f"{VERTEBRA} fold {chain.fold}"
    if attempts.todo():
        model, batch = _load(chain, VERTEBRA), chain.config.kernel.batch_size

        def predict(uid: str) -> pd.DataFrame:
            rows = predict_vertebra(model, chain.inputs.volume(uid), batch)
            return rows.assign(member=VERTEBRA, model_fold=chain.fold)

        attempts.make(predict, f"{title}: slices")
    if chain.levels.todo():
        rows = _by_study(attempts.frame())

        def decode(uid: str) -> pd.DataFrame:
            return decode_study(rows[uid]).assign(model_fold=chain.fold)

        chain.levels.make(decode, f"{title}: levels")


def train_fracture(chain: FoldChain, member: str) -> None:
    """Train fracture model k of a member.

    Raises:
        DataError: no training study has levels.
    """
    if not chain.is_done(VERTEBRA):
        make_vertebra(chain)
    model, inputs = chain.config.members[member], chain.inputs
    rows, levels = _by_study(chain.vertebra_rows.frame()), _by_study(chain.levels.frame())

    def build(uid: str) -> StudyView:
        return fracture_targets(
            inputs.volume(uid),
            inputs.slices[uid],
            inputs.studies.loc[uid],
            config=model,
            rows=rows[uid],
            levels=levels[uid],
        )

    studies = [uid for uid in inputs.studies_of(chain.fold, training=True) if uid in levels]
    taught_by = [read_lineage(chain.paths.model(VERTEBRA, chain.fold))]
    _train(chain, member, model, studies, build, upstream=taught_by)


def make_fracture(chain: FoldChain, member: str) -> None:
    """Rows of fracture model k on the studies of fold k."""
    train_fracture(chain, member)
    attempts = chain.fracture_rows(member)
    if attempts.todo():
        model, levels = _load(chain, member), _by_study(chain.levels.frame())
        kernel = chain.config.kernel

        def predict(uid: str) -> pd.DataFrame:
            if uid not in levels:
                raise StudyError(uid, f"has no levels in fold {chain.fold}")
            volume, batch = chain.inputs.volume(uid), kernel.batch_size
            rows = predict_fracture(model, volume, levels[uid], batch, views=kernel.views)
            return rows.assign(member=member, model_fold=chain.fold)

        attempts.make(predict, f"{member} fold {chain.fold}: out-of-fold slices")


def _load(chain: FoldChain, name: str) -> SliceModel:
    device = set_device_threads(chain.config, TRAINING_THREADS)
    return load_model(chain.paths.model(name, chain.fold)).to(device)


def _train(
    chain: FoldChain,
    name: str,
    model: ModelConfig,
    studies: list[str],
    build: Build,
    *,
    upstream: Iterable[list[str]] = (),
) -> None:
    folder, key = chain.paths.model(name, chain.fold), chain.model_key(name)
    if not chain.has_model(name):
        set_device_threads(chain.config, TRAINING_THREADS)
        views, failures = _views(chain, name, studies, build)
        if not views:
            raise DataError(f"fold {chain.fold}: {name} has no study to learn from")
        write_failures(folder / FILES[TRAINING], failures, key)
        own = [view.volume.study_uid for view in views]
        write_lineage(folder, own, upstream=upstream, key=key)
        train_model(
            StackDataset(views, model),
            model,
            HEADS["vertebra" if name == VERTEBRA else "fracture"],
            folder,
            key=key,
            training=chain.config.training,
            seed=derive_seed(chain.config.seed, name, chain.fold, model.seed),
            title=f"{name} fold {chain.fold}",
        )
    seal_model(folder)


def _views(
    chain: FoldChain, name: str, studies: list[str], build: Build
) -> tuple[list[StudyView], list[Failure]]:
    """What a model learns from, and the studies that it cannot learn from."""
    found, failures = list[StudyView](), list[Failure]()
    for uid in studies:
        try:
            found.append(build(uid))
        except Exception as error:  # noqa: BLE001 - one bad study must cost only itself
            where = {"stage": TRAINING, "member": name, "state": chain.inputs.file_state(uid)}
            failures.append(failure_of(error, uid, fold=chain.fold, **where))
    return found, failures


def _by_study(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(uid): group for uid, group in frame.groupby("study_uid", sort=True)}

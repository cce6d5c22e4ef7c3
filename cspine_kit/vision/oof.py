"""The out-of-fold run: vertebra stage, ordered levels, fracture stage, per fold and resumable.

In: the tables `studies`, `slices`, `volumes` and the folds. Out: fold models and the tables
`vertebra`, `levels` and `oof_slices`. Example::

    run_oof(config, paths)

Fold k is one closed chain: vertebra model k -> levels k -> fracture models k. Vertebra model k also
labels the slices of its own training studies that have no mask; they were never in its training
set, and nothing of fold k's studies reaches their labels.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cspine_kit.core.config import Config, ModelConfig
from cspine_kit.core.errors import DataError, StudyError
from cspine_kit.core.failures import (
    FILES,
    TRAINING,
    Failure,
    failures_table,
    gather,
    write_failures,
)
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import (
    derive_seed,
    file_state,
    fingerprint,
    is_fresh,
)
from cspine_kit.core.tables import write_table
from cspine_kit.core.tasks import Task, run_tasks
from cspine_kit.vision.attempts import Attempts
from cspine_kit.vision.dataset import StackDataset, StudyView
from cspine_kit.vision.inputs import Inputs, open_inputs
from cspine_kit.vision.model import load_model
from cspine_kit.vision.names import HEADS, VERTEBRA, WEIGHTS_FILE
from cspine_kit.vision.predict import (
    decode_study,
    devices,
    predict_fracture,
    predict_vertebra,
    set_device_threads,
)
from cspine_kit.vision.targets import fracture_targets, vertebra_targets
from cspine_kit.vision.train import train_model

TRAINING_THREADS = 1
"""Of a network on a CPU: small ones train faster as several processes of one thread each."""


def _by_study(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(uid): group for uid, group in frame.groupby("study_uid", sort=True)}


@dataclass(frozen=True)
class FoldChain:
    """Everything of one fold: vertebra model k, its rows and levels, the members' models and rows.

    Each method does what is missing and returns what it made with the key it was made from.
    """

    config: Config
    paths: RunPaths
    inputs: Inputs
    fold: int

    def _key(self, name: str, model: ModelConfig, upstream: str) -> str:
        precision = self.config.training.precision
        return fingerprint(name, self.fold, model, self.config.seed, precision, upstream)

    def _train(
        self,
        name: str,
        model: ModelConfig,
        *,
        found: tuple[list[StudyView], list[Failure]],
        key: str,
    ) -> None:
        views, failures = found
        folder = self.paths.model(name, self.fold)
        write_failures(folder / FILES[TRAINING], failures, key)
        train_model(
            StackDataset(views, model),
            model,
            HEADS["vertebra" if name == VERTEBRA else "fracture"],
            folder,
            key=key,
            training=self.config.training,
            seed=derive_seed(self.config.seed, name, self.fold, model.seed),
            title=f"{name} fold {self.fold}",
        )

    @property
    def vertebra_key(self) -> str:
        """What vertebra model k, its rows and its levels are made from."""
        return self._key(VERTEBRA, self.config.vertebra, self.inputs.key)

    def fracture_key(self, member: str) -> str:
        """What fracture model k of a member is made from."""
        return self._key(member, self.config.members[member], self.vertebra_key)

    def rows_key(self, member: str) -> str:
        """What the out-of-fold rows of a member are made from."""
        return fingerprint(self.fracture_key(member), self.config.kernel.views)

    @property
    def vertebra_rows(self) -> Attempts:
        """Rows and levels of vertebra model k on every study."""
        folder = self.paths.model(VERTEBRA, self.fold)
        files = (folder / "slices.parquet", folder / "levels.parquet")
        return Attempts(VERTEBRA, self.fold, files, self.vertebra_key, self.inputs.state)

    def fracture_rows(self, member: str) -> Attempts:
        """Rows of fracture model k on the studies of fold k."""
        levels = self.vertebra_rows.files[1]

        def state(uid: str) -> str:
            return fingerprint(self.inputs.state(uid), file_state(levels))

        file = self.paths.model(member, self.fold) / "slices.parquet"
        return Attempts(member, self.fold, (file,), self.rows_key(member), state)

    def train_vertebra(self) -> None:
        """Train vertebra model k."""
        model, key = self.config.vertebra, self.vertebra_key
        if not is_fresh(self.paths.model(VERTEBRA, self.fold) / WEIGHTS_FILE, key):
            set_device_threads(self.config, TRAINING_THREADS)
            masked = self.inputs.studies["has_mask"]
            found = self.vertebra_rows.views(
                [uid for uid in self.inputs.studies_of(self.fold, training=True) if masked[uid]],
                lambda uid: vertebra_targets(
                    self.inputs.volume(uid), self.inputs.slices[uid], model
                ),
            )
            if not found[0]:
                raise DataError(
                    f"fold {self.fold}: no training study has a segmentation, the vertebra stage "
                    "cannot learn; add masks under segmentations/ or use fewer folds"
                )
            self._train(VERTEBRA, model, found=found, key=key)

    def vertebra(self) -> None:
        """Rows and levels of vertebra model k on every study."""
        self.train_vertebra()
        if not self.vertebra_rows.done():
            model = load_model(self.paths.model(VERTEBRA, self.fold)).to(
                set_device_threads(self.config, TRAINING_THREADS)
            )

            def predict(uid: str) -> tuple[pd.DataFrame, pd.DataFrame]:
                volume = self.inputs.volume(uid)
                rows = predict_vertebra(model, volume, self.config.kernel.batch_size)
                levels = decode_study(rows)
                return rows.assign(model_fold=self.fold), levels.assign(model_fold=self.fold)

            self.vertebra_rows.make(
                self.inputs.fold_of, predict, f"vertebra fold {self.fold}: slices and levels"
            )

    def _levels(self) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
        """Rows and levels of vertebra model k, by study."""
        rows, levels = (_by_study(pd.read_parquet(path)) for path in self.vertebra_rows.files)
        return rows, levels

    def train_fracture(self, member: str) -> None:
        """Train fracture model k of a member, and what it stands on."""
        if not self.vertebra_rows.made():
            self.vertebra()
        model, key = self.config.members[member], self.fracture_key(member)
        if not is_fresh(self.paths.model(member, self.fold) / WEIGHTS_FILE, key):
            set_device_threads(self.config, TRAINING_THREADS)
            rows, levels = self._levels()
            found = self.fracture_rows(member).views(
                [uid for uid in self.inputs.studies_of(self.fold, training=True) if uid in levels],
                lambda uid: fracture_targets(
                    self.inputs.volume(uid),
                    self.inputs.slices[uid],
                    self.inputs.studies.loc[uid],
                    config=model,
                    rows=rows[uid],
                    levels=levels[uid],
                ),
            )
            if not found[0]:
                raise DataError(f"fold {self.fold}: {member} has no study to learn from")
            self._train(member, model, found=found, key=key)

    def fracture(self, member: str) -> None:
        """Rows of fracture model k on the studies of fold k."""
        self.train_fracture(member)
        kernel = self.config.kernel
        if not self.fracture_rows(member).done():
            model = load_model(self.paths.model(member, self.fold)).to(
                set_device_threads(self.config, TRAINING_THREADS)
            )
            _, levels = self._levels()

            def predict(uid: str) -> tuple[pd.DataFrame]:
                if uid not in levels:
                    raise StudyError(uid, f"has no levels in fold {self.fold}")
                volume, batch = self.inputs.volume(uid), kernel.batch_size
                rows = predict_fracture(model, volume, levels[uid], batch, views=kernel.views)
                return (rows.assign(member=member, model_fold=self.fold),)

            self.fracture_rows(member).make(
                self.inputs.studies_of(self.fold, training=False),
                predict,
                f"{member} fold {self.fold}: out-of-fold slices",
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
        chain.train_vertebra()
    else:
        chain.train_fracture(member)


def _collect(files: list[Path], inputs: Inputs, path: Path, name: str, key: str) -> None:
    """Join the fold files into one contract table with the `fold` each study belongs to."""
    if is_fresh(path, key):
        return
    frame = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    if name != "levels":
        frame["fold"] = frame["study_uid"].map(inputs.fold_of)
    if name == VERTEBRA:
        frame["member"] = VERTEBRA
    write_table(frame, path, name, key)


def _make_fold(config: Config, paths: RunPaths, fold: int, member: str) -> None:
    """One task of `run_oof`, in this process or in one of its own."""
    chain = FoldChain(config, paths, open_inputs(paths), fold)
    if member == VERTEBRA:
        chain.vertebra()
    else:
        chain.fracture(member)


def _missing(config: Config, paths: RunPaths, chains: list[FoldChain]) -> dict[str, Task]:
    """What is still to be made: the vertebra stage of a fold, then each of its members."""
    tasks: dict[str, Task] = {}
    for chain in chains:
        stage, call = f"{VERTEBRA} fold {chain.fold}", (config, paths, chain.fold)
        done = chain.vertebra_rows.done()
        # Members of a study that the vertebra stage tries again are asked too.
        members = [m for m in config.members if not (done and chain.fracture_rows(m).done())]
        if members or not done:
            tasks[stage] = Task(_make_fold, (*call, VERTEBRA))
        for name in members:
            tasks[f"{name} fold {chain.fold}"] = Task(_make_fold, (*call, name), after=(stage,))
    return tasks


def run_oof(config: Config, paths: RunPaths) -> list[Failure]:
    """Everything missing up to the out-of-fold slice table; finished work is skipped.

    On a CPU, folds and members run side by side, each on one thread, `execution.jobs` at a time
    (the same numbers as one after the other); a GPU takes them in turn.

    Returns:
        What failed on the way, index and cache included; also the table `failures`.

    Raises:
        DataError: the tables of the data room are missing or hold no usable study.
    """
    inputs = open_inputs(paths)
    chains = [FoldChain(config, paths, inputs, fold) for fold in range(config.folds.n)]
    jobs = config.execution.jobs if devices() == ["cpu"] else 1
    run_tasks(_missing(config, paths, chains), jobs=jobs, title="models")
    vertebra = [chain.vertebra_rows for chain in chains]
    key = fingerprint([rows.content_key() for rows in vertebra])
    _collect([r.files[0] for r in vertebra], inputs, paths.table(VERTEBRA), VERTEBRA, key)
    _collect([r.files[1] for r in vertebra], inputs, paths.table("levels"), "levels", key)
    made = [chain.fracture_rows(member) for chain in chains for member in config.members]
    key = fingerprint([rows.content_key() for rows in made])
    _collect([r.files[0] for r in made], inputs, paths.table("oof_slices"), "oof_slices", key)
    failures = gather(paths, (VERTEBRA, *config.members), config.folds.n)
    table = failures_table(failures)
    key = fingerprint(table.to_dict("records"))
    if not is_fresh(paths.table("failures"), key):
        write_table(table, paths.table("failures"), "failures", key)
    return failures

"""The out-of-fold run: vertebra stage, ordered levels, fracture stage, per fold and resumable.

In: the tables `studies`, `slices`, `volumes` and the folds. Out: fold models and the tables
`vertebra`, `crops` and `oof_slices`. Example::

    run_oof(config, paths)

Fold k is one closed chain: vertebra model k -> crops k -> fracture models k. Vertebra model k also
labels the slices of its own training studies that have no mask; they were never in its training
set, and nothing of fold k's studies reaches their labels.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_kit import __version__
from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import Config, ModelConfig
from cspine_kit.core.errors import CSpineError, DataError
from cspine_kit.core.numbers import sigmoid
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import derive_seed, file_hash, fingerprint, is_fresh, publish, stored_key
from cspine_kit.core.tables import (
    MASK_COLUMNS,
    SPINE_BOX_COLUMNS,
    VERTEBRA_COLUMNS,
    read_table,
    write_table,
)
from cspine_kit.core.tasks import Task, is_worker, report, run_tasks
from cspine_kit.data.folds import load_folds
from cspine_kit.data.volumes.volume import Volume, open_volume
from cspine_kit.vision.dataset import StackDataset, StudyView
from cspine_kit.vision.model import load_model
from cspine_kit.vision.names import HEADS, VERTEBRA, WEIGHTS_FILE
from cspine_kit.vision.predict import (
    decode_study,
    devices,
    fracture_view,
    predict_fracture,
    predict_vertebra,
    set_device_threads,
    vertebra_view,
)
from cspine_kit.vision.train import train_model

log = logging.getLogger(__name__)

TRAINING_THREADS = 1
"""Of a network on a CPU: small ones train faster as several processes of one thread each."""


@dataclass(frozen=True)
class Inputs:
    """The tables of a run, opened once; `key` is the fingerprint of all of them."""

    studies: pd.DataFrame
    slices: dict[str, pd.DataFrame]
    volumes: pd.DataFrame
    fold_of: dict[str, int]
    key: str

    def volume(self, study_uid: str) -> Volume:
        """Memory-mapped volume of one study."""
        return open_volume(self.volumes.loc[study_uid], self.slices[study_uid])

    def studies_of(self, fold: int, *, training: bool) -> list[str]:
        """Training or validation studies of a fold, sorted."""
        return [uid for uid, f in self.fold_of.items() if (f != fold) == training]


def open_inputs(paths: RunPaths) -> Inputs:
    """Read the tables the data room wrote; studies without a volume or a fold are left out.

    Read once in a process as long as they do not change: several tasks may run in it.
    """
    keys = [stored_key(paths.table(name)) for name in ("studies", "slices", "volumes")]
    return _read_inputs(paths, fingerprint(__version__, keys, file_hash(paths.folds)))


@lru_cache(maxsize=1)
def _read_inputs(paths: RunPaths, key: str) -> Inputs:
    studies = read_table(paths.table("studies"), "studies").set_index("study_uid", drop=False)
    slices = read_table(paths.table("slices"), "slices")
    volumes = read_table(paths.table("volumes"), "volumes").set_index("study_uid", drop=False)
    folds = load_folds(paths.folds)
    fold_of = {
        str(uid): int(fold)
        for uid, fold in sorted(zip(folds["study_uid"], folds["fold"], strict=True))
        if uid in volumes.index and uid in studies.index
    }
    return Inputs(
        studies=studies,
        slices={str(uid): group for uid, group in slices.groupby("study_uid", sort=False)},
        volumes=volumes,
        fold_of=fold_of,
        key=key,
    )


def _vertebra_dataset(inputs: Inputs, config: ModelConfig, fold: int) -> StackDataset:
    views = []
    for uid in inputs.studies_of(fold, training=True):
        if not inputs.studies.loc[uid, "has_mask"]:
            continue
        volume, slices = inputs.volume(uid), inputs.slices[uid]
        view = vertebra_view(volume, config.slice_step_mm)
        shown = slices.iloc[view.slice_idx]
        box = shown[list(SPINE_BOX_COLUMNS)].to_numpy(dtype=np.float64)
        view.targets = {
            "visible": (shown[list(MASK_COLUMNS)].to_numpy() > 0).astype(np.float32),
            "box": np.hstack(
                [volume.to_cached_px(box[:, :2]), volume.to_cached_px(box[:, 2:])]
            ).astype(np.float32),
        }
        views.append(view)
    if not views:
        raise DataError(
            f"fold {fold}: no training study has a segmentation, the vertebra stage cannot learn; "
            "add masks under segmentations/ or use fewer folds"
        )
    return StackDataset(views, config)


def _visibility(view: StudyView, slices: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """(n, 7) visibility targets: from the mask where there is one, else the vertebra model's."""
    masks = slices.iloc[view.slice_idx][list(MASK_COLUMNS)].to_numpy(dtype=np.float64)
    if not np.isnan(masks).any():
        return (masks > 0).astype(np.float32)
    z_mm = view.volume.z_mm
    scored = z_mm[rows["slice_idx"].to_numpy()]
    logits = rows[list(VERTEBRA_COLUMNS)].to_numpy()
    at = [np.interp(-z_mm[view.slice_idx], -scored, column) for column in logits.T]
    return sigmoid(np.stack(at, axis=1), limit=np.inf).astype(np.float32)


def _fracture_dataset(
    inputs: Inputs, config: ModelConfig, fold: int, rows: pd.DataFrame, crops: pd.DataFrame
) -> StackDataset:
    by_study, crops_of = _by_study(rows), _by_study(crops)
    views = []
    for uid in inputs.studies_of(fold, training=True):
        if uid not in crops_of:
            continue
        view = fracture_view(inputs.volume(uid), crops_of[uid], config.slice_step_mm)
        label = inputs.studies.loc[uid, list(LEVELS)].to_numpy(dtype=np.float32)
        view.targets = {
            "visible": _visibility(view, inputs.slices[uid], by_study[uid]),
            "fracture": np.tile(label, (len(view), 1)),
        }
        views.append(view)
    return StackDataset(views, config)


def _by_study(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(uid): group for uid, group in frame.groupby("study_uid", sort=True)}


def _predict_studies(
    uids: Iterable[str], predict: Callable[[str], pd.DataFrame], title: str
) -> pd.DataFrame:
    """Rows of all studies; one that fails is logged and costs only itself."""
    parts = []
    for uid in tqdm(list(uids), desc=title, unit="study", disable=is_worker()):
        report(f"{title}, study {uid}")
        try:
            rows = predict(uid)
        except CSpineError as error:
            log.warning("%s: left out of %s: %s", uid, title, error)
            continue
        rows.insert(0, "study_uid", uid)
        parts.append(rows)
    if not parts:
        raise DataError(f"{title}: every study failed; see the log above for the reasons")
    return pd.concat(parts, ignore_index=True)


def _save_rows(frame: pd.DataFrame, path: Path, key: str) -> pd.DataFrame:
    with publish(path, key) as temporary:
        frame.to_parquet(temporary, index=False)
    return frame


@dataclass(frozen=True)
class FoldChain:
    """Everything of one fold: vertebra model k, its rows and crops, the members' models and rows.

    Each method does what is missing and returns what it made with the key it was made from.
    """

    config: Config
    paths: RunPaths
    inputs: Inputs
    fold: int

    def _key(self, name: str, model: ModelConfig, upstream: str) -> str:
        precision = self.config.training.precision
        return fingerprint(name, self.fold, model, self.config.seed, precision, upstream)

    def _train(self, name: str, model: ModelConfig, *, dataset: StackDataset, key: str) -> None:
        train_model(
            dataset,
            model,
            HEADS["vertebra" if name == VERTEBRA else "fracture"],
            self.paths.model(name, self.fold),
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
    def vertebra_files(self) -> tuple[Path, Path]:
        """Rows and levels of vertebra model k on every study."""
        folder = self.paths.model(VERTEBRA, self.fold)
        return folder / "slices.parquet", folder / "crops.parquet"

    def rows_file(self, member: str) -> Path:
        """Rows of fracture model k on the studies of fold k."""
        return self.paths.model(member, self.fold) / "slices.parquet"

    def has_vertebra(self) -> bool:
        """True where rows and levels of vertebra model k are there."""
        return all(is_fresh(path, self.vertebra_key) for path in self.vertebra_files)

    def has_fracture(self, member: str) -> bool:
        """True where a member's out-of-fold rows of fold k are there."""
        return is_fresh(self.rows_file(member), self.rows_key(member))

    def train_vertebra(self) -> None:
        """Train vertebra model k."""
        model, key = self.config.vertebra, self.vertebra_key
        if not is_fresh(self.paths.model(VERTEBRA, self.fold) / WEIGHTS_FILE, key):
            set_device_threads(self.config, TRAINING_THREADS)
            dataset = _vertebra_dataset(self.inputs, model, self.fold)
            self._train(VERTEBRA, model, dataset=dataset, key=key)

    def vertebra(self) -> None:
        """Rows and crops of vertebra model k on every study."""
        self.train_vertebra()
        if not self.has_vertebra():
            model = load_model(self.paths.model(VERTEBRA, self.fold)).to(
                set_device_threads(self.config, TRAINING_THREADS)
            )
            batch = self.config.kernel.batch_size
            rows = _predict_studies(
                self.inputs.fold_of,
                lambda uid: predict_vertebra(model, self.inputs.volume(uid), batch),
                f"vertebra fold {self.fold}: slices",
            )
            by_study = _by_study(rows)
            crops = _predict_studies(
                by_study,
                lambda uid: decode_study(by_study[uid], self.inputs.volume(uid)),
                f"vertebra fold {self.fold}: levels",
            )
            for frame, path in zip((rows, crops), self.vertebra_files, strict=True):
                frame["model_fold"] = self.fold
                _save_rows(frame, path, self.vertebra_key)

    def train_fracture(self, member: str) -> None:
        """Train fracture model k of a member, and what it stands on."""
        self.vertebra()
        model, key = self.config.members[member], self.fracture_key(member)
        if not is_fresh(self.paths.model(member, self.fold) / WEIGHTS_FILE, key):
            set_device_threads(self.config, TRAINING_THREADS)
            rows, crops = (pd.read_parquet(path) for path in self.vertebra_files)
            dataset = _fracture_dataset(self.inputs, model, self.fold, rows, crops)
            self._train(member, model, dataset=dataset, key=key)

    def fracture(self, member: str) -> None:
        """Rows of fracture model k on the studies of fold k."""
        self.train_fracture(member)
        kernel, path = self.config.kernel, self.rows_file(member)
        if not self.has_fracture(member):
            model = load_model(path.parent).to(set_device_threads(self.config, TRAINING_THREADS))
            crops_of = _by_study(pd.read_parquet(self.vertebra_files[1]))
            rows = _predict_studies(
                [u for u in self.inputs.studies_of(self.fold, training=False) if u in crops_of],
                lambda uid: predict_fracture(
                    model,
                    self.inputs.volume(uid),
                    crops_of[uid],
                    kernel.batch_size,
                    views=kernel.views,
                ),
                f"{member} fold {self.fold}: out-of-fold slices",
            )
            rows["member"], rows["model_fold"] = member, self.fold
            _save_rows(rows, path, self.rows_key(member))


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
    if name != "crops":
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
        members = [name for name in config.members if not chain.has_fracture(name)]
        if members or not chain.has_vertebra():
            tasks[stage] = Task(_make_fold, (*call, VERTEBRA))
        for name in members:
            tasks[f"{name} fold {chain.fold}"] = Task(_make_fold, (*call, name), after=(stage,))
    return tasks


def run_oof(config: Config, paths: RunPaths) -> None:
    """Everything missing up to the out-of-fold slice table; finished work is skipped.

    On a CPU, folds and members run side by side, each on one thread, `execution.jobs` at a time
    (the same numbers as one after the other); a GPU takes them in turn.

    Raises:
        DataError: the tables of the data room are missing or hold no usable study.
    """
    inputs = open_inputs(paths)
    chains = [FoldChain(config, paths, inputs, fold) for fold in range(config.folds.n)]
    jobs = config.execution.jobs if devices() == ["cpu"] else 1
    run_tasks(_missing(config, paths, chains), jobs=jobs, title="models")
    key = fingerprint([chain.vertebra_key for chain in chains])
    files = [chain.vertebra_files for chain in chains]
    _collect([rows for rows, _ in files], inputs, paths.table(VERTEBRA), VERTEBRA, key)
    _collect([crops for _, crops in files], inputs, paths.table("crops"), "crops", key)
    made = [(chain, name) for chain in chains for name in config.members]
    key = fingerprint([chain.rows_key(name) for chain, name in made])
    rows = [chain.rows_file(name) for chain, name in made]
    _collect(rows, inputs, paths.table("oof_slices"), "oof_slices", key)

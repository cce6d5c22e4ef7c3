"""What the out-of-fold run starts from: the data room's tables, opened once in a process.

In: a run folder. Out: studies, slices, volumes and folds, and digests of what they hold. Example::

    inputs = open_inputs(paths)
    volume = inputs.volume(inputs.studies_of(0, training=True)[0], "coarse")
    inputs.pixels[volume.study_uid]          # changes when a network would see anything else

A digest is made of values alone: where files lie and when they were written does not matter.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import StudyError
from cspine_kit.core.failures import NO_LEVELS
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import file_hash, file_state, fingerprint, stored_key
from cspine_kit.core.tables import BOX_COLUMNS, MASK_COLUMNS, SPINE_BOX_COLUMNS, read_table
from cspine_kit.data.folds import load_folds
from cspine_kit.data.volumes.store import open_volume
from cspine_kit.data.volumes.volume import Volume

MASK = [*MASK_COLUMNS, *SPINE_BOX_COLUMNS]


def _digest(values: pd.DataFrame) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype=np.float64).tobytes()).hexdigest()


@dataclass(frozen=True)
class Inputs:
    """The tables of a run; `studies` and `coarse` are indexed by study_uid.

    Attributes:
        studies: table `studies`.
        slices: rows of table `slices` by study.
        coarse: table `coarse`.
        fine: files of the fine volumes by study; none before they are cut.
        fold_of: fold of each study that has a coarse volume.
        pseudo: rows of `slices` of studies without a mask, with the masks that another tool made.
    """

    studies: pd.DataFrame
    slices: dict[str, pd.DataFrame]
    coarse: pd.DataFrame
    fine: dict[str, Path]
    fold_of: dict[str, int]
    pseudo: dict[str, pd.DataFrame] = field(default_factory=dict)

    def file(self, study_uid: str, grid: str) -> Path:
        """File of a study's "coarse" or "fine" volume.

        Raises:
            StudyError: it has none.
        """
        if grid == "coarse":
            return Path(str(self.coarse.loc[study_uid, "path"]))
        if study_uid not in self.fine:
            raise StudyError(
                study_uid, f"has no fine volume: {NO_LEVELS} by any fold, or it failed"
            )
        return self.fine[study_uid]

    def volume(self, study_uid: str, grid: str) -> Volume:
        """A study's "coarse" or "fine" volume, read when it is looked at.

        Raises:
            StudyError: it has none.
            ArtifactError: its file is missing, cut or no volume.
        """
        return open_volume(self.file(study_uid, grid))[0]

    def studies_of(self, fold: int, *, training: bool) -> list[str]:
        """Training or validation studies of a fold, sorted."""
        return [uid for uid, f in self.fold_of.items() if (f != fold) == training]

    @cached_property
    def pixels(self) -> dict[str, str]:
        """Digest of each scan: what its coarse volume holds, and where its slices lie.

        It stands for the fine volume too, which is cut from the same files: what a network sees of
        it does not depend on where it was cut.
        """
        grids = self.coarse.drop(columns=["study_uid", "path"]).to_dict("index")
        return {
            uid: fingerprint(grids[uid], _digest(self.slices[uid][["z_mm"]]))
            for uid in self.fold_of
        }

    @cached_property
    def masks(self) -> dict[str, str]:
        """Digest of what each study's mask says of its slices."""
        return {uid: _digest(self.slices[uid][MASK]) for uid in self.fold_of}

    @cached_property
    def pseudo_masks(self) -> dict[str, str]:
        """Digest of what another tool's mask says of the slices of studies that have one."""
        return {uid: _digest(rows[MASK]) for uid, rows in self.pseudo.items()}

    @cached_property
    def labels(self) -> dict[str, str]:
        """Digest of each study's labels."""
        columns = list(TARGETS)
        return {uid: _digest(self.studies.loc[[uid], columns]) for uid in self.fold_of}

    @cached_property
    def boxes(self) -> dict[str, str]:
        """Digest of each study's fracture boxes."""
        return {uid: _digest(self.slices[uid][list(BOX_COLUMNS)]) for uid in self.fold_of}

    def file_state(self, study_uid: str) -> str:
        """Changes when a volume's file is touched: a study that failed is then tried again."""
        files = [self.file(study_uid, "coarse"), self.fine.get(study_uid)]
        return fingerprint([file_state(file) for file in files if file is not None])


def open_inputs(paths: RunPaths) -> Inputs:
    """Read the tables the data room wrote; studies without a coarse volume or a fold are left out.

    Read once in a process as long as they do not change: several tasks may run in it.
    """
    names = ("studies", "slices", "coarse", "fine", "pseudo_slices")
    keys = [stored_key(paths.table(name)) for name in names]
    # Volumes may be found elsewhere under the same key.
    keys += [str(file_state(paths.table(grid))) for grid in ("coarse", "fine")]
    return _read_inputs(paths, fingerprint(keys, file_hash(paths.folds)))


@lru_cache(maxsize=1)
def _read_inputs(paths: RunPaths, key: str) -> Inputs:
    studies = read_table(paths.table("studies"), "studies").set_index("study_uid", drop=False)
    slices = read_table(paths.table("slices"), "slices")
    coarse = read_table(paths.table("coarse"), "coarse").set_index("study_uid", drop=False)
    fine = dict[str, Path]()
    if paths.table("fine").exists():
        table = read_table(paths.table("fine"), "fine")
        fine = {str(u): Path(p) for u, p in zip(table["study_uid"], table["path"], strict=True)}
    folds = load_folds(paths.folds)
    fold_of = {
        str(uid): int(fold)
        for uid, fold in sorted(zip(folds["study_uid"], folds["fold"], strict=True))
        if uid in coarse.index and uid in studies.index
    }
    by_study = {str(uid): group for uid, group in slices.groupby("study_uid", sort=False)}
    pseudo = dict[str, pd.DataFrame]()
    if paths.table("pseudo_slices").exists():
        said = read_table(paths.table("pseudo_slices"), "pseudo_slices")
        for uid, rows in said.groupby("study_uid", sort=True):
            bare = by_study[str(uid)].drop(columns=MASK) if uid in fold_of else None
            if bare is not None:
                pseudo[str(uid)] = bare.merge(rows, on=["study_uid", "slice_idx"])
    return Inputs(
        studies=studies,
        slices=by_study,
        pseudo=pseudo,
        coarse=coarse,
        fine=fine,
        fold_of=fold_of,
    )

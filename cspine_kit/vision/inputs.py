"""What the out-of-fold run starts from: the data room's tables, opened once in a process.

In: a run folder. Out: studies, slices, volumes and folds, and digests of what they hold. Example::

    inputs = open_inputs(paths)
    volume = inputs.volume(inputs.studies_of(0, training=True)[0])
    inputs.pixels[volume.study_uid]          # changes when a network would see anything else

A digest is made of values alone: where files lie and when they were written does not matter.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import file_hash, file_state, fingerprint, stored_key
from cspine_kit.core.tables import MASK_COLUMNS, SPINE_BOX_COLUMNS, read_table
from cspine_kit.data.folds import load_folds
from cspine_kit.data.volumes.volume import Volume, open_volume


def _digest(values: pd.DataFrame) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype=np.float64).tobytes()).hexdigest()


@dataclass(frozen=True)
class Inputs:
    """The tables of a run; `studies` and `volumes` are indexed by study_uid."""

    studies: pd.DataFrame
    slices: dict[str, pd.DataFrame]
    volumes: pd.DataFrame
    fold_of: dict[str, int]

    def volume(self, study_uid: str) -> Volume:
        """Volume of one study, memory-mapped when it is looked at."""
        return open_volume(self.volumes.loc[study_uid], self.slices[study_uid])

    def studies_of(self, fold: int, *, training: bool) -> list[str]:
        """Training or validation studies of a fold, sorted."""
        return [uid for uid, f in self.fold_of.items() if (f != fold) == training]

    @cached_property
    def pixels(self) -> dict[str, str]:
        """Digest of each volume: its checksum, its grid, where its slices lie."""
        grids = self.volumes.drop(columns=["study_uid", "path"]).to_dict("index")
        return {
            uid: fingerprint(grids[uid], _digest(self.slices[uid][["z_mm"]]))
            for uid in self.fold_of
        }

    @cached_property
    def masks(self) -> dict[str, str]:
        """Digest of what each study's mask says of its slices."""
        columns = [*MASK_COLUMNS, *SPINE_BOX_COLUMNS]
        return {uid: _digest(self.slices[uid][columns]) for uid in self.fold_of}

    @cached_property
    def labels(self) -> dict[str, str]:
        """Digest of each study's labels."""
        columns = list(TARGETS)
        return {uid: _digest(self.studies.loc[[uid], columns]) for uid in self.fold_of}

    def file_state(self, study_uid: str) -> str:
        """Changes when the volume's file is touched: a study that failed is then tried again."""
        return fingerprint(file_state(Path(str(self.volumes.loc[study_uid, "path"]))))


def open_inputs(paths: RunPaths) -> Inputs:
    """Read the tables the data room wrote; studies without a volume or a fold are left out.

    Read once in a process as long as they do not change: several tasks may run in it.
    """
    keys = [stored_key(paths.table(name)) for name in ("studies", "slices", "volumes")]
    return _read_inputs(paths, fingerprint(keys, file_hash(paths.folds)))


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
    )

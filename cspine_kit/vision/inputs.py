"""What the out-of-fold run starts from: the data room's tables, opened once in a process.

In: a run folder. Out: studies, slices, volumes and folds. Example::

    inputs = open_inputs(paths)
    volume = inputs.volume(inputs.studies_of(0, training=True)[0])
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from cspine_kit import __version__
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import file_hash, file_state, fingerprint, stored_key
from cspine_kit.core.tables import read_table
from cspine_kit.data.folds import load_folds
from cspine_kit.data.volumes.volume import Volume, open_volume


@dataclass(frozen=True)
class Inputs:
    """The tables of a run, opened once; `key` is the fingerprint of all of them."""

    studies: pd.DataFrame
    slices: dict[str, pd.DataFrame]
    volumes: pd.DataFrame
    fold_of: dict[str, int]
    key: str

    def volume(self, study_uid: str) -> Volume:
        """Volume of one study, memory-mapped when it is looked at."""
        return open_volume(self.volumes.loc[study_uid], self.slices[study_uid])

    def state(self, study_uid: str) -> str:
        """Fingerprint of one volume: its checksum in the table, and its file as it lies there."""
        row = self.volumes.loc[study_uid]
        return fingerprint(str(row["checksum"]), file_state(Path(str(row["path"]))))

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

"""What the out-of-fold run starts from: the data room's tables, opened once in a process.

In: a run folder. Out: studies, slices, volumes and folds. Example::

    inputs = open_inputs(paths)
    volume = inputs.coarse(inputs.studies_of(0, training=True)[0])
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from cspine_kit import __version__
from cspine_kit.core.errors import StudyError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import file_hash, file_state, fingerprint, stored_key
from cspine_kit.core.tables import read_table
from cspine_kit.data.folds import load_folds
from cspine_kit.data.volumes.store import open_volume
from cspine_kit.data.volumes.volume import Volume


@dataclass(frozen=True)
class Inputs:
    """The tables of a run, opened once.

    Attributes:
        studies: table `studies`.
        slices: rows of table `slices` by study.
        files: files of the volumes by "coarse" or "fine" and study; fine ones may still be missing.
        checksums: of their voxels.
        fold_of: fold of each study that has a coarse volume.
        key: fingerprint of all that the vertebra stage starts from.
    """

    studies: pd.DataFrame
    slices: dict[str, pd.DataFrame]
    files: dict[str, dict[str, Path]]
    checksums: dict[str, dict[str, str]]
    fold_of: dict[str, int]
    key: str

    def volume(self, study_uid: str, grid: str) -> Volume:
        """The coarse or the fine volume of a study, read when it is looked at.

        Raises:
            StudyError: it has none.
        """
        if study_uid not in self.files[grid]:
            raise StudyError(study_uid, f"has no {grid} volume")
        return open_volume(self.files[grid][study_uid])[0]

    def coarse(self, study_uid: str) -> Volume:
        """The volume of the whole scan."""
        return self.volume(study_uid, "coarse")

    def fine(self, study_uid: str) -> Volume:
        """The volume around the spine."""
        return self.volume(study_uid, "fine")

    def state(self, study_uid: str, *grids: str) -> str:
        """Fingerprint of a study's volumes: their checksums, and their files as they lie there."""
        found = [
            (self.checksums[grid][study_uid], file_state(self.files[grid][study_uid]))
            for grid in grids
            if study_uid in self.files[grid]
        ]
        return fingerprint(found)

    def studies_of(self, fold: int, *, training: bool) -> list[str]:
        """Training or validation studies of a fold, sorted."""
        return [uid for uid, f in self.fold_of.items() if (f != fold) == training]


def open_inputs(paths: RunPaths) -> Inputs:
    """Read the tables the data room wrote; studies without a coarse volume or a fold are left out.

    Read once in a process as long as they do not change: several tasks may run in it.
    """
    keys = [stored_key(paths.table(name)) for name in ("studies", "slices", "coarse")]
    key = fingerprint(__version__, keys, file_hash(paths.folds))
    return _read_inputs(paths, key, stored_key(paths.table("fine")))


@lru_cache(maxsize=1)
def _read_inputs(paths: RunPaths, key: str, fine: str | None) -> Inputs:
    studies = read_table(paths.table("studies"), "studies").set_index("study_uid", drop=False)
    slices = read_table(paths.table("slices"), "slices")
    files, checksums = dict[str, dict[str, Path]](), dict[str, dict[str, str]]()
    for grid in ("coarse", "fine") if fine is not None else ("coarse",):
        table = read_table(paths.table(grid), grid).set_index("study_uid")
        files[grid] = {str(uid): Path(path) for uid, path in table["path"].items()}
        checksums[grid] = {str(uid): str(value) for uid, value in table["checksum"].items()}
    folds = load_folds(paths.folds)
    fold_of = {
        str(uid): int(fold)
        for uid, fold in sorted(zip(folds["study_uid"], folds["fold"], strict=True))
        if uid in files["coarse"] and uid in studies.index
    }
    return Inputs(
        studies=studies,
        slices={str(uid): group for uid, group in slices.groupby("study_uid", sort=False)},
        files={"fine": {}, **files},
        checksums={"fine": {}, **checksums},
        fold_of=fold_of,
        key=key,
    )

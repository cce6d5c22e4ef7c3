"""What the out-of-fold run starts from: the data room's tables, opened once in a process.

In: a run folder. Out: studies, slices, volumes and folds, and digests of what they hold. Example::

    inputs = open_inputs(paths)
    volume = inputs.coarse(inputs.studies_of(0, training=True)[0])
    inputs.pixels[volume.study_uid]          # changes when a network would see anything else

A digest is made of values alone: where files lie and when they were written does not matter.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import StudyError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import file_hash, file_state, fingerprint, stored_key
from cspine_kit.core.tables import MASK_COLUMNS, SPINE_BOX_COLUMNS, read_table
from cspine_kit.data.folds import load_folds
from cspine_kit.data.volumes.store import open_volume
from cspine_kit.data.volumes.volume import Volume

Grid = Literal["coarse", "fine"]
GRIDS: tuple[Grid, ...] = ("coarse", "fine")


def _digest(values: pd.DataFrame) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype=np.float64).tobytes()).hexdigest()


@dataclass(frozen=True)
class Inputs:
    """The tables of a run; `studies` and those of `volumes` are indexed by study_uid.

    `volumes` holds the tables `coarse` and `fine`, the latter without rows before it is made.
    """

    studies: pd.DataFrame
    slices: dict[str, pd.DataFrame]
    volumes: dict[Grid, pd.DataFrame]
    fold_of: dict[str, int]

    def coarse(self, study_uid: str) -> Volume:
        """The volume of the whole scan, read when it is looked at."""
        return self._volume("coarse", study_uid)

    def fine(self, study_uid: str) -> Volume:
        """The volume around the spine, read when it is looked at."""
        return self._volume("fine", study_uid)

    def _volume(self, grid: Grid, study_uid: str) -> Volume:
        table = self.volumes[grid]
        if study_uid not in table.index:
            raise StudyError(study_uid, f"has no {grid} volume")
        return open_volume(Path(str(table.loc[study_uid, "path"])))[0]

    def studies_of(self, fold: int, *, training: bool) -> list[str]:
        """Training or validation studies of a fold, sorted."""
        return [uid for uid, f in self.fold_of.items() if (f != fold) == training]

    @cached_property
    def pixels(self) -> dict[str, str]:
        """Digest of each scan: of its coarse volume, and where its slices lie."""
        others = ["study_uid", "path", "has_mask", "mask_checksum"]
        grids = self.volumes["coarse"].drop(columns=others).to_dict("index")
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
        """Changes when a volume's file is touched: a study that failed is then tried again."""
        tables = [table for table in self.volumes.values() if study_uid in table.index]
        paths = [Path(str(table.loc[study_uid, "path"])) for table in tables]
        return fingerprint([file_state(path) for path in paths])


def open_inputs(paths: RunPaths) -> Inputs:
    """Read the tables the data room wrote; studies without a coarse volume or a fold are left out.

    Read once in a process as long as they do not change: several tasks may run in it.
    """
    keys = [stored_key(paths.table(name)) for name in ("studies", "slices", *GRIDS)]
    # Volumes may be found elsewhere under the same key.
    keys += [str(file_state(paths.table(grid))) for grid in GRIDS]
    return _read_inputs(paths, fingerprint(keys, file_hash(paths.folds)))


def _volumes(paths: RunPaths, grid: Grid) -> pd.DataFrame:
    path = paths.table(grid)
    if grid == "fine" and not path.exists():
        return pd.DataFrame(columns=["study_uid", "path"]).set_index("study_uid", drop=False)
    return read_table(path, grid).set_index("study_uid", drop=False)


@lru_cache(maxsize=1)
def _read_inputs(paths: RunPaths, key: str) -> Inputs:
    studies = read_table(paths.table("studies"), "studies").set_index("study_uid", drop=False)
    slices = read_table(paths.table("slices"), "slices")
    volumes = {grid: _volumes(paths, grid) for grid in GRIDS}
    folds = load_folds(paths.folds)
    fold_of = {
        str(uid): int(fold)
        for uid, fold in sorted(zip(folds["study_uid"], folds["fold"], strict=True))
        if uid in volumes["coarse"].index and uid in studies.index
    }
    return Inputs(
        studies=studies,
        slices={str(uid): group for uid, group in slices.groupby("study_uid", sort=False)},
        volumes=volumes,
        fold_of=fold_of,
    )

"""The decoded vertebra levels of one study, and whether they are to be believed.

In: a DICOM folder or a NIfTI file, and a bundle or nothing. Out: `StudyLevels`. Example::

    found = study_levels(folder)                     # by the finder that ships with the kit
    found = study_levels(folder, bundle)             # by the vertebra models of a bundle
    found.as_dict()["levels"]["C2"]["center_mm"]     # x, y, z in patient coordinates
    found.warnings                                   # empty where nothing speaks against them
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.data.levels import COUNTED
from cspine_kit.data.reader.problems import PROBLEMS, explain, falls_back
from cspine_kit.data.reader.scans.geometry import Geometry
from cspine_kit.data.volumes.read import read_both
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.infer.manifest import open_bundle

if TYPE_CHECKING:
    from cspine_kit.vision.finder.finder import LevelFinder

NO_NECK = "it shows none of C1..C7; is this a scan of the neck?"
UPSIDE_DOWN = "its levels run from the feet to the head: its headers tell the wrong end"
"""What is told of a scan whose levels are wrong as a whole."""


@dataclass(frozen=True)
class StudyLevels:
    """Levels of one study beside the volume they were found in.

    `levels` are rows of the `levels` table, in mm of the geometry's own frame; `rows` of the table
    `vertebra`, what the networks together say of each slice.
    """

    volume: Volume
    levels: pd.DataFrame
    geometry: Geometry
    rows: pd.DataFrame

    def _named(self, rows: "pd.Series[bool]") -> list[str]:
        return [str(level) for level in self.levels.loc[rows, "level"]]

    @property
    def absent(self) -> list[str]:
        """Levels that the scan does not show."""
        return self._named(~self.levels["present"])

    @property
    def counted(self) -> list[str]:
        """Levels that no slice shows though they must be there: placed by counting."""
        return self._named(self.levels["source"].isin(COUNTED))

    @property
    def upside_down(self) -> bool:
        """True where C1 lies at the end that the headers call caudal."""
        z_mm = self.levels.loc[self.levels["present"], "center_z_mm"].to_numpy()
        return len(z_mm) > 1 and bool(z_mm[0] < z_mm[-1])

    @property
    def warnings(self) -> list[str]:
        """Why these levels are not to be relied on, in words; empty where nothing says so."""
        worst = falls_back(self.geometry.problems)
        told = explain(worst)
        if len(self.absent) == len(LEVELS):
            told.append(NO_NECK)
        if self.upside_down:
            told.append(UPSIDE_DOWN)
        return told

    def _slice(self, level: str, end: str) -> int | None:
        """The slice nearest to an end of a level; None where the level is absent."""
        row = self.levels.loc[self.levels["level"] == level].iloc[0]
        return int(np.abs(self.geometry.z_mm - row[end]).argmin()) if row["present"] else None

    def as_dict(self) -> dict[str, Any]:
        """Slice 0 is the most cranial; confidence in [0, 1]. A level that is absent has no slices.

        `center_mm` is x, y, z in patient coordinates; `center_z_mm` is z of ImagePositionPatient at
        the slice of the center, which differs from its z where the gantry is tilted.
        """
        rows, place = self.levels.set_index("level"), self.geometry.patient_mm
        center = {
            level: place(*rows.loc[level, ["center_z_mm", "center_y_mm", "center_x_mm"]])
            for level in LEVELS
        }
        return {
            "study_uid": self.volume.study_uid,
            "n_slices": len(self.geometry.z_mm),
            "levels": {
                level: {
                    "in_scan": bool(rows.loc[level, "present"]),
                    "first_slice": self._slice(level, "z_top_mm"),
                    "last_slice": self._slice(level, "z_bottom_mm"),
                    "center_z_mm": round(float(place(rows.loc[level, "center_z_mm"])[2]), 2),
                    "center_mm": [round(float(v), 2) for v in center[level]],
                    "confidence": round(float(rows.loc[level, "confidence"]), 4),
                    "source": str(rows.loc[level, "source"]),
                }
                for level in LEVELS
            },
            "problems": {code: str(PROBLEMS[code]) for code in self.geometry.problems},
            "warnings": self.warnings,
        }


def find_levels(finder: "LevelFinder", place: Path) -> StudyLevels:
    """Levels of one study by an opened finder.

    Args:
        finder: `vision.finder.finder.shipped_finder()`, or the `finder` of an `Ensemble`.
        place: a folder of DICOM files, a .zip of them, or a NIfTI file.

    Raises:
        StudyError: nothing in it can be read, or it has no slice.
    """
    volumes, geometry = read_both(place, finder.volumes)
    rows = finder.rows(volumes.coarse)
    return StudyLevels(volumes.fine, finder.decoded(rows), geometry, rows)


def study_levels(place: str | Path, bundle: str | Path | None = None) -> StudyLevels:
    """Levels of one study: by the vertebra models of a bundle, or by the finder that ships.

    Args:
        place: as of `find_levels`.
        bundle: a folder that `cspine bundle` wrote; None: the finder that ships.

    Raises:
        StudyError: nothing in it can be read, or it has no slice.
        ArtifactError: the bundle, or the finder, is damaged.
    """
    from cspine_kit.vision.finder.finder import shipped_finder

    if bundle is None:
        return find_levels(shipped_finder(), Path(place))
    from cspine_kit.infer.chains.ensemble import Ensemble

    with tempfile.TemporaryDirectory() as scratch:
        ensemble = Ensemble(open_bundle(Path(bundle), Path(scratch)))
    return find_levels(ensemble.finder, Path(place))

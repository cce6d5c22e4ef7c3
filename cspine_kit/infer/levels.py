"""The decoded vertebra levels of one study.

In: a DICOM folder and a bundle. Out: `StudyLevels`. Example::

    found = study_levels(folder, bundle)
    found.as_dict()["levels"]["C2"]["center_z_mm"]
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.data.volumes.volume import Volume, read_volume
from cspine_kit.infer.manifest import open_bundle


@dataclass(frozen=True)
class StudyLevels:
    """Levels of one study beside the volume they were found in."""

    volume: Volume
    levels: pd.DataFrame
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Slice 0 is the most cranial; z in mm of ImagePositionPatient; confidence in [0, 1]."""
        rows = self.levels.set_index("level")
        return {
            "study_uid": self.volume.study_uid,
            "n_slices": len(self.volume.z_mm),
            "levels": {
                level: {
                    "first_slice": int(rows.loc[level, "z0"]),
                    "last_slice": int(rows.loc[level, "z1"]),
                    "center_z_mm": round(float(rows.loc[level, "center_z_mm"]), 2),
                    "confidence": round(float(rows.loc[level, "confidence"]), 4),
                    "source": str(rows.loc[level, "source"]),
                }
                for level in LEVELS
            },
            "problems": list(self.problems),
        }


def study_levels(folder: Path, bundle: Path) -> StudyLevels:
    """Levels of one study: the ensemble's vertebra models averaged on their logits, decoded once.

    Raises:
        StudyError: nothing in the folder can be read, or no slice shows a cervical level.
        ArtifactError: the bundle is damaged.
    """
    from cspine_kit.infer.ensemble import Ensemble
    from cspine_kit.vision.predict import decode_study, predict_vertebra

    with tempfile.TemporaryDirectory() as scratch:
        ensemble = Ensemble(open_bundle(bundle, Path(scratch)))
        volume, geometry = read_volume(folder, ensemble.config.cache)
        batch = ensemble.config.kernel.batch_size
        rows = [predict_vertebra(model, volume, batch) for model in ensemble.vertebra]
    mean = sum(frame.to_numpy(dtype=np.float64) for frame in rows) / len(rows)
    averaged = pd.DataFrame(mean, columns=rows[0].columns)
    averaged["slice_idx"] = rows[0]["slice_idx"].to_numpy()
    return StudyLevels(volume, decode_study(averaged, volume), geometry.problems)

"""The decoded vertebra levels of one study, as numbers and as a picture.

In: a DICOM folder and a bundle. Out: a JSON-ready dict, a PNG. Example::

    result = study_levels(folder, bundle)
    result["levels"]["C2"]["center_z_mm"]
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.runs import publish
from cspine_kit.data.volumes import Volume, read_volume
from cspine_kit.ship.bundle import open_bundle


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
    from cspine_kit.ship.ensemble import Ensemble
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


def draw_levels(found: StudyLevels, path: Path) -> None:
    """Draw the levels on the sagittal view through the spine, millimeters to scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    volume = found.volume
    rows = found.levels
    x = (rows["center_x_px"].median() - volume.offset_px[1]) / volume.zoom[1]
    column = int(np.clip(round(x), 0, volume.voxels.shape[2] - 1))
    sagittal = np.asarray(volume.voxels[:, :, column])
    z, spacing = volume.z_mm, float(volume.spacing_mm[1])
    half = abs(float(np.median(np.diff(z)))) / 2 if len(z) > 1 else 0.5
    width = sagittal.shape[1] * spacing
    figure, axis = plt.subplots(figsize=(7, 7 * max(0.3, (z[0] - z[-1]) / width)), dpi=120)
    axis.imshow(
        sagittal, cmap="gray", extent=(0, width, z[-1] - half, z[0] + half), interpolation="none"
    )
    colors = plt.get_cmap("tab10")
    for i, row in enumerate(rows.itertuples()):
        y = (row.center_y_px - volume.offset_px[0]) / volume.zoom[0] * spacing
        top, bottom = z[row.z0], z[row.z1]
        axis.plot([y - 30, y - 30], [top, bottom], color=colors(i), lw=3)
        axis.plot(y, row.center_z_mm, "o", color=colors(i), ms=4)
        axis.annotate(
            f"{row.level} {row.confidence:.2f}",
            (y - 33, row.center_z_mm),
            color=colors(i),
            ha="right",
            va="center",
            fontsize=9,
        )
    axis.set(xlabel="anterior to posterior, mm", ylabel="z, mm", title=volume.study_uid)
    figure.tight_layout()
    with publish(path) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)

"""A study as pictures show it: its cached volume with its mask on the same grid.

In: rows of the tables and a competition. Out: a `Scan`. Example::

    volumes = pd.read_parquet(paths.table("volumes")).set_index("study_uid")
    own = studies[studies["study_uid"] == uid].iloc[0]
    scan = read_scan(competition, volumes.loc[uid], own, slices[slices["study_uid"] == uid])
    assert scan.mask.shape == scan.grey.shape and 1 in scan.mask

`read_scan` is the one place where the report touches a volume.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS, SPINE_LABEL_COUNT
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.paths import Competition
from cspine_kit.core.tables import BOX_COLUMNS
from cspine_kit.data.masks import read_mask
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.data.volumes.volume import Volume, open_volume

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Scan:
    """One study.

    `grey`, `mask`: uint8 (z, y, x), 0 = most cranial; 1..7 are C1..C7, other vertebrae 0.
    `z_mm`: (nz,). `spacing_mm`: z, y, x. `fractured`: levels with a fracture. `boxes`: x, y, width,
    height of the fracture box in pixels of `grey`, by slice.
    """

    study_uid: str
    grey: Grey
    mask: Grey
    z_mm: FloatArray
    spacing_mm: tuple[float, float, float]
    fractured: tuple[str, ...]
    boxes: Mapping[int, tuple[float, float, float, float]]

    @property
    def middle(self) -> FloatArray:
        """z, y, x of the spine in voxels: of the mask, without one of the volume."""
        if self.mask.any():
            return np.asarray(np.argwhere(self.mask).mean(axis=0), dtype=np.float64)
        return (np.asarray(self.grey.shape, dtype=np.float64) - 1.0) / 2.0


def _on_grid(mask: Grey, volume: Volume) -> Grey:
    """A native mask on the volume's pixels; C1..C7 only."""
    _, rows, cols = volume.voxels.shape
    (y0, x0), (zy, zx) = volume.offset_px, volume.zoom
    y, x = (np.rint(o + np.arange(n) * z) for o, n, z in ((y0, rows, zy), (x0, cols, zx)))
    inside = np.outer((y >= 0) & (y < mask.shape[1]), (x >= 0) & (x < mask.shape[2]))
    at_y = np.clip(y, 0, mask.shape[1] - 1).astype(int)
    at_x = np.clip(x, 0, mask.shape[2] - 1).astype(int)
    placed = mask[:, at_y][:, :, at_x] * inside
    return np.where(placed <= SPINE_LABEL_COUNT, placed, 0).astype(np.uint8)


def read_scan(
    competition: Competition, row: Any, study: Any, slices: pd.DataFrame, *, masked: bool = True
) -> Scan:
    """Volume, mask and boxes of one training study.

    Args:
        competition: where files and masks lie.
        row: its row of table `volumes`.
        study: its row of table `studies`.
        slices: its rows of table `slices`.
        masked: False leaves the mask empty; the study's files are not opened then.

    Raises:
        CSpineError: the volume or the mask cannot be read.
    """
    uid = str(study["study_uid"])
    volume = open_volume(row, slices)
    grey = np.stack([volume.voxels[z] for z in range(volume.voxels.shape[0])])
    mask = np.zeros_like(grey)
    if masked:
        native = read_study(competition.images("train", uid))
        nearest = np.abs(volume.z_mm[:, None] - native.z_mm[None]).argmin(axis=1)
        mask = _on_grid(read_mask(competition.segmentation(uid), native)[nearest], volume)
    boxed = slices.dropna(subset=list(BOX_COLUMNS))
    (y0, x0), (zy, zx) = volume.offset_px, volume.zoom
    return Scan(
        uid,
        grey,
        mask,
        volume.z_mm,
        volume.spacing_mm,
        tuple(level for level in LEVELS if study[level] == 1.0),
        {
            int(z): ((x - x0) / zx, (y - y0) / zy, w / zx, h / zy)
            for z, x, y, w, h in boxed[["slice_idx", *BOX_COLUMNS]].itertuples(index=False)
        },
    )

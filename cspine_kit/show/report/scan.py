"""A study as pictures show it: its stored volume with its mask on the same grid.

In: a volume's file and rows of the tables. Out: a `Scan`. Example::

    files = pd.read_parquet(paths.table("coarse")).set_index("study_uid")["path"]
    own = studies[studies["study_uid"] == uid].iloc[0]
    scan = read_scan(Path(files[uid]), own, slices[slices["study_uid"] == uid])
    assert scan.mask.shape == scan.grey.shape and 1 in scan.mask

`read_scan` is the one place where the report touches a volume.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.tables import BOX_COLUMNS
from cspine_kit.data.volumes.store import every_slice, open_volume

Grey = NDArray[np.uint8]

WINDOW_HU = (-500.0, 1500.0)
"""What pictures show: soft tissue and bone."""


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


def read_scan(file: Path, study: Any, slices: pd.DataFrame) -> Scan:
    """Volume, mask and boxes of one training study.

    Args:
        file: of its coarse or fine volume.
        study: its row of table `studies`.
        slices: its rows of table `slices`.

    Raises:
        CSpineError: the volume or the mask cannot be read.
    """
    volume, _ = open_volume(file)
    grey = volume.curve.window(*WINDOW_HU)[every_slice(volume.voxels)]
    mask = np.zeros_like(grey) if volume.mask is None else every_slice(volume.mask)
    boxes: dict[int, tuple[float, float, float, float]] = {}
    pitch = np.array([study["spacing_y"], study["spacing_x"]], dtype=np.float64)
    boxed = slices.dropna(subset=list(BOX_COLUMNS))
    for z, x, y, w, h in boxed[["slice_idx", *BOX_COLUMNS]].itertuples(index=False):
        (y0, x0), (y1, x1) = volume.to_px(np.array([[y, x], [y + h, x + w]]) * pitch)
        place = (int(z) - volume.first_slice) // volume.group
        if 0 <= place < len(grey):
            boxes.setdefault(place, (x0, y0, x1 - x0, y1 - y0))
    return Scan(
        str(study["study_uid"]),
        grey,
        np.where(mask <= len(LEVELS), mask, 0).astype(np.uint8),
        volume.z_mm,
        volume.spacing_mm,
        tuple(level for level in LEVELS if study[level] == 1.0),
        boxes,
    )

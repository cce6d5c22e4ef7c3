"""The compact volume of a study: bone window as uint8, a square around the neck, z kept native.

In: a `Study` and a `CacheConfig`. Out: a `Volume`, in memory or memory-mapped from the cache.
Example::

    volume = make_volume(read_study(folder), config.cache)
    native_px = volume.offset_px + cached_px * volume.zoom      # pixel centers, (y, x)

The kernel calls `make_volume`, the out-of-fold run `open_volume`: the voxels are identical.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.config import CacheConfig
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.execution import usable_cores
from cspine_kit.data.dicom import Study

FloatArray = NDArray[np.float64]

GRID_MM = 4.0
"""Pixel size at which the body is looked for."""
SEARCHED_SLICES = 48
BODY_HU, BONE_HU = -300, 200
MIDLINE_MM = 35.0
"""Half width of the strip around the body's middle in which bone counts as spine."""
NECK_SHARE = 0.4
"""Share of slices with the smallest body outline that count as neck."""


@dataclass(frozen=True)
class Volume:
    """One study as the networks see it.

    Attributes:
        study_uid: its study.
        voxels: uint8 (z, y, x), array or memory map; index 0 is the most cranial slice.
        z_mm: (nz,) float64, descending.
        spacing_mm: z, y, x of the cached grid.
        offset_px: y, x position of cached pixel [0, 0] in native pixels.
        zoom: y, x native pixels per cached pixel.
    """

    study_uid: str
    voxels: NDArray[np.uint8]
    z_mm: FloatArray
    spacing_mm: tuple[float, float, float]
    offset_px: tuple[float, float]
    zoom: tuple[float, float]


def to_grey(hu: NDArray[np.int16], config: CacheConfig) -> NDArray[np.uint8]:
    """Window hu_low..hu_high of a plane to 0..255, rounded; half the cost of a float rescale."""
    low, high = round(config.hu_low), round(config.hu_high)
    clipped = np.clip(hu, np.int16(max(low, -32768)), np.int16(min(high, 32767)))
    # Modulo 2^16: right for any window, however wide.
    above = np.subtract(clipped.view(np.uint16), np.array(low & 0xFFFF, np.uint16))
    grey: NDArray[np.uint8] = cv2.convertScaleAbs(above, alpha=255.0 / (high - low))  # type: ignore[assignment]
    return grey


def _outline(coarse: NDArray[np.int16]) -> NDArray[np.bool_]:
    """The body on one coarse slice: the largest piece of tissue without thin things."""
    tissue = (coarse > BODY_HU).astype(np.uint8)
    # A table is a few millimeters thick: two coarse pixels of opening take it off.
    opened = cv2.morphologyEx(tissue, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:
        return np.zeros(coarse.shape, dtype=bool)
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    found: NDArray[np.bool_] = labels == largest
    return found


def neck_center(study: Study) -> tuple[float, float]:
    """Where the square is centered: y, x in native pixels.

    The middle of the body's outline on the slices where it is smallest (the neck, not the
    shoulders), and there the median of bone near the midline: the spine. Without bone the outline's
    center, without a body the middle of the frame.
    """
    _, pitch_y, pitch_x = study.spacing_mm
    step_y, step_x = (max(1, round(GRID_MM / pitch)) for pitch in (pitch_y, pitch_x))
    chosen = np.unique(np.linspace(0, len(study.hu) - 1, SEARCHED_SLICES).round().astype(int))
    coarse = [np.ascontiguousarray(study.hu[z, ::step_y, ::step_x]) for z in chosen]
    bodies = [_outline(plane) for plane in coarse]
    areas = np.array([int(body.sum()) for body in bodies])
    if not areas.any():
        return (study.shape[0] - 1) / 2, (study.shape[1] - 1) / 2
    limit = np.quantile(areas[areas > 0], NECK_SHARE)
    neck = [i for i, area in enumerate(areas) if 0 < area <= limit]
    middles = [np.argwhere(bodies[i]).mean(axis=0) for i in neck]
    y, x = np.median(middles, axis=0)
    reach = MIDLINE_MM / (step_x * pitch_x)
    bones = []
    for i in neck:
        rows, cols = np.nonzero(bodies[i] & (coarse[i] > BONE_HU))
        bones.append(rows[np.abs(cols - x) <= reach])
    spine = np.concatenate(bones)
    if len(spine):
        y = float(np.median(spine))
    return float(y * step_y), float(x * step_x)


def make_volume(study: Study, config: CacheConfig, *, threads: int = 0) -> Volume:
    """Window, crop and resample one study.

    In-plane resampling averages areas (cv2 INTER_AREA); where the native pixels are coarser than
    `config.spacing_mm` there is nothing to average and it interpolates linearly. Outside the frame
    the volume is air (0). z keeps the native slices. `threads` work at once, 0 = usable cores.
    """
    side = config.side_px
    center = neck_center(study)
    pitch = study.spacing_mm[1:]
    spans = [max(1, round(side * config.spacing_mm / p)) for p in pitch]
    starts = [round(c - (span - 1) / 2) for c, span in zip(center, spans, strict=True)]
    zoom = (spans[0] / side, spans[1] / side)
    inside = [  # never empty: the center lies inside the frame
        (max(start, 0), min(start + span, size))
        for start, span, size in zip(starts, spans, study.shape, strict=True)
    ]
    (y0, y1), (x0, x1) = inside
    whole = (y1 - y0, x1 - x0) == tuple(spans)
    margin = (y0 - starts[0], starts[0] + spans[0] - y1, x0 - starts[1], starts[1] + spans[1] - x1)
    method = cv2.INTER_AREA if min(zoom) >= 1.0 else cv2.INTER_LINEAR
    voxels = np.empty((len(study.hu), side, side), dtype=np.uint8)

    def fill(z: int) -> None:
        grey = to_grey(study.hu[z, y0:y1, x0:x1], config)
        if not whole:
            grey = cv2.copyMakeBorder(grey, *margin, cv2.BORDER_CONSTANT, value=(0,))  # type: ignore[assignment]
        cv2.resize(grey, (side, side), dst=voxels[z], interpolation=method)

    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        list(pool.map(fill, range(len(study.hu))))
    return Volume(
        study_uid=study.study_uid,
        voxels=voxels,
        z_mm=study.z_mm,
        spacing_mm=(study.spacing_mm[0], pitch[0] * zoom[0], pitch[1] * zoom[1]),
        offset_px=(starts[0] + (zoom[0] - 1) / 2, starts[1] + (zoom[1] - 1) / 2),
        zoom=zoom,
    )


def open_volume(row: "pd.Series", slices: pd.DataFrame) -> Volume:
    """A cached volume, memory-mapped read-only.

    Args:
        row: its row of the `volumes` table, indexed or not by study_uid.
        slices: its rows of the `slices` table.

    Raises:
        ArtifactError: the file is missing or has another shape than the table says.
    """
    path = Path(str(row["path"]))
    uid = str(row["study_uid"]) if "study_uid" in row else str(row.name)
    try:
        voxels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cached volume {path} cannot be opened: {error}") from error
    z_mm = slices.sort_values("slice_idx")["z_mm"].to_numpy(dtype=np.float64)
    expected = (int(row["nz"]), int(row["ny"]), int(row["nx"]))
    if voxels.shape != expected or len(z_mm) != expected[0]:
        raise ArtifactError(
            f"cached volume {path} is {voxels.shape}, the tables say {expected} with {len(z_mm)} "
            "slices; delete it and run cspine cache"
        )
    return Volume(
        study_uid=uid,
        voxels=voxels,
        z_mm=z_mm,
        spacing_mm=(float(row["spacing_z"]), float(row["spacing_y"]), float(row["spacing_x"])),
        offset_px=(float(row["offset_y_px"]), float(row["offset_x_px"])),
        zoom=(float(row["zoom_y"]), float(row["zoom_x"])),
    )

"""The compact volume of a study: bone window as uint8, a square around the neck, z kept native.

In: a folder, or a `Study`, and a `CacheConfig`. Out: a `Volume`, in memory or memory-mapped from
the cache. Example::

    volume, geometry = read_volume(folder, config.cache)
    native_px = volume.offset_px + cached_px * volume.zoom      # pixel centers, (y, x)

Kernel and cache make a volume by the same code, the out-of-fold run opens it with `open_volume`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.config import CacheConfig
from cspine_kit.core.errors import ArtifactError
from cspine_kit.data.dicom import Study, gather
from cspine_kit.data.frames import Frames, in_threads
from cspine_kit.data.geometry import Geometry
from cspine_kit.data.neck import Survey
from cspine_kit.data.pixels import HuArray

FloatArray = NDArray[np.float64]
Grey = NDArray[np.uint8]


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
    voxels: Grey
    z_mm: FloatArray
    spacing_mm: tuple[float, float, float]
    offset_px: tuple[float, float]
    zoom: tuple[float, float]


def to_grey(hu: HuArray, config: CacheConfig) -> Grey:
    """Window hu_low..hu_high of a plane to 0..255, rounded; half the cost of a float rescale."""
    low, high = round(config.hu_low), round(config.hu_high)
    clipped = np.clip(hu, np.int16(max(low, -32768)), np.int16(min(high, 32767)))
    # Modulo 2^16: right for any window, however wide.
    above = np.subtract(clipped.view(np.uint16), np.array(low & 0xFFFF, np.uint16))
    grey: Grey = cv2.convertScaleAbs(above, alpha=255.0 / (high - low))  # type: ignore[assignment]
    return grey


def make_volume(study: Study, config: CacheConfig, *, threads: int = 0) -> Volume:
    """Window, crop and resample one study; `threads` work at once, 0 = usable cores.

    In-plane resampling averages areas (cv2 INTER_AREA); where the native pixels are coarser than
    `config.spacing_mm` there is nothing to average and it interpolates linearly. Outside the frame
    the volume is air (0). z keeps the native slices.
    """
    each = partial(in_threads, threads=threads)
    return _compact(study, lambda z: study.hu[z], each, config)


def read_volume(
    folder: Path, config: CacheConfig, study_uid: str | None = None, *, threads: int = 0
) -> tuple[Volume, Geometry]:
    """`make_volume(read_study(folder))` without ever holding the study: the voxels are identical.

    Each slice is decoded, windowed, cropped and resampled in one go. Also returns the geometry,
    with the reader's problem codes.

    Raises:
        StudyError: no slice at all can be read, or none is axial.
    """

    def take(frames: Frames) -> Volume:
        each = partial(frames.each, threads=threads)
        return _compact(frames.geometry, frames.hu, each, config)

    geometry, volume = gather(folder, study_uid, take)
    return volume, geometry


def _compact(
    geometry: Geometry,
    frame: Callable[[int], HuArray],
    each: Callable[[Callable[[int], None], Iterable[int]], None],
    config: CacheConfig,
) -> Volume:
    """The volume of a series.

    Args:
        geometry: of the series.
        frame: HU of one slice.
        each: calls a function that asks for frames on every index.
        config: spacing, field and window.
    """
    survey, planes = Survey(geometry), dict[int, HuArray]()
    place = {z: k for k, z in enumerate(survey.slices)}
    held: list[Grey] = [np.empty((len(place), *geometry.shape), dtype=np.uint8)]

    def look(z: int) -> None:
        hu = frame(z)
        planes[z], held[0][place[z]] = survey.coarse(hu), to_grey(hu, config)

    each(look, survey.slices)
    center = survey.center({z: planes[z] for z in survey.slices})
    side = config.side_px
    pitch = geometry.spacing_mm[1:]
    spans = [max(1, round(side * config.spacing_mm / p)) for p in pitch]
    starts = [round(c - (span - 1) / 2) for c, span in zip(center, spans, strict=True)]
    zoom = (spans[0] / side, spans[1] / side)
    inside = [  # never empty: the center lies inside the frame
        (max(start, 0), min(start + span, size))
        for start, span, size in zip(starts, spans, geometry.shape, strict=True)
    ]
    (y0, y1), (x0, x1) = inside
    whole = (y1 - y0, x1 - x0) == tuple(spans)
    margin = (y0 - starts[0], starts[0] + spans[0] - y1, x0 - starts[1], starts[1] + spans[1] - x1)
    method = cv2.INTER_AREA if min(zoom) >= 1.0 else cv2.INTER_LINEAR

    def shrink(grey: Grey, out: Grey) -> None:
        if not whole:
            grey = cv2.copyMakeBorder(grey, *margin, cv2.BORDER_CONSTANT, value=(0,))  # type: ignore[assignment]
        cv2.resize(grey, (side, side), dst=out, interpolation=method)

    # What was surveyed goes first, so that its frames are gone before the volume is made.
    held.append(np.empty((len(place), side, side), dtype=np.uint8))
    each(lambda z: shrink(held[0][place[z], y0:y1, x0:x1], held[1][place[z]]), survey.slices)
    del held[0]
    voxels = np.empty((len(geometry.headers), side, side), dtype=np.uint8)
    voxels[survey.slices] = held.pop()
    each(
        lambda z: shrink(to_grey(frame(z)[y0:y1, x0:x1], config), voxels[z]),
        [z for z in range(len(voxels)) if z not in place],
    )
    return Volume(
        study_uid=geometry.study_uid,
        voxels=voxels,
        z_mm=geometry.z_mm,
        spacing_mm=(geometry.spacing_mm[0], pitch[0] * zoom[0], pitch[1] * zoom[1]),
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

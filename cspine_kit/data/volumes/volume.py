"""The compact volume of a study: bone window as uint8, a square around the neck, z kept native.

In: a folder and a `CacheConfig`. Out: a `Volume`, in memory or memory-mapped from the cache.
Example::

    volume, geometry = read_volume(folder, config.cache)
    native_px = volume.to_native_px(np.array([[31.5, 31.5]]))      # pixel centers, (n, 2) y, x

Kernel and cache make a volume by the same code, the out-of-fold run opens it with `open_volume`.
"""

from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pandas as pd

from cspine_kit.core.config import CacheConfig
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.dicom import gather
from cspine_kit.data.reader.pixels.frames import Frames
from cspine_kit.data.reader.pixels.values import HuArray
from cspine_kit.data.reader.scans.geometry import Geometry
from cspine_kit.data.volumes.mapped import Grey, MappedVoxels
from cspine_kit.data.volumes.neck import Survey

AREA_ZOOM = 1.5
"""Pixels per resampled pixel above which areas are averaged. Up to it, linear interpolation still
weighs every pixel, keeps more of what the coarser grid can show (its response falls as sinc(f)^2,
an area average's as sinc(f) sinc(zoom f)) and costs a fifth."""


def interpolation(zoom: float) -> int:
    """OpenCV's method to resample a plane by `zoom` pixels per new pixel."""
    return cv2.INTER_AREA if zoom > AREA_ZOOM else cv2.INTER_LINEAR


@dataclass(frozen=True)
class Volume:
    """One study as the networks see it.

    Attributes:
        study_uid: its study.
        voxels: uint8 (z, y, x), array or `MappedVoxels`; index 0 is the most cranial slice.
        z_mm: (nz,) float64, descending.
        spacing_mm: z, y, x of the cached grid.
        offset_px: y, x position of cached pixel [0, 0] in native pixels, those of the study's own
            frame (`Geometry`).
        zoom: y, x native pixels per cached pixel.
    """

    study_uid: str
    voxels: Grey
    z_mm: FloatArray
    spacing_mm: tuple[float, float, float]
    offset_px: tuple[float, float]
    zoom: tuple[float, float]

    def to_native_px(self, cached_px: FloatArray) -> FloatArray:
        """Cached (n, 2) y, x pixel positions in the pixels of the study's own frame."""
        return np.asarray(self.offset_px) + cached_px * np.asarray(self.zoom)

    def to_cached_px(self, native_px: FloatArray) -> FloatArray:
        """Native (n, 2) y, x pixel positions in the pixels of the cached volume."""
        return (native_px - np.asarray(self.offset_px)) / np.asarray(self.zoom)


def to_grey(hu: HuArray, config: CacheConfig, out: Grey | None = None) -> Grey:
    """Window hu_low..hu_high of a plane to 0..255, rounded. `hu` is clipped from below in place."""
    np.maximum(hu, np.int16(max(round(config.hu_low), -32768)), out=hu)
    scale = 255.0 / (config.hu_high - config.hu_low)
    # Saturates above; after the clip nothing is negative that the absolute value would mirror.
    grey: Grey = cv2.convertScaleAbs(hu, out, alpha=scale, beta=-config.hu_low * scale)  # type: ignore[assignment]
    return grey


def read_volume(
    folder: Path, config: CacheConfig, study_uid: str | None = None, *, threads: int = 0
) -> tuple[Volume, Geometry]:
    """Read, window, crop and resample one study without holding all of its frames at once.

    The surveyed slices, 5 mm apart, wait as whole frames of 8 bits until they are cropped: of a
    study whose own slices lie that far apart these are all. In-plane resampling averages areas
    where a cached pixel spans more than `AREA_ZOOM` native ones and interpolates linearly
    elsewhere. Outside the frame the volume is air (0). z keeps the native slices.

    Args:
        folder: the study's files.
        config: spacing, field and window.
        study_uid: name in errors and results; the folder's name where it is None.
        threads: that decode at once; 0 = usable cores.

    Returns:
        The volume, and the geometry with the reader's problem codes.

    Raises:
        StudyError: no slice at all can be read, or none is axial.
    """
    geometry, volume = gather(folder, study_uid, lambda frames: _compact(frames, config, threads))
    return volume, geometry


def _compact(frames: Frames, config: CacheConfig, threads: int) -> Volume:
    geometry = frames.geometry
    survey = Survey(geometry)
    planes, greys = dict[int, HuArray](), dict[int, Grey]()

    def look(z: int) -> None:
        hu = frames.hu(z)
        planes[z] = survey.coarse(hu)
        # A map of its own goes back to the system with its slice; malloc would keep the memory.
        memory = np.frombuffer(mmap(-1, hu.size), np.uint8).reshape(hu.shape)
        greys[z] = to_grey(hu, config, memory)

    frames.each(look, survey.slices, threads)
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
    method = interpolation(min(zoom))
    voxels = np.empty((len(geometry.headers), side, side), dtype=np.uint8)

    def shrink(z: int) -> None:
        # A surveyed frame is dropped with its slice, so that the two hardly add up.
        grey = greys.pop(z, None)
        square = to_grey(frames.hu(z)[y0:y1, x0:x1], config) if grey is None else grey[y0:y1, x0:x1]
        if not whole:
            square = cv2.copyMakeBorder(square, *margin, cv2.BORDER_CONSTANT, value=(0,))  # type: ignore[assignment]
        cv2.resize(square, (side, side), dst=voxels[z], interpolation=method)

    frames.each(shrink, range(len(voxels)), threads)
    return Volume(
        study_uid=geometry.study_uid,
        voxels=voxels,
        z_mm=geometry.z_mm,
        spacing_mm=(geometry.spacing_mm[0], pitch[0] * zoom[0], pitch[1] * zoom[1]),
        offset_px=(starts[0] + (zoom[0] - 1) / 2, starts[1] + (zoom[1] - 1) / 2),
        zoom=zoom,
    )


def open_volume(row: "pd.Series", slices: pd.DataFrame) -> Volume:
    """A cached volume, memory-mapped read-only when its voxels are looked at.

    Args:
        row: its row of the `volumes` table, indexed or not by study_uid.
        slices: its rows of the `slices` table.

    Raises:
        ArtifactError: the file is missing or has another shape than the table says.
    """
    path = Path(str(row["path"]))
    uid = str(row["study_uid"]) if "study_uid" in row else str(row.name)
    try:
        voxels = MappedVoxels.of(path)
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
        voxels=cast(Grey, voxels),  # indexed alike
        z_mm=z_mm,
        spacing_mm=(float(row["spacing_z"]), float(row["spacing_y"]), float(row["spacing_x"])),
        offset_px=(float(row["offset_y_px"]), float(row["offset_x_px"])),
        zoom=(float(row["zoom_y"]), float(row["zoom_x"])),
    )

"""Anatomical planes of a volume as grey pictures, millimeters to scale.

In: voxels (z, y, x), z index 0 = most cranial, HU or already grey. Out: uint8 pictures. Example::

    picture = view(study.hu, study.spacing_mm, SAGITTAL, 48, pixel_mm=0.5)
    write_png(Path("sagittal.png"), picture)
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.errors import DataError
from cspine_kit.core.runs import publish
from cspine_kit.data.volumes.lattice import interpolation

AXIAL, CORONAL, SAGITTAL = 0, 1, 2
"""The axis that a plane is cut across."""

WINDOW_HU = (-300.0, 1200.0)
"""Black and white of pictures of HU."""

Image = NDArray[np.uint8]
Spacing = tuple[float, float, float]


def _grey(plane: NDArray[np.generic]) -> Image:
    """HU windowed to 0..255; a uint8 plane stays as it is."""
    if plane.dtype == np.uint8:
        return np.ascontiguousarray(plane, dtype=np.uint8)
    low, high = WINDOW_HU
    share = (plane.astype(np.float32) - low) / (high - low)
    return np.ascontiguousarray(np.clip(share, 0.0, 1.0) * 255.0).astype(np.uint8)


def view(
    voxels: NDArray[np.generic], spacing_mm: Spacing, axis: int, index: int, *, pixel_mm: float
) -> Image:
    """One plane, its first axis down the picture, resampled to square pixels.

    Args:
        voxels: (z, y, x), int16 HU or uint8 grey.
        spacing_mm: z, y, x.
        axis: `AXIAL`, `CORONAL` or `SAGITTAL`.
        index: voxel along that axis.
        pixel_mm: side of a pixel of the picture.
    """
    plane = _grey(np.take(voxels, index, axis=axis))
    down, right = (mm for i, mm in enumerate(spacing_mm) if i != axis)
    rows, cols = plane.shape
    size = (max(1, round(cols * right / pixel_mm)), max(1, round(rows * down / pixel_mm)))
    method = interpolation(min(pixel_mm / down, pixel_mm / right))
    return np.asarray(cv2.resize(plane, size, interpolation=method), dtype=np.uint8)


def write_png(path: Path, picture: Image) -> None:
    """Write a picture atomically.

    Raises:
        DataError: it cannot be encoded.
    """
    done, encoded = cv2.imencode(".png", picture)
    if not done:
        raise DataError(f"picture {path} of shape {picture.shape} cannot be encoded as PNG")
    with publish(path) as temporary:
        temporary.write_bytes(encoded.tobytes())

"""Pictures of whole studies side by side: axial slices, sagittal and coronal views to scale.

In: titled volumes in HU (z, y, x), z index 0 = most cranial, with their spacing. Out: one gray
picture, uint8 (rows, columns). Example::

    image = montage([("phantom", hu, (0.8, 0.35, 0.35)), ("real", other, (3.0, 1.0, 1.0))])
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.runs import publish

TILE_PX = 220
WINDOW_HU = (-250.0, 1000.0)
AXIAL_PLACES = (0.12, 0.27, 0.42, 0.57, 0.72, 0.87)
FIELD_MM = 200.0

Spacing = tuple[float, float, float]
Image = NDArray[np.uint8]


def _tile(plane: NDArray[np.int16], tall_mm: float, wide_mm: float) -> Image:
    """One plane, windowed, to scale in a square tile of `FIELD_MM`."""
    import cv2

    low, high = WINDOW_HU
    gray = np.clip((plane.astype(np.float32) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    scale = TILE_PX / FIELD_MM
    size = (max(1, round(wide_mm * scale)), max(1, round(tall_mm * scale)))
    small = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    tile = np.zeros((TILE_PX, TILE_PX), np.uint8)
    cut_y, cut_x = (max(0, n - TILE_PX) // 2 for n in small.shape)
    small = small[cut_y : cut_y + TILE_PX, cut_x : cut_x + TILE_PX]
    y0, x0 = (TILE_PX - small.shape[0]) // 2, (TILE_PX - small.shape[1]) // 2
    tile[y0 : y0 + small.shape[0], x0 : x0 + small.shape[1]] = small
    return tile


def _spine_middle(hu: NDArray[np.int16]) -> tuple[int, int]:
    """Row and column about which bone lies in the lower two thirds of the volume."""
    bone = hu[len(hu) // 3 :: 2] > 250
    weight = bone.sum(axis=0)
    if not bone.any():
        return hu.shape[1] // 2, hu.shape[2] // 2
    y = np.average(np.arange(hu.shape[1]), weights=weight.sum(axis=1))
    x = np.average(np.arange(hu.shape[2]), weights=weight.sum(axis=0))
    return int(y), int(x)


def study_row(title: str, hu: NDArray[np.int16], spacing_mm: Spacing) -> Image:
    """Sagittal, coronal and axial tiles of one study, left to right."""
    import cv2

    y, x = _spine_middle(hu)
    tall, deep, wide = (n * s for n, s in zip(hu.shape, spacing_mm, strict=True))
    tiles = [_tile(hu[:, :, x], tall, deep), _tile(hu[:, y, :], tall, wide)]
    tiles += [_tile(hu[int(p * (len(hu) - 1))], deep, wide) for p in AXIAL_PLACES]
    row = np.hstack(tiles)
    cv2.putText(row, title, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, 255, 1, cv2.LINE_AA)
    return row


def montage(studies: Sequence[tuple[str, NDArray[np.int16], Spacing]]) -> Image:
    """All studies below each other."""
    return np.vstack([study_row(*study) for study in studies])


def write_montage(path: Path, studies: Sequence[tuple[str, NDArray[np.int16], Spacing]]) -> None:
    """Write the montage as PNG."""
    import cv2

    done, data = cv2.imencode(".png", montage(studies))
    if not done:
        raise ValueError(f"cannot encode {path} as PNG")
    with publish(path) as temporary:
        temporary.write_bytes(data.tobytes())

"""Pictures of whole studies: one through its spine, or several side by side.

In: `Study`s as the reader gives them. Out: PNG files. Example::

    draw_study(study, Path("study.png"))
    write_montage(Path("montage.png"), [study, study])
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cspine_kit.data.reader.dicom import Study
from cspine_kit.data.volumes.neck import BEHIND_MM, Survey
from cspine_kit.show.views import AXIAL, CORONAL, SAGITTAL, Image, view, write_png

TILE_PX = 220
FIELD_MM = 200.0
AXIAL_PLACES = (0.12, 0.27, 0.42, 0.57, 0.72, 0.87)
"""Axial slices of a montage's row, as shares of the way from head to chest."""

GAP_PX = 6


def spine_yx(study: Study) -> tuple[int, int]:
    """Row of the vertebral bodies and column of the spine's middle, native pixels."""
    survey = Survey(study)
    y, x = survey.center({z: survey.coarse(study.hu[z]) for z in survey.slices})
    # The coronal view cuts through the vertebral bodies, in front of the spine's middle.
    return round(max(0.0, y - BEHIND_MM / study.spacing_mm[1])), round(x)


def draw_study(study: Study, path: Path) -> None:
    """Draw the axial, sagittal and coronal planes through the spine, mm to scale.

    Raises:
        DataError: the picture cannot be encoded.
    """
    y, x = spine_yx(study)
    cuts = ((AXIAL, len(study.hu) // 2), (SAGITTAL, x), (CORONAL, y))
    pixel_mm = min(study.spacing_mm[1:])
    views = [view(study.hu, study.spacing_mm, *cut, pixel_mm=pixel_mm) for cut in cuts]
    height = max(len(picture) for picture in views)
    padded = [np.pad(v, ((0, height - len(v)), (0, GAP_PX))) for v in views]
    write_png(path, np.hstack(padded))


def _tile(picture: Image) -> Image:
    """The middle of a picture in a square of `FIELD_MM`."""
    tile = np.zeros((TILE_PX, TILE_PX), np.uint8)
    cut_y, cut_x = (max(0, n - TILE_PX) // 2 for n in picture.shape)
    inside = picture[cut_y : cut_y + TILE_PX, cut_x : cut_x + TILE_PX]
    y0, x0 = (TILE_PX - inside.shape[0]) // 2, (TILE_PX - inside.shape[1]) // 2
    tile[y0 : y0 + inside.shape[0], x0 : x0 + inside.shape[1]] = inside
    return tile


def _row(study: Study) -> Image:
    """Sagittal, coronal and axial tiles of one study, left to right, under its name."""
    y, x = spine_yx(study)
    last = len(study.hu) - 1
    cuts = [(SAGITTAL, x), (CORONAL, y), *((AXIAL, int(p * last)) for p in AXIAL_PLACES)]
    pixel_mm = FIELD_MM / TILE_PX
    row = np.hstack(
        [_tile(view(study.hu, study.spacing_mm, *cut, pixel_mm=pixel_mm)) for cut in cuts]
    )
    cv2.putText(row, study.study_uid, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, 255, 1, cv2.LINE_AA)
    return row


def montage(studies: Sequence[Study]) -> Image:
    """All studies below each other, uint8 (rows, columns)."""
    return np.vstack([_row(study) for study in studies])


def write_montage(path: Path, studies: Sequence[Study]) -> None:
    """Write the montage as PNG.

    Raises:
        DataError: the picture cannot be encoded.
    """
    write_png(path, montage(studies))

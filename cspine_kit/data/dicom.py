"""A folder of DICOM files as one geometrically true study.

In: a folder. Out: a frozen `Study` in Hounsfield units. Example::

    study = read_study(Path("train_images/1.2.826.0.1.3680043.6200"))
    study.hu[0]          # the most cranial slice, row -> back, column -> left
    study.problems       # codes of cspine_kit.data.problems.PROBLEMS

Slices are ordered by ImagePositionPatient along the slice normal, never by file number.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.errors import StudyError
from cspine_kit.core.execution import usable_cores
from cspine_kit.data.geometry import Geometry, settle_geometry
from cspine_kit.data.header import Header, read_header
from cspine_kit.data.pixels import AIR_HU, HuArray, decode, invert, mirrors, settle_bits, to_hu
from cspine_kit.data.problems import PROBLEMS, FileError

READER_VERSION = 2
"""Raised whenever the same files give another study or volume, so that caches are made anew."""


@dataclass(frozen=True, kw_only=True)
class Study(Geometry):
    """A `Geometry` with its pixels: `hu` int16 (z, y, x), index 0 the most cranial slice."""

    hu: NDArray[np.int16]


def list_files(folder: Path) -> list[str]:
    """Names of the regular files of a study's folder, sorted; hidden ones are left out.

    Raises:
        StudyError: there is no such folder.
    """
    if not folder.is_dir():
        raise StudyError(folder.name, f"there is no folder {folder}")
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_file() and not e.name.startswith(".")]
    return sorted(names)


def read_headers(folder: Path) -> tuple[list[Header], list[FileError]]:
    """Headers of every readable file, by name, and why the others are not.

    Raises:
        StudyError: there is no such folder.
    """
    headers, errors = [], []
    place = str(folder)
    for name in list_files(folder):
        try:
            headers.append(read_header(place, name))
        except FileError as error:
            errors.append(error)
    return headers, errors


def _settle(study_uid: str, headers: list[Header], errors: list[FileError]) -> Geometry:
    if not headers and errors:
        first = errors[0]
        raise StudyError(
            study_uid,
            f"none of its {len(errors)} files can be used, the first: {first}",
            "see cspine inspect",
        )
    return settle_geometry(study_uid, headers, tuple({error.code for error in errors}))


def read_geometry(folder: Path, study_uid: str | None = None) -> Geometry:
    """A study without its pixels, from headers alone.

    Args:
        folder: the study's files.
        study_uid: name in errors and results; the folder's name where it is None.

    Raises:
        StudyError: no file can be read, or none is axial.
    """
    headers, errors = read_headers(folder)
    return _settle(study_uid or folder.name, headers, errors)


def _looks_like_ct(hu: HuArray) -> float:
    """Share of pixels that are air or soft tissue."""
    air = (hu > -1100) & (hu < -900)
    soft = (hu > -150) & (hu < 150)
    return float((air | soft).mean())


def _mirror(folder: Path, headers: list[Header]) -> int | None:
    """How MONOCHROME1 files inverted their stored values (`mirrors`); None where they did not.

    By the standard MONOCHROME1 changes only the display, but some writers invert the values too;
    what looks like CT decides.
    """
    header = headers[len(headers) // 2]
    stored = decode(folder / header.file, header)
    scores: dict[int | None, float] = {None: _looks_like_ct(to_hu(stored, header))}
    for total in mirrors(header):
        scores[total] = _looks_like_ct(to_hu(invert(stored, total), header))
    return max(scores, key=lambda total: scores[total])


def orient(frame: HuArray, flips: tuple[bool, bool, bool]) -> HuArray:
    """A frame as stored (rows, cols), turned to row -> back, column -> left."""
    transpose, flip_rows, flip_cols = flips
    turned = frame.T if transpose else frame
    return turned[:: -1 if flip_rows else 1, :: -1 if flip_cols else 1]


def _fit_frame(frame: HuArray, geometry: Geometry, index: int) -> HuArray:
    """A frame of another size or spacing, resampled to the study's grid where it lies in space."""
    header = geometry.headers[index]
    pitch = header.spacing_mm or (geometry.spacing_mm[1], geometry.spacing_mm[2])
    if geometry.flips[0] and header.spacing_mm is not None:
        pitch = (pitch[1], pitch[0])
    own = np.array(pitch)
    grid = np.array(geometry.spacing_mm[1:])
    reference = np.median(
        [
            o
            for o, h in zip(geometry.origins_mm, geometry.headers, strict=True)
            if _fits(h, geometry)
        ]
        or geometry.origins_mm,
        axis=0,
    )
    start = geometry.axes @ (reference - geometry.origins_mm[index]) / own
    zoom = grid / own
    rows, cols = geometry.shape
    if np.allclose(zoom * geometry.shape, frame.shape, atol=1.0) and np.abs(start * own).max() < 2:
        method = cv2.INTER_AREA if zoom[0] > 1 else cv2.INTER_LINEAR
        resized = cv2.resize(np.ascontiguousarray(frame), (cols, rows), interpolation=method)
        return resized.astype(np.int16, copy=False)
    matrix = np.array([[zoom[1], 0, start[1]], [0, zoom[0], start[0]]])
    moved = cv2.warpAffine(
        np.ascontiguousarray(frame),
        matrix,
        (cols, rows),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(AIR_HU,),
    )
    return moved.astype(np.int16, copy=False)


def _fits(header: Header, geometry: Geometry) -> bool:
    """True where a file's frame already lies on the study's grid."""
    shape = (header.cols, header.rows) if geometry.flips[0] else (header.rows, header.cols)
    if shape != geometry.shape or header.spacing_mm is None:
        return shape == geometry.shape
    pitch = header.spacing_mm[::-1] if geometry.flips[0] else header.spacing_mm
    return bool(np.allclose(pitch, geometry.spacing_mm[1:], atol=1e-4))


def _read_pixels(
    folder: Path, geometry: Geometry, threads: int
) -> tuple[HuArray, list[FileError], set[str]]:
    """Volume of a geometry; files that cannot be decoded, and problem codes of grey values."""
    codes: set[str] = set()
    errors: list[FileError] = []
    hu = np.empty((len(geometry.headers), *geometry.shape), dtype=np.int16)
    odd = [h for h in geometry.headers if h.photometric == "MONOCHROME1"]
    mirror: int | None = None
    if odd:
        try:
            mirror = _mirror(folder, odd)
        except FileError as error:
            return hu, [error], codes
        codes.add("monochrome1" if mirror is None else "monochrome1_inverted")

    def fill(index: int) -> FileError | str | None:
        header = geometry.headers[index]
        try:
            stored = decode(folder / header.file, header, out=hu[index])
        except FileError as error:
            return error
        stored, code = settle_bits(stored, header)
        if mirror is not None and header.photometric == "MONOCHROME1":
            stored = invert(stored, mirror)
        plain = not any(geometry.flips) and _fits(header, geometry)
        frame = orient(to_hu(stored, header, out=hu[index] if plain else None), geometry.flips)
        if not plain:
            hu[index] = frame if _fits(header, geometry) else _fit_frame(frame, geometry, index)
        return code

    # Decoders release the interpreter's lock; where one does not, threads cost nothing.
    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        outcome = list(pool.map(fill, range(len(geometry.headers))))
    errors.extend(found for found in outcome if isinstance(found, FileError))
    codes.update(found for found in outcome if isinstance(found, str))
    return hu, errors, codes


def read_study(folder: Path, study_uid: str | None = None, *, threads: int = 0) -> Study:
    """Read, order and decode one study.

    Args:
        folder: the study's files.
        study_uid: name in errors and results; the folder's name where it is None.
        threads: that decode at once; 0 = usable cores.

    Returns:
        The study; files that could not be used are counted in its problems.

    Raises:
        StudyError: no slice at all can be read, or none is axial.
    """
    uid = study_uid or folder.name
    headers, errors = read_headers(folder)
    while True:
        geometry = _settle(uid, headers, errors)
        hu, failed, codes = _read_pixels(folder, geometry, threads)
        if not failed:
            break
        # Settle again without them: a duplicate or another series may stand in.
        errors.extend(failed)
        lost = {error.file for error in failed}
        headers = [header for header in headers if header.file not in lost]
    problems = tuple(code for code in PROBLEMS if code in codes.union(geometry.problems))
    kept = {field.name: getattr(geometry, field.name) for field in fields(geometry)}
    return Study(**{**kept, "problems": problems}, hu=hu)

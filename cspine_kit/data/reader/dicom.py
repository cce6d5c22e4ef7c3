"""A folder of DICOM files, or a NIfTI file, as one geometrically true study.

In: a folder. Out: a frozen `Study` in Hounsfield units. Example::

    study = read_study(folder)
    study.hu[0]          # the most cranial slice, row -> back, column -> left
    study.problems       # codes of cspine_kit.data.reader.problems.PROBLEMS

Slices are ordered by ImagePositionPatient along the slice normal; where files say no position, by
InstanceNumber or file number, and a problem code says so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.errors import StudyError
from cspine_kit.data.reader.headers.files import list_files, opened, read_headers
from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.nifti import NiftiSlices, name_of, nifti_of
from cspine_kit.data.reader.pixels.decode import decode
from cspine_kit.data.reader.pixels.frames import Frames, LostFiles
from cspine_kit.data.reader.pixels.values import HuArray
from cspine_kit.data.reader.problems import PROBLEMS, FileError
from cspine_kit.data.reader.scans.find import modal
from cspine_kit.data.reader.scans.geometry import Geometry
from cspine_kit.data.reader.scans.settle import settle_geometry

__all__ = [
    "READER_VERSION",
    "Study",
    "gather",
    "headers_of",
    "list_files",
    "opened_frames",
    "read_geometry",
    "read_study",
    "uid_of",
]
"""The door of the reader: what other rooms call."""

Taken = TypeVar("Taken")

READER_VERSION = 6
"""Raised whenever the same files give another study or volume, so that caches are made anew."""


@dataclass(frozen=True, kw_only=True)
class Study(Geometry):
    """A `Geometry` with its pixels: `hu` int16 (z, y, x), index 0 the most cranial slice."""

    hu: NDArray[np.int16]


@contextmanager
def _opened(place: Path) -> Iterator[tuple[Path, NiftiSlices | None]]:
    """Where a study's files lie, and what its NIfTI file holds where it is one."""
    nifti = nifti_of(place)
    if nifti is not None:
        yield nifti.parent, NiftiSlices(nifti)
        return
    with opened(place) as folder:
        yield folder, None


def _headers(folder: Path, nifti: NiftiSlices | None) -> tuple[list[Header], list[FileError]]:
    return read_headers(folder) if nifti is None else (nifti.headers, [])


@contextmanager
def opened_frames(folder: Path, geometry: Geometry) -> Iterator[Frames]:
    """The frames of a study whose geometry is known.

    Raises:
        LostFiles: none of those that are looked at first can be decoded.
    """
    with _opened(folder) as (place, nifti):
        yield Frames(place, geometry, nifti.decode if nifti else decode)


def uid_of(folder: Path) -> str:
    """What a study is called where nobody names it: its folder, or its NIfTI file."""
    nifti = nifti_of(folder)
    return folder.name if nifti is None or folder.is_dir() else name_of(nifti)


def _settle(study_uid: str, headers: list[Header], errors: list[FileError]) -> Geometry:
    if not headers and errors:
        usual = modal([error.code for error in errors])
        first = next(error for error in errors if error.code == usual)
        raise StudyError(
            study_uid,
            f"none of its {len(errors)} files can be used, the first: {first}",
            PROBLEMS[first.code].to_do or "give the folder of a CT series",
        )
    return settle_geometry(study_uid, headers, tuple({error.code for error in errors}))


def headers_of(place: Path) -> tuple[list[Header], list[FileError]]:
    """Headers of everything that a study's files hold, and the files that cannot be used.

    Args:
        place: the study's files, a .zip of them, or a NIfTI file.

    Raises:
        StudyError: an archive or the NIfTI file is damaged.
    """
    with _opened(place) as (folder, nifti):
        return _headers(folder, nifti)


def read_geometry(folder: Path, study_uid: str | None = None) -> Geometry:
    """A study without its pixels, from headers alone.

    Args:
        folder: the study's files, a .zip of them, or a NIfTI file.
        study_uid: name in errors and results; the folder's name where it is None.

    Raises:
        StudyError: no file can be read, or no stack of them is.
    """
    with _opened(folder) as (place, nifti):
        return _settle(study_uid or uid_of(folder), *_headers(place, nifti))


def gather(
    folder: Path, study_uid: str | None, take: Callable[[Frames], Taken]
) -> tuple[Geometry, Taken]:
    """Settle a study and hand its frames to `take`; again without files that cannot be decoded.

    Args:
        folder: the study's files, a .zip of them, or a NIfTI file.
        study_uid: name in errors and results; the folder's name where it is None.
        take: what is made of the frames; it decodes through `Frames.each`.

    Returns:
        The geometry, with the problems that pixels showed, and what `take` returned.

    Raises:
        StudyError: no slice at all can be read, or no stack of them is.
    """
    uid = study_uid or uid_of(folder)
    with _opened(folder) as (place, nifti):
        headers, errors = _headers(place, nifti)
        while True:
            geometry = _settle(uid, headers, errors)
            try:
                frames = Frames(place, geometry, nifti.decode if nifti else decode)
                taken = take(frames)
            except LostFiles as lost:
                # Settle again without them: a duplicate or another series may stand in.
                errors.extend(lost.errors)
                gone = {error.file for error in lost.errors}
                headers = [header for header in headers if header.name not in gone]
            else:
                found = frames.codes.union(geometry.problems)
                problems = tuple(code for code in PROBLEMS if code in found)
                return replace(geometry, problems=problems), taken


def read_study(folder: Path, study_uid: str | None = None, *, threads: int = 0) -> Study:
    """Read, order and decode one study.

    Args:
        folder: the study's files, a .zip of them, or a NIfTI file.
        study_uid: name in errors and results; the folder's name where it is None.
        threads: that decode at once; 0 = usable cores.

    Returns:
        The study; files that could not be used are counted in its problems.

    Raises:
        StudyError: no slice at all can be read, or no stack of them is.
    """

    def take(frames: Frames) -> HuArray:
        count = len(frames.geometry.headers)
        hu = np.empty((count, *frames.geometry.shape), dtype=np.int16)

        def fill(z: int) -> None:
            frames.hu(z, out=hu[z])

        frames.each(fill, range(count), threads)
        return hu

    geometry, hu = gather(folder, study_uid, take)
    return Study(**{field.name: getattr(geometry, field.name) for field in fields(geometry)}, hu=hu)

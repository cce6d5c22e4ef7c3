"""The files of a study: which there are, and their headers.

In: a folder, or what is taken for one (a .zip). Out: names, `Header`s. Example::

    with opened(folder) as place:           # a folder, or a .zip unpacked for this long
        headers, errors = read_headers(place)

Folders one level down belong to the study: exports put each series, or everything, into one.
"""

import contextlib
import gzip
import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cspine_kit.core.errors import StudyError
from cspine_kit.data.reader.headers.header import Alike, Header
from cspine_kit.data.reader.headers.parsed import parse
from cspine_kit.data.reader.headers.walk import Found, walk
from cspine_kit.data.reader.problems import FileError

FIRST_BYTES, MORE_BYTES = 4096, 1 << 18
"""What is read of a file at first, and once more where its header is longer."""

MOST_UNPACKED_BYTES = 8 << 30
MANY_STUDIES = 3
"""From so many studies on, each in a folder below, a folder is none itself."""
GZIP, ZIP = ".gz", ".zip"


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of files and of folders; hidden ones are left out. A link to nowhere is a file."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file() or entry.is_symlink():
                files.append(entry.name)
    return sorted(files), sorted(folders)


def list_files(folder: Path) -> list[str]:
    """Names of a study's files, sorted, those of folders one level down as `folder/name`.

    Raises:
        StudyError: there is no such folder, or it cannot be listed.
    """
    if not folder.is_dir():
        raise StudyError(folder.name, f"there is no folder {folder}", "check the path")
    try:
        files, folders = _entries(folder)
        for below in folders:
            files += [f"{below}/{name}" for name in _entries(folder / below)[0]]
    except OSError as error:
        raise StudyError(folder.name, f"cannot be listed: {error}", "make it readable") from error
    return files


def _walked(path: str) -> Found | None:
    """What a plain walk over the first bytes finds; None where pydicom must look."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return walk(os.pread(descriptor, FIRST_BYTES, 0)) or walk(
            os.pread(descriptor, MORE_BYTES, 0)
        )
    finally:
        os.close(descriptor)


def read_frames(folder: Path | str, name: str, alike: Alike | None = None) -> list[Header]:
    """Read one file of a folder up to its pixels: a header for each of its frames.

    Args:
        folder: where it lies.
        name: of the file in it.
        alike: knows the file before, which is often much the same.

    Raises:
        FileError: not DICOM, damaged, or without grey frames.
    """
    path = f"{folder}/{name}"
    try:
        found = _walked(path)
        if found is None or "NumberOfFrames" in found.values:
            return parse(path, name)
        values, syntax, at, length = found
        return [(alike or Alike()).header_of(values, name, syntax=syntax, at=at, length=length)]
    except FileError:
        raise
    except FileNotFoundError as error:
        raise FileError(name, "dead_link", "it is a link to nowhere") from error
    except Exception as error:
        raise FileError(name, "unreadable_file", f"{type(error).__name__}: {error}") from error


def read_header(folder: Path | str, name: str) -> Header:
    """The header of a file's first frame.

    Raises:
        FileError: not DICOM, damaged, or without grey frames.
    """
    return read_frames(folder, name)[0]


def _refuse_many_studies(folder: Path, names: list[str]) -> None:
    """Refuse a folder of studies before half a million files are read as one.

    Raises:
        StudyError: the first files of its folders tell of many studies.
    """
    first = {name.rpartition("/")[0]: name for name in reversed(names)}
    if len(first) < MANY_STUDIES or "" in first:
        return
    told = set()
    for name in list(first.values())[: 2 * MANY_STUDIES]:
        with contextlib.suppress(FileError):
            told.add(read_header(folder, name).study_uid)
    if len(told - {""}) >= MANY_STUDIES:
        raise StudyError(
            folder.name,
            f"its {len(first)} folders hold studies of their own",
            f"give one of them, for example {folder / sorted(first)[0]}",
        )


def read_headers(folder: Path) -> tuple[list[Header], list[FileError]]:
    """Headers of every frame of every readable file, by name, and why other files have none.

    Raises:
        StudyError: there is no such folder, or it is one of many studies.
    """
    headers, errors = [], []
    place, names, alike = str(folder), list_files(folder), Alike()
    _refuse_many_studies(folder, names)
    for name in names:
        try:
            headers += read_frames(place, name, alike)
        except FileError as error:
            errors.append(error)
    return headers, errors


def _unpack_zip(archive: Path, into: Path) -> None:
    """Put the files of a .zip into one folder and those below it; paths inside count for nothing.

    Raises:
        StudyError: damaged, or larger than any study.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [m for m in packed.infolist() if not m.is_dir()]
            if sum(m.file_size for m in members) > MOST_UNPACKED_BYTES:
                raise StudyError(archive.name, "unpacked it is larger than any study", "unpack it")
            for member in members:
                parent, _, name = member.filename.replace("\\", "/").rpartition("/")
                if name.startswith("."):
                    continue
                # A name of its own for every folder inside, whatever it is called there.
                place = into / hashlib.sha256(f"{archive.name}/{parent}".encode()).hexdigest()[:16]
                place.mkdir(exist_ok=True)
                with packed.open(member) as source, (place / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise StudyError(
            archive.name, f"the archive cannot be unpacked: {error}", "zip it again"
        ) from error


def _unpack_folder(folder: Path, into: Path) -> None:
    """Put the files of a folder into another, .zip and .gz unpacked; others are linked."""
    for name in list_files(folder):
        target = into / name.removesuffix(GZIP)
        if name.lower().endswith(ZIP):
            _unpack_zip(folder / name, into)
            continue
        target.parent.mkdir(exist_ok=True)
        if not name.endswith(GZIP):
            target.symlink_to((folder / name).absolute())
            continue
        try:
            with gzip.open(folder / name) as source:
                target.write_bytes(source.read(MOST_UNPACKED_BYTES))
        except (OSError, EOFError, zlib.error):  # the reader says what it is
            target.write_bytes((folder / name).read_bytes())


@contextmanager
def opened(place: Path) -> Iterator[Path]:
    """A study's folder as it is, or a temporary one with what a .zip or .gz files hold.

    Raises:
        StudyError: an archive is damaged.
    """
    zipped = place.is_file() and place.suffix.lower() == ZIP
    packed = place.is_dir() and any(n.lower().endswith((GZIP, ZIP)) for n in list_files(place))
    if not zipped and not packed:
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="cspine_") as scratch:
        into = Path(scratch)
        if zipped:
            _unpack_zip(place, into)
        else:
            _unpack_folder(place, into)
        yield into

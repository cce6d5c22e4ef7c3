"""What a visitor gives: DICOM files, a .zip of them or a NIfTI file, taken within limits.

In: a stream of bytes and its name. Out: files `00001.dcm`, ... in the visit's own folder. Example::

    uploads = Uploads(Path("upload"))
    with path.open("rb") as stream:
        uploads.take(path.name, stream, path.stat().st_size)
    uploads.count, uploads.names["00001.dcm"]

Names from outside never become paths: each file gets a number, and its own name is kept in memory
only, to tell the visitor which file could not be read.
"""

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cspine_kit.core.errors import DataError
from cspine_kit.core.paths import MASK_ENDINGS

MOST_BYTES = 3 << 30
MOST_FILES = 6000
"""Of one visit, unpacked: the largest scans of the competition have 1,100 slices, 600 MB."""

MOST_RATIO = 200
"""Bytes out of a byte of an archive: CT never shrinks so far, zip bombs do."""

BLOCK = 1 << 20
SHOWN = 60
"""Characters of a file's own name that are shown."""


class Stream(Protocol):
    """Bytes that arrive."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end."""


class Sink(Protocol):
    """Where bytes go."""

    def write(self, block: bytes, /) -> object:
        """Take some."""


@dataclass
class Uploads:
    """The files of one visit below `folder`.

    `names`: a file's own name by the one it lies under.
    """

    folder: Path
    most_bytes: int = MOST_BYTES
    most_files: int = MOST_FILES
    names: dict[str, str] = field(default_factory=dict)
    size: int = 0

    @property
    def count(self) -> int:
        """Files taken."""
        return len(self.names)

    def take(self, name: str, stream: Stream, length: int) -> None:
        """Take one file, or those of a .zip.

        Args:
            name: as the visitor calls it.
            stream: its bytes.
            length: how many there are.

        Raises:
            DataError: too large, too many, or no sound archive.
        """
        if length > self.most_bytes - self.size:
            raise DataError(f"{_shown(name)} is too large: {self._limits}")
        if not name.lower().endswith(".zip"):
            self._keep(name, stream, length)
            return
        archive = self.folder / "archive"
        try:
            archive.parent.mkdir(parents=True, exist_ok=True)
            with archive.open("wb") as target:
                _copy(stream, target, length)
            self._unpack(name, archive, length)
        finally:
            archive.unlink(missing_ok=True)

    @property
    def _limits(self) -> str:
        return f"a visit takes {self.most_files} files and {self.most_bytes / 1e9:.1f} GB unpacked"

    def _keep(self, name: str, stream: Stream, length: int) -> None:
        if self.count >= self.most_files:
            raise DataError(f"too many files: {self._limits}")
        self.folder.mkdir(parents=True, exist_ok=True)
        own = f"{self.count + 1:05d}{_ending(name)}"
        with (self.folder / own).open("wb") as target:
            _copy(stream, target, length)
        self.names[own] = _shown(name)
        self.size += length

    def _unpack(self, name: str, archive: Path, length: int) -> None:
        try:
            with zipfile.ZipFile(archive) as packed:
                members = [m for m in packed.infolist() if not m.is_dir()]
                whole = sum(m.file_size for m in members)
                if whole > MOST_RATIO * max(length, BLOCK):
                    raise DataError(f"{_shown(name)} unpacks to far more than any scan; refused")
                if whole > self.most_bytes - self.size or len(members) > self.most_files:
                    raise DataError(f"{_shown(name)} is too large: {self._limits}")
                for member in members:
                    base = member.filename.replace("\\", "/").rpartition("/")[2]
                    if base.startswith(".") or base.lower().endswith(".zip"):
                        continue
                    with packed.open(member) as stream:
                        # zipfile stops at the size that the directory tells.
                        self._keep(base, stream, member.file_size)
        except DataError:
            raise
        except (
            zipfile.BadZipFile,
            zlib.error,
            OSError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            raise DataError(f"{_shown(name)} is no sound .zip: {error}") from error


def _ending(name: str) -> str:
    """By which the reader tells a NIfTI file from DICOM: the only part of a name that is kept."""
    endings = (ending for ending in MASK_ENDINGS if name.lower().endswith(ending))
    return next(endings, ".dcm")


def _shown(name: str) -> str:
    """A file's name as it may be shown."""
    base = name.replace("\\", "/").rpartition("/")[2]
    return "".join(c if c.isprintable() else "?" for c in base)[-SHOWN:] or "a file"


def _copy(stream: Stream, target: Sink, length: int) -> None:
    """Copy so many bytes and no more.

    Raises:
        DataError: there are fewer.
    """
    left = length
    while left > 0:
        block = stream.read(min(BLOCK, left))
        if not block:
            raise DataError("the upload broke off; try again")
        target.write(block)
        left -= len(block)

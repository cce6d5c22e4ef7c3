"""The frames of a settled series, decoded one by one to Hounsfield units.

In: a folder and its `Geometry`. Out: int16 frames on the study's grid. Example::

    frames = Frames(folder, study)
    brightest = {}
    frames.each(lambda z: brightest.update({z: int(frames.hu(z).max())}), range(20))

Whoever needs the whole volume and whoever needs only a windowed square of it share this code:
neither holds frames besides its own result.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import local

import cv2
import numpy as np

from cspine_kit.core.execution import usable_cores
from cspine_kit.data.reader.geometry import Geometry
from cspine_kit.data.reader.header import Header
from cspine_kit.data.reader.pixels import (
    AIR_HU,
    HuArray,
    decode,
    invert,
    mirrors,
    settle_bits,
    to_hu,
)
from cspine_kit.data.reader.problems import FileError


class LostFiles(Exception):
    """Files of a series whose pixels cannot be decoded: it is settled again without them."""

    def __init__(self, errors: list[FileError]) -> None:
        self.errors = errors
        super().__init__(f"{len(errors)} files cannot be decoded")


@contextmanager
def _plain_opencv() -> Iterator[None]:
    """OpenCV without threads of its own, which would compete with those that share out slices."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def orient(frame: HuArray, flips: tuple[bool, bool, bool]) -> HuArray:
    """A frame as stored (rows, cols), turned to row -> back, column -> left."""
    transpose, flip_rows, flip_cols = flips
    turned = frame.T if transpose else frame
    return turned[:: -1 if flip_rows else 1, :: -1 if flip_cols else 1]


def _looks_like_ct(hu: HuArray) -> float:
    """Share of pixels that are air or soft tissue."""
    air = (hu > -1100) & (hu < -900)
    soft = (hu > -150) & (hu < 150)
    return float((air | soft).mean())


def _mirror(folder: Path, header: Header) -> int | None:
    """How MONOCHROME1 files inverted their stored values (`mirrors`); None where they did not.

    By the standard MONOCHROME1 changes only the display, but some writers invert the values too;
    what looks like CT decides.
    """
    stored = decode(folder / header.file, header)
    scores: dict[int | None, float] = {None: _looks_like_ct(to_hu(stored, header))}
    for total in mirrors(header):
        scores[total] = _looks_like_ct(to_hu(invert(stored, total), header))
    return max(scores, key=lambda total: scores[total])


class Frames:
    """A settled series whose frames are decoded on demand.

    Attributes:
        geometry: of the series.
        codes: problem codes of grey values met so far.
    """

    def __init__(self, folder: Path, geometry: Geometry) -> None:
        """Raises LostFiles where the file that tells how MONOCHROME1 is meant is damaged."""
        self.folder = folder
        self.geometry = geometry
        self.codes: set[str] = set()
        self._mirror: int | None = None
        self._kept = local()
        odd = [h for h in geometry.headers if h.photometric == "MONOCHROME1"]
        if odd:
            try:
                self._mirror = _mirror(folder, odd[len(odd) // 2])
            except FileError as error:
                raise LostFiles([error]) from error
            self.codes.add("monochrome1" if self._mirror is None else "monochrome1_inverted")

    def hu(self, index: int, out: HuArray | None = None) -> HuArray:
        """HU of one slice on the study's grid.

        Args:
            index: 0 is the most cranial slice.
            out: int16 memory of the study's shape that gets the result; without it the result lies
                in memory that this thread's next call overwrites.

        Raises:
            FileError: its pixels cannot be decoded.
        """
        header, geometry = self.geometry.headers[index], self.geometry
        if out is None:
            if not hasattr(self._kept, "frame"):
                self._kept.frame = np.empty(geometry.shape, np.int16)
            out = self._kept.frame
        stored, code = settle_bits(decode(self.folder / header.file, header, out=out), header)
        if code is not None:
            self.codes.add(code)
        if self._mirror is not None and header.photometric == "MONOCHROME1":
            stored = invert(stored, self._mirror)
        fits = _fits(header, geometry)
        if fits and not any(geometry.flips):
            return to_hu(stored, header, out=out)
        frame = orient(to_hu(stored, header), geometry.flips)
        out[:] = frame if fits else _fit_frame(frame, geometry, index)
        return out

    def each(self, work: Callable[[int], None], indices: Iterable[int], threads: int = 0) -> None:
        """Call `work`, which decodes slices, on every index, in `threads` (0 = usable cores).

        Decoders release the interpreter's lock.

        Raises:
            LostFiles: names every file that could not be decoded, after all others were.
        """
        lost: list[FileError] = []

        def guarded(index: int) -> None:
            try:
                work(index)
            except FileError as error:
                lost.append(error)

        left = iter(list(indices))

        def some() -> None:  # one queue for all: a future per slice costs as much as its pixels
            for index in left:
                guarded(index)

        count = threads or usable_cores()
        with _plain_opencv(), ThreadPoolExecutor(count) as pool:
            for done in [pool.submit(some) for _ in range(count)]:
                done.result()
        if lost:
            raise LostFiles(lost)


def _fits(header: Header, geometry: Geometry) -> bool:
    """True where a file's frame already lies on the study's grid."""
    shape = (header.cols, header.rows) if geometry.flips[0] else (header.rows, header.cols)
    if shape != geometry.shape or header.spacing_mm is None:
        return shape == geometry.shape
    pitch = header.spacing_mm[::-1] if geometry.flips[0] else header.spacing_mm
    return all(abs(p - q) <= 1e-4 for p, q in zip(pitch, geometry.spacing_mm[1:], strict=True))


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

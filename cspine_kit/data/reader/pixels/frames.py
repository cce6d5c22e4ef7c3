"""The frames of a settled series, decoded one by one to Hounsfield units.

In: a folder and its `Geometry`. Out: int16 frames on the study's grid. Example::

    frames = Frames(folder, study)
    brightest = {}
    frames.each(lambda z: brightest.update({z: int(frames.hu(z).max())}), range(20))

Whoever needs the whole volume and whoever needs only a windowed square of it share this code:
neither holds frames besides its own result.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import local

import cv2
import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.execution import usable_cores
from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.pixels.decode import decode
from cspine_kit.data.reader.pixels.record import Stored
from cspine_kit.data.reader.pixels.values import AIR_HU, HuArray, Meaning, hounsfield, judge
from cspine_kit.data.reader.problems import FileError
from cspine_kit.data.reader.scans.find import modal
from cspine_kit.data.reader.scans.geometry import Geometry
from cspine_kit.data.reader.scans.placing import IN_PLACE_PX, to_turned
from cspine_kit.data.reader.scans.resliced import even

Decode = Callable[..., Stored]
"""Stored values of one frame: called as `pixels.decode.decode`."""

SAMPLES, MOST_KINDS = 5, 8
"""Frames of each kind that are looked at before any is used, and kinds told apart by rescale."""
NOT_OF_FEW = {"implausible_hu", "eight_bits"}
"""What a tenth of the slices at least must show to be true of the study."""


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


def orient(frame: HuArray, flips: NDArray[np.bool_]) -> HuArray:
    """A frame as stored (rows, cols), turned to row -> back, column -> left by its flips (3,)."""
    transpose, flip_rows, flip_cols = flips
    turned = frame.T if transpose else frame
    return turned[:: -1 if flip_rows else 1, :: -1 if flip_cols else 1]


def _kind(header: Header) -> tuple[object, ...]:
    """Files of one kind write their values alike."""
    rescale = (math.isnan(header.slope), math.isnan(header.intercept))
    bits = header.bits_allocated, header.bits_stored, header.high_bit, header.signed
    return (*bits, *rescale, header.photometric == "MONOCHROME1")


class Frames:
    """A settled series whose frames are decoded on demand.

    Attributes:
        geometry: of the series.
        codes: problem codes of grey values met so far.
    """

    def __init__(self, folder: Path, geometry: Geometry, decode: Decode = decode) -> None:
        """Decode some frames to see what their values mean.

        Args:
            folder: of the files.
            geometry: of the series.
            decode: gives stored values; of DICOM files by default.

        Raises:
            LostFiles: none of them can be decoded.
        """
        self.folder = folder
        self.geometry = geometry
        self.codes: set[str] = set()
        self._decode = decode
        self._kept = local()
        self._samples: dict[int, Stored] = {}
        self._block: HuArray | None = None
        if geometry.source is None:
            self._meanings = self._judge()
        else:
            self._block = self._cut(geometry.source)

    def _cut(self, source: Geometry) -> HuArray:
        """The axial volume that is cut from a stack in another plane, which is decoded whole."""
        frames = Frames(self.folder, source, self._decode)
        hu = np.empty((len(source.headers), *source.shape), np.int16)

        def fill(z: int) -> None:
            frames.hu(z, out=hu[z])

        frames.each(fill, range(len(hu)))
        self.codes |= frames.codes
        places = even(source.z_mm, source.spacing_mm[0])
        return self.geometry.turn.block(hu[places]) if self.geometry.turn is not None else hu

    def _judge(self) -> dict[int, Meaning]:
        """The meaning of every frame's values, from frames that then need no second decoding."""
        headers = self.geometry.headers
        kinds: dict[tuple[object, ...], list[int]] = {}
        for z, header in enumerate(headers):
            kinds.setdefault((*_kind(header), header.slope, header.intercept), []).append(z)
        if len(kinds) > MOST_KINDS:
            kinds = {}
            for z, header in enumerate(headers):
                kinds.setdefault(_kind(header), []).append(z)
        looked = {kind: _spread(indices) for kind, indices in kinds.items()}
        failed: list[FileError] = []

        def look(z: int) -> None:
            try:
                self._samples[z] = self._decode(f"{self.folder}/{headers[z].file}", headers[z])
            except FileError as error:
                failed.append(error)

        self.each(look, [z for indices in looked.values() for z in indices])
        if not self._samples:
            raise LostFiles(failed)
        told = [h.intercept for h in headers if not math.isnan(h.intercept)]
        usual = modal(told) if told else -1024.0
        meanings = {}
        for kind, indices in looked.items():
            seen = [self._samples[z] for z in indices if z in self._samples]
            header = headers[indices[0]]
            meaning, codes = judge(seen, header, usual) if seen else (Meaning(header.signed), set())
            self.codes |= codes if len(kinds[kind]) >= len(headers) / 10 else codes - NOT_OF_FEW
            meanings.update(dict.fromkeys(kinds[kind], meaning))
        return meanings

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
        if self._block is not None:
            out[:] = self._block[index]
            return out
        stored = self._samples.pop(index, None)
        if stored is None:
            stored = self._decode(f"{self.folder}/{header.file}", header, out=out)
        in_place = bool(geometry.in_place[index])
        direct = in_place and not geometry.flips[index].any()
        meaning = self._meanings[index]
        frame, codes = hounsfield(stored, header, meaning, out if direct else None)
        self.codes |= codes
        if not direct:
            turned = orient(frame, geometry.flips[index])
            out[:] = turned if in_place else place_frame(turned, geometry, index)
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


def _spread(indices: list[int]) -> list[int]:
    """Some of the indices, evenly spread."""
    count = min(SAMPLES, len(indices))
    return [indices[int((k + 0.5) * len(indices) / count)] for k in range(count)]


def place_frame(frame: HuArray, geometry: Geometry, index: int) -> HuArray:
    """A frame after its flips that lies elsewhere than the grid: moved, or resampled."""
    header, shape = geometry.headers[index], geometry.shape
    size = np.array([[header.rows, header.cols]], dtype=np.float64)
    one = slice(index, index + 1)
    matrix = to_turned(geometry.to_stored[one], geometry.flips[one], size)[0]
    zoom, start = np.diag(matrix), matrix[:, 2]
    straight = np.abs(matrix[:, :2] - np.diag(zoom)).max() * max(shape) <= IN_PLACE_PX
    if straight and np.abs((zoom - 1.0) * shape).max() <= IN_PLACE_PX:
        # Whole pixels: moving by a fraction would blur what is sharp.
        start, matrix = np.rint(start), np.column_stack([np.eye(2), np.rint(start)])
    same_field = np.allclose(zoom * shape, frame.shape, atol=1.0)
    if straight and same_field and np.abs(start / zoom * geometry.spacing_mm[1:]).max() < 2.0:
        method = cv2.INTER_AREA if zoom[0] > 1 else cv2.INTER_LINEAR
        resized = cv2.resize(np.ascontiguousarray(frame), shape[::-1], interpolation=method)
        return resized.astype(np.int16, copy=False)
    moved = cv2.warpAffine(
        np.ascontiguousarray(frame),
        matrix[::-1][:, [1, 0, 2]],
        shape[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(AIR_HU,),
    )
    return moved.astype(np.int16, copy=False)

"""Pixels of one frame: decoded to stored values.

In: a path and its `Header`. Out: int16 or uint16 (rows, cols). Example::

    stored = decode(path, header)

pydicom with gdcm is the decoder of record (`record`), run in a process of its own (`isolated`).
Plain little-endian pixels are read where they lie; `lossless` (where numba is installed) and
imagecodecs decode the rest: faster, and without holding the interpreter's lock, so that threads
help. Tests compare them pixel by pixel.
"""

import contextlib
import importlib
import importlib.util
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.headers.walk import EXPLICIT, IMPLICIT
from cspine_kit.data.reader.pixels.isolated import decode_isolated
from cspine_kit.data.reader.pixels.record import Stored
from cspine_kit.data.reader.pixels.streams import RLE, check_stream, frame_bytes
from cspine_kit.data.reader.problems import FileError

MAX_FRAME_BYTES = 64 << 20
JPEG = "1.2.840.10008.1.2.4"

Decoder = Callable[[bytes], Any]


def _codecs() -> dict[str, list[Decoder]]:
    """Fast decoders by transfer syntax, the fastest first, as far as they are installed."""
    found: dict[str, list[Decoder]] = {}
    if importlib.util.find_spec("numba") is not None:
        found = {f"{JPEG}.57": [_lossless], f"{JPEG}.70": [_lossless]}
    try:
        codecs: Any = importlib.import_module("imagecodecs")
    except ImportError:
        return found
    names = {
        "jpeg8_decode": (".50", ".51", ".57", ".70"),
        "jpegls_decode": (".80",),
        "jpeg2k_decode": (".90",),
        "htj2k_decode": (".201", ".202", ".203"),
    }
    for name, ends in names.items():
        for end in ends if hasattr(codecs, name) else ():
            found.setdefault(JPEG + end, []).append(getattr(codecs, name))
    if hasattr(codecs, "packbits_decode"):
        found[RLE] = [codecs.packbits_decode]
    return found


def _lossless(data: bytes) -> NDArray[Any]:
    """The kit's own JPEG Lossless decoder; numba is loaded with the first file that needs it."""
    from cspine_kit.data.reader.pixels.lossless import decode_lossless

    return decode_lossless(data)


CODECS = _codecs()


def _rle(data: bytes, header: Header, unpack: Decoder) -> NDArray[Any]:
    """RLE (PS3.5 Annex G): one PackBits segment per byte of a value, the high byte first.

    Raises:
        ValueError: another number of segments, or one of the wrong length.
    """
    planes, size = header.bits_allocated // 8, header.rows * header.cols
    count, *offsets = struct.unpack_from("<16I", data)
    ends = [*offsets[1:planes], len(data)]
    if (
        count != planes
        or offsets[0] != 64
        or any(a >= b for a, b in zip(offsets[:planes], ends, strict=True))
    ):
        raise ValueError("the RLE header is damaged")
    out = np.empty((size, planes), np.uint8)
    for plane, (start, end) in enumerate(zip(offsets[:planes], ends, strict=True)):
        decoded = np.frombuffer(unpack(data[start:end]), np.uint8)
        if not size <= len(decoded) <= size + 2:
            raise ValueError(f"an RLE segment holds {len(decoded)} bytes, {size} expected")
        out[:, planes - 1 - plane] = decoded[:size]
    return out.view("<u2" if planes == 2 else np.uint8)


def _native(path: Path | str, header: Header, out: NDArray[np.int16] | None) -> Stored:
    """Little-endian pixels, read straight into `out` where it fits."""
    wide = header.bits_allocated == 16
    dtype = np.dtype(
        ("<i2" if header.signed else "<u2") if wide else ("i1" if header.signed else "u1")
    )
    shape = (header.rows, header.cols)
    into = out is not None and wide and out.shape == shape and out.flags.c_contiguous
    buffer: Any = out.view(dtype) if into and out is not None else np.empty(shape, dtype)
    descriptor = os.open(path, os.O_RDONLY)
    before = (header.frame or 0) * buffer.nbytes
    try:
        count = os.preadv(descriptor, [buffer], header.pixels_at + before)
    finally:
        os.close(descriptor)
    if count != buffer.nbytes or header.pixels_length < before + buffer.nbytes:
        raise ValueError(f"{count} bytes of pixels, {buffer.nbytes} expected")
    return buffer if wide else buffer.astype(np.int16 if header.signed else np.uint16)


def _fast(data: bytes, header: Header, decoder: Decoder) -> Stored:
    """Decode a checked stream. Any doubt is an error: the decoder of record then decides."""
    dtype = np.dtype(np.uint16 if header.bits_allocated == 16 else np.uint8)
    decoded = _rle(data, header, decoder) if header.syntax == RLE else decoder(data)
    frame = np.asarray(decoded).reshape(header.rows, header.cols)
    if frame.dtype.itemsize != dtype.itemsize:
        raise ValueError(f"decoded {frame.dtype}, {dtype} expected")
    if dtype.itemsize == 1:
        return frame.astype(np.uint16)
    return frame.view(np.int16 if header.signed else np.uint16)


def _trusts_fast(header: Header) -> bool:
    """True where a fast decoder needs no interpretation of sign or of missing bits."""
    plain = not header.signed or header.bits_stored == header.bits_allocated
    return header.pixels_at > 0 and plain and header.frame is None


def _encapsulated(path: Path, header: Header) -> Stored:
    decoders = CODECS.get(header.syntax, []) if _trusts_fast(header) else []
    with contextlib.suppress(Exception):  # whatever it is, the decoder of record decides
        data = frame_bytes(path.read_bytes(), header.pixels_at) if decoders else b""
        check_stream(data, header)
        for decoder in decoders:
            with contextlib.suppress(Exception):
                return _fast(data, header, decoder)
    return decode_isolated(str(path.parent), path.name, header.frame or 0)


def decode(path: Path | str, header: Header, out: NDArray[np.int16] | None = None) -> Stored:
    """Stored values (rows, cols) of one file.

    Args:
        path: the file.
        header: its header.
        out: int16 (rows, cols) memory that may be used for the result.

    Raises:
        FileError: the pixels cannot be decoded, or have another size than the header says.
    """
    try:
        if header.pixels_length > 0 and header.syntax in (IMPLICIT, EXPLICIT):
            return _native(path, header, out)
        path = Path(path)
        if header.frame is None and path.stat().st_size > MAX_FRAME_BYTES:
            raise ValueError("the file is too large for one frame")
        return _encapsulated(path, header)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        raise FileError(header.name, "undecodable_pixels", detail) from error

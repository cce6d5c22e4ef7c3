"""Encapsulated pixel data: the bytes of its one frame, and the size that their stream announces.

In: the bytes of a file. Out: the stream of one frame. Example::

    from cspine_kit.data.reader.headers.files import read_header

    header = read_header(compressed.parent, compressed.name)
    data = frame_bytes(compressed.read_bytes(), header.pixels_at)
    check_stream(data, header)
"""

import struct

from cspine_kit.data.reader.headers.header import Header

RLE = "1.2.840.10008.1.2.5"
ITEM, END = 0xE000FFFE, 0xE0DDFFFE


def frame_bytes(data: bytes, at: int) -> bytes:
    """The one frame of encapsulated pixel data (PS3.5 A.4): all fragments after the offset table.

    Raises:
        ValueError: no fragment, or a fragment longer than the file.
    """
    fragments: list[bytes] = []
    while at + 8 <= len(data):
        tag = struct.unpack_from("<HH", data, at)
        length = struct.unpack_from("<I", data, at + 4)[0]
        kind = tag[1] << 16 | tag[0]
        if kind == END:
            break
        if kind != ITEM or at + 8 + length > len(data):
            raise ValueError("encapsulated pixel data is cut or damaged")
        fragments.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    if len(fragments) < 2:
        raise ValueError("encapsulated pixel data holds no fragment")
    return b"".join(fragments[1:])


def stream_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream announces; None without any."""
    if data[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SIZ follows at once (ISO 15444-1 A.5.1)
        x1, y1, x0, y0 = struct.unpack_from(">4I", data, 8)
        tiles = struct.unpack_from(">4I", data, 24)
        components = struct.unpack_from(">H", data, 40)[0]
        whole = tiles == (x1, y1, 0, 0) and (x0, y0, components) == (0, 0, 1)
        return (y1, x1) if whole or (min(tiles[:2]) >= 64 and components == 1) else None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, cols, components = struct.unpack_from(">HHB", data, at + 5)
            return (rows, cols) if components == 1 else None
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def check_stream(data: bytes, header: Header) -> None:
    """Refuse a stream of another size than the header's before a C decoder sees it.

    Raises:
        ValueError: the sizes differ or there is none.
    """
    if header.syntax != RLE and stream_size(data) != (header.rows, header.cols):
        found = stream_size(data)
        raise ValueError(f"the stream is {found}, the header says {header.rows, header.cols}")

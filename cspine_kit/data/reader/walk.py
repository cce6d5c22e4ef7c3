"""A plain walk over the elements of a little-endian DICOM header, ten times faster than parsing it.

In: the first bytes of a file. Out: the values that matter and where the pixels start, or None where
something is unusual (deflated, big endian, sequences of undefined length, no preamble): pydicom
then reads the file. Example::

    found = walk(path.read_bytes()[:4096])
    found.values["RescaleIntercept"], found.at
"""

import struct
from typing import Any, NamedTuple

TAGS = {
    0x00080008: "ImageType",
    0x00080060: "Modality",
    0x00100020: "PatientID",
    0x00180050: "SliceThickness",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
    0x00200013: "InstanceNumber",
    0x00200032: "ImagePositionPatient",
    0x00200037: "ImageOrientationPatient",
    0x00280002: "SamplesPerPixel",
    0x00280004: "PhotometricInterpretation",
    0x00280008: "NumberOfFrames",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280030: "PixelSpacing",
    0x00280100: "BitsAllocated",
    0x00280101: "BitsStored",
    0x00280103: "PixelRepresentation",
    0x00280120: "PixelPaddingValue",
    0x00280121: "PixelPaddingRangeLimit",
    0x00281052: "RescaleIntercept",
    0x00281053: "RescaleSlope",
}
"""Keywords that a header needs, by tag."""

SHORTS = {
    *("SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
}
"""Keywords whose value is one 16-bit number."""


def _as_stored(tag: int) -> int:
    """A tag as its four bytes read as one little-endian number: element above group."""
    return (tag & 0xFFFF) << 16 | tag >> 16


NAMES = {_as_stored(tag): name for tag, name in TAGS.items()}
SYNTAX_TAG, PIXELS_TAG = _as_stored(0x00020010), _as_stored(0x7FE00010)
LONG_VRS = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN"}
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
UNDEFINED = 0xFFFFFFFF

_EXPLICIT = struct.Struct("<I2sH")
_IMPLICIT = struct.Struct("<II")
_SHORT = struct.Struct("<H")
_LONG = struct.Struct("<I")


class Found(NamedTuple):
    """Values by keyword (int, text or a list of texts) and where pixel data lies."""

    values: dict[str, Any]
    syntax: str
    at: int
    length: int


def _value(name: str, raw: bytes) -> Any:
    if name in SHORTS:
        return _SHORT.unpack_from(raw)[0]
    text = raw.decode("latin-1").rstrip("\0 ")
    return text.split("\\") if "\\" in text else text or None


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """Tag of the explicit element at `at`, where its value starts, and its length."""
    tag, vr, length = _EXPLICIT.unpack_from(data, at)
    if vr in LONG_VRS:
        return tag, at + 12, _LONG.unpack_from(data, at + 8)[0]
    return tag, at + 8, length


def _syntax(data: bytes) -> tuple[str, int]:
    """Transfer syntax of the file meta group (always explicit), and where the data set starts."""
    syntax, at = "", 132
    while data[at : at + 2] == b"\x02\x00":
        tag, start, length = _element(data, at)
        at = start + length
        if tag == SYNTAX_TAG:
            syntax = data[start:at].decode("ascii").rstrip("\0 ")
    return syntax, at


def walk(data: bytes) -> Found | None:
    """Walk the elements of a file's first bytes up to its pixel data.

    Returns:
        What was found, or None where the bytes end too early or hold something unusual.
    """
    if data[128:132] != b"DICM":
        return None
    values: dict[str, Any] = {}
    try:
        syntax, at = _syntax(data)
        if syntax in ("", BIG_ENDIAN, DEFLATED):
            return None
        explicit = syntax != IMPLICIT
        while True:
            start = at + 8
            if explicit:
                tag, vr, length = _EXPLICIT.unpack_from(data, at)
                if vr in LONG_VRS:
                    start, length = at + 12, _LONG.unpack_from(data, start)[0]
            else:
                tag, length = _IMPLICIT.unpack_from(data, at)
            # An undefined length leads past the end, where the next element cannot be read.
            at = start + length
            name = NAMES.get(tag)
            if name is not None:
                if length:
                    values[name] = _value(name, data[start:at])
            elif tag == PIXELS_TAG:
                return Found(values, syntax, start, -1 if length == UNDEFINED else length)
    except (struct.error, UnicodeDecodeError):
        return None

"""A plain walk over the elements of a little-endian DICOM header, ten times faster than parsing it.

In: the first bytes of a file. Out: the values that matter and where the pixels start, or None where
something is unusual (deflated, big endian, sequences of undefined length, no preamble, a value of
another representation than the standard gives it): pydicom then reads the file. Example::

    found = walk(path.read_bytes()[:4096])
    found.values["RescaleIntercept"], found.at
"""

import struct
from typing import Any, NamedTuple

US, DS, IS, UI, CS = b"US", b"DS", b"IS", b"UI", b"CS"

WANTED: dict[int, tuple[str, frozenset[bytes]]] = {
    tag: (name, frozenset(vrs))
    for tag, name, *vrs in (
        (0x00080008, "ImageType", CS),
        (0x00080016, "SOPClassUID", UI),
        (0x00080021, "SeriesDate", b"DA"),
        (0x00080022, "AcquisitionDate", b"DA"),
        (0x00080023, "ContentDate", b"DA"),
        (0x00080031, "SeriesTime", b"TM"),
        (0x00080032, "AcquisitionTime", b"TM"),
        (0x00080033, "ContentTime", b"TM"),
        (0x00080060, "Modality", CS),
        (0x0008103E, "SeriesDescription", b"LO"),
        (0x00100020, "PatientID", b"LO"),
        (0x00180050, "SliceThickness", DS),
        (0x00180060, "KVP", DS),
        (0x00180088, "SpacingBetweenSlices", DS),
        (0x00181100, "ReconstructionDiameter", DS),
        (0x00181210, "ConvolutionKernel", b"SH"),
        (0x0020000D, "StudyInstanceUID", UI),
        (0x0020000E, "SeriesInstanceUID", UI),
        (0x00200011, "SeriesNumber", IS),
        (0x00200012, "AcquisitionNumber", IS),
        (0x00200013, "InstanceNumber", IS),
        (0x00200032, "ImagePositionPatient", DS),
        (0x00200037, "ImageOrientationPatient", DS),
        (0x00200100, "TemporalPositionIdentifier", IS),
        (0x00201041, "SliceLocation", DS),
        (0x00280002, "SamplesPerPixel", US),
        (0x00280004, "PhotometricInterpretation", CS),
        (0x00280008, "NumberOfFrames", IS),
        (0x00280010, "Rows", US),
        (0x00280011, "Columns", US),
        (0x00280030, "PixelSpacing", DS),
        (0x00280100, "BitsAllocated", US),
        (0x00280101, "BitsStored", US),
        (0x00280102, "HighBit", US),
        (0x00280103, "PixelRepresentation", US),
        (0x00280120, "PixelPaddingValue", US, b"SS", b"OW"),
        (0x00280121, "PixelPaddingRangeLimit", US, b"SS", b"OW"),
        (0x00281052, "RescaleIntercept", DS),
        (0x00281053, "RescaleSlope", DS),
        (0x00281054, "RescaleType", b"LO"),
        # No value representation suits these: a file that has them is left to pydicom.
        (0x52009229, "SharedFunctionalGroupsSequence"),
        (0x52009230, "PerFrameFunctionalGroupsSequence"),
    )
}
"""Keyword and the only value representations whose bytes the walk understands, by tag."""

KEYWORDS = tuple(name for name, _ in WANTED.values())

SHORTS = {name for name, vrs in WANTED.values() if US in vrs}
"""Keywords whose value is one 16-bit number."""


def _as_stored(tag: int) -> int:
    """A tag as its four bytes read as one little-endian number: element above group."""
    return (tag & 0xFFFF) << 16 | tag >> 16


STORED = {_as_stored(tag): entry for tag, entry in WANTED.items()}
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
        explicit, vr = syntax != IMPLICIT, b""
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
            entry = STORED.get(tag)
            if entry is not None:
                name, vrs = entry
                if vr not in vrs if explicit else not vrs:
                    return None
                if name in SHORTS and length:
                    values[name] = _SHORT.unpack(data[start:at])[0]
                elif length:
                    text = data[start:at].decode("latin-1").rstrip("\0 ")
                    values[name] = text.split("\\") if "\\" in text else text or None
            elif tag == PIXELS_TAG:
                return Found(values, syntax, start, -1 if length == UNDEFINED else length)
    except (struct.error, UnicodeDecodeError):
        return None

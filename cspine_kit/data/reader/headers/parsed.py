"""Headers by pydicom, for whatever the fast walk leaves to it.

In: a path. Out: a `Header` for each frame. Example::

    headers = parse(str(path), path.name)
    headers[0].syntax, headers[0].rows, headers[0].cols

Files without preamble or meta group, big endian and deflated ones, values of another
representation than usual, and enhanced CT, whose frames keep their geometry in functional groups.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from cspine_kit.data.reader.headers.header import Get, Header, header_of
from cspine_kit.data.reader.headers.walk import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    KEYWORDS,
    LONG_VRS,
    UNDEFINED,
)
from cspine_kit.data.reader.problems import FileError

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
SAME_AS = {
    "ImageType": "FrameType",
    "AcquisitionNumber": "FrameAcquisitionNumber",
    "TemporalPositionIdentifier": "TemporalPositionIndex",
}
"""What functional groups call some attributes of plain files."""

TEXT_VRS = {None, "DS", "IS", "UT", "UC", "LO", "SH", "ST", "LT", "CS"}
NUMBERS = {"DS", "IS"}
MOST_FRAMES = 10_000
FLOAT_PIXELS = (b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00")
"""How FloatPixelData and DoubleFloatPixelData begin."""


def _value(dataset: Dataset, keyword: str) -> Any:
    """A value as the walk would give it: numbers that are texts stay texts."""
    if keyword not in dataset:
        return None
    element = dataset.get_item(keyword)
    wanted = pydicom.datadict.dictionary_VR(keyword)
    if isinstance(element, RawDataElement) and wanted in NUMBERS and element.VR in TEXT_VRS:
        text = (element.value or b"").decode("latin-1").rstrip("\0 ")
        return text.split("\\") if "\\" in text else text or None
    value = dataset[keyword].value
    if isinstance(value, (MultiValue, list, tuple)):
        return list(value)
    return value.decode("latin-1") if isinstance(value, bytes) and len(value) > 2 else value


def _groups(item: Dataset) -> dict[str, Any]:
    """Attributes of the functional groups of one item, flat."""
    found: dict[str, Any] = {}
    for element in item:
        if isinstance(element.value, Sequence) and len(element.value) == 1:
            inner = element.value[0]
            found.update({name: _value(inner, name) for name in inner.dir()})
    return found


def _within(plain: Get, groups: Mapping[str, Any]) -> Get:
    """Look into functional groups first, then at the file's own attributes."""

    def get(keyword: str) -> Any:
        for name in (SAME_AS.get(keyword, keyword), keyword):
            if groups.get(name) is not None:
                return groups[name]
        return plain(keyword)

    return get


def _pixels(file: BinaryIO, syntax: str, name: str) -> tuple[int, int]:
    """Where pixel data starts and its length, from the place where pydicom stopped; 0, 0 where the
    bytes are not to be read as they lie.

    Raises:
        FileError: there is none.
    """
    if syntax in (BIG_ENDIAN, DEFLATED):
        return 0, 0
    at = file.tell()
    head = file.read(12)
    if head[:4] in FLOAT_PIXELS:
        raise FileError(name, "wide_pixels", "pixels are floating-point numbers")
    if head[:4] != b"\xe0\x7f\x10\x00" or len(head) < 12:
        raise FileError(name, "no_pixels", "there is no PixelData")
    # No implicit length reads as these letters: it would be odd.
    if head[4:8] in {vr + b"\0\0" for vr in LONG_VRS}:
        start, length = at + 12, struct.unpack_from("<I", head, 8)[0]
    else:
        start, length = at + 8, struct.unpack_from("<I", head, 4)[0]
    return start, -1 if length == UNDEFINED else length


def _has_meta(path: str) -> bool:
    """True where pydicom recognizes the file by itself.

    Others are read only where they start with an element of group 2 or 8: a text is no image.
    """
    with Path(path).open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or head[:2] not in (b"\x02\x00", b"\x08\x00")


def parse(path: str, name: str) -> list[Header]:
    """Headers of all frames of one file.

    Raises:
        FileError: no pixels, or not grey; pydicom raises what it likes besides.
    """
    force = not _has_meta(path)
    with Path(path).open("rb") as file:
        dataset = pydicom.dcmread(
            file, stop_before_pixels=True, specific_tags=list(KEYWORDS), force=force
        )
        implicit, little = dataset.original_encoding
        named = str(dataset.file_meta.get("TransferSyntaxUID") or "")
        plain = IMPLICIT if implicit else EXPLICIT if little else BIG_ENDIAN
        syntax = named or plain
        at, length = _pixels(file, syntax, name)

    def get(keyword: str) -> Any:
        return _value(dataset, keyword)

    if PER_FRAME not in dataset:
        return [header_of(get, name, syntax=syntax, at=at, length=length)]
    items = list(dataset[PER_FRAME].value)
    if not 1 <= len(items) <= MOST_FRAMES or not any(_groups(items[0])):
        raise FileError(name, "not_ct_image", f"functional groups of {len(items)} frames")
    shared = dict[str, Any]()
    for item in dataset.get(SHARED) or ():
        shared.update(_groups(item))
    single = len(items) == 1
    return [
        header_of(
            _within(get, {**shared, **_groups(item)}),
            name,
            syntax=syntax,
            at=at,
            length=length,
            frame=None if single else frame,
        )
        for frame, item in enumerate(items)
    ]

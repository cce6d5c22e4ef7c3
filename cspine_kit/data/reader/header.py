"""The header of one DICOM file, as far as geometry and grey values need it.

In: a folder and a file's name. Out: a frozen `Header`. Example::

    >>> header = read_header(folder, "17.dcm")
    >>> header.number, header.slope
    (17.0, 1.0)
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pydicom
from pydicom.multival import MultiValue

from cspine_kit.data.reader.problems import FileError
from cspine_kit.data.reader.walk import TAGS, Found, walk

MAX_SIDE_PX = 4096
"""Larger frames are refused: no CT has them, and a damaged header must not take all memory."""

MISSING = math.nan

FIRST_BYTES, MORE_BYTES = 4096, 1 << 18
"""What is read of a file at first, and once more where its header is longer."""


class Header(NamedTuple):
    """What one file says about itself; None or NaN where it says nothing.

    `orientation` holds the direction of a row (increasing column), then of a column; `spacing_mm`
    the distance between rows, then between columns, as PixelSpacing has them. `pixels_at` is the
    byte where pixel data starts and `pixels_length` its length, -1 where it is encapsulated; both 0
    where only pydicom knows.
    """

    file: str
    number: float
    instance: float
    patient_id: str
    study_uid: str
    series_uid: str
    image_type: str
    syntax: str
    position_mm: tuple[float, float, float] | None
    orientation: tuple[float, float, float, float, float, float] | None
    spacing_mm: tuple[float, float] | None
    thickness_mm: float
    rows: int
    cols: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    photometric: str
    pixels_at: int
    pixels_length: int


def file_number(name: str) -> float:
    """Trailing digits of a file's stem (`12.dcm`, `IMG_00012.dcm`), NaN where there are none."""
    stem = name.rpartition(".")[0] or name
    digits = stem[len(stem.rstrip("0123456789")) :]
    return float(digits) if digits else MISSING


def floats(value: Any, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers of a DICOM value, or None."""
    try:
        numbers = tuple(map(float, value))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def number(value: Any) -> float:
    """The first number of a value, single or multiple; NaN where there is none."""
    if value is None:
        return MISSING
    try:
        return float(value)
    except (TypeError, ValueError):
        several = isinstance(value, (MultiValue, list, tuple)) and len(value) > 0
        return number(value[0]) if several else MISSING


def _whole(value: Any, default: int) -> int:
    if isinstance(value, int):
        return int(value)
    plain = number(value)
    return default if math.isnan(plain) else int(plain)


def _padding(get: Callable[[str], Any], signed: bool, bits: int) -> tuple[int, int] | None:
    """Range of stored values that mean "outside the field" (PS3.3 C.7.5.1.1.2)."""
    if get("PixelPaddingValue") is None:
        return None
    ends = [number(get("PixelPaddingValue")), number(get("PixelPaddingRangeLimit"))]
    if math.isnan(ends[0]):
        return None
    # Writers disagree on the sign of these values' type; only the bit pattern counts.
    span, half = 1 << bits, 1 << (bits - 1)
    whole = [int(end) % span for end in ends if not math.isnan(end)]
    if signed:
        whole = [value - span if value >= half else value for value in whole]
    return min(whole), max(whole)


def header_of(get: Callable[[str], Any], file: str, syntax: str, at: int, length: int) -> Header:
    """The header of a parsed file.

    Args:
        get: value of a keyword, None where it is absent.
        file: its name.
        syntax: TransferSyntaxUID.
        at: where pixel data starts, 0 where that is unknown.
        length: of pixel data, -1 where it is encapsulated.

    Raises:
        FileError: it holds no single grey frame.
    """
    rows, cols = _whole(get("Rows"), 0), _whole(get("Columns"), 0)
    if not rows or not cols:
        raise FileError(file, "no_pixels", "Rows or Columns is missing or zero")
    bits = _whole(get("BitsAllocated"), 16)
    samples = _whole(get("SamplesPerPixel"), 1)
    frames = _whole(get("NumberOfFrames"), 1)
    if max(rows, cols) > MAX_SIDE_PX or bits not in (8, 16) or samples != 1 or frames > 1:
        found = f"{frames} frames of {rows} x {cols}, {samples} samples of {bits} bits"
        raise FileError(file, "not_ct_image", found)
    signed = _whole(get("PixelRepresentation"), 0) == 1
    stored = _whole(get("BitsStored"), bits)
    image_type = get("ImageType") or ""
    return Header(
        file=file,
        number=file_number(file),
        instance=number(get("InstanceNumber")),
        patient_id=str(get("PatientID") or ""),
        study_uid=str(get("StudyInstanceUID") or ""),
        series_uid=str(get("SeriesInstanceUID") or ""),
        image_type=image_type if isinstance(image_type, str) else "\\".join(map(str, image_type)),
        syntax=syntax,
        position_mm=floats(get("ImagePositionPatient"), 3),  # type: ignore[arg-type]
        orientation=floats(get("ImageOrientationPatient"), 6),  # type: ignore[arg-type]
        spacing_mm=_spacing(get("PixelSpacing")),
        thickness_mm=number(get("SliceThickness")),
        rows=rows,
        cols=cols,
        bits_allocated=bits,
        bits_stored=stored if 1 <= stored <= bits else bits,
        signed=signed,
        slope=number(get("RescaleSlope")),
        intercept=number(get("RescaleIntercept")),
        padding=_padding(get, signed, bits),
        photometric=str(get("PhotometricInterpretation") or "").strip(),
        pixels_at=at,
        pixels_length=length,
    )


def _spacing(value: Any) -> tuple[float, float] | None:
    pair = floats(value, 2)
    return (pair[0], pair[1]) if pair is not None and min(pair) > 0 else None


def _walked(path: str) -> Found | None:
    """What a plain walk over the first bytes finds; None where pydicom must look."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return walk(os.pread(descriptor, FIRST_BYTES, 0)) or walk(
            os.pread(descriptor, MORE_BYTES, 0)
        )
    finally:
        os.close(descriptor)


def _parsed(path: str, name: str) -> Header:
    """The header by pydicom: deflated, big endian, nested or unusual files."""
    tags = [*TAGS.values(), "PixelData"]
    dataset = pydicom.dcmread(path, specific_tags=tags, defer_size=FIRST_BYTES)
    if "PixelData" not in dataset:
        raise FileError(name, "no_pixels", "there is no PixelData")
    syntax = str(dataset.file_meta.get("TransferSyntaxUID") or "")
    return header_of(dataset.get, name, syntax, 0, 0)


def read_header(folder: Path | str, name: str) -> Header:
    """Read one file of a folder up to its pixels.

    Raises:
        FileError: not DICOM, damaged, or without a single grey frame.
    """
    path = f"{folder}/{name}"
    try:
        found = _walked(path)
        if found is None:
            return _parsed(path, name)
        return header_of(found.values.get, name, found.syntax, found.at, found.length)
    except FileError:
        raise
    except Exception as error:
        raise FileError(name, "unreadable_file", f"{type(error).__name__}: {error}") from error

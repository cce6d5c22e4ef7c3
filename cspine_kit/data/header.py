"""The header of one DICOM file, as far as geometry and grey values need it.

In: a path. Out: a frozen `Header`. Example::

    header = read_header(Path("train_images/1.2.3/17.dcm"))
    header.position_mm, header.slope, header.number     # number = 17, the file number
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import FileDataset
from pydicom.multival import MultiValue

from cspine_kit.data.problems import FileError

MAX_SIDE_PX = 4096
"""Larger frames are refused: no CT has them, and a damaged header must not take all memory."""

MISSING = math.nan

TAGS = [
    *("ImageType", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("InstanceNumber", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated"),
    *("BitsStored", "PixelRepresentation", "PhotometricInterpretation", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
]


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says about itself; None or NaN where it says nothing.

    `orientation` holds the direction of a row (increasing column), then of a column; `spacing_mm`
    the distance between rows, then between columns, as PixelSpacing has them.
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


def file_number(name: str) -> float:
    """Trailing digits of a file's stem (`12.dcm`, `IMG_00012.dcm`), NaN where there are none."""
    match = re.search(r"(\d+)$", Path(name).stem)
    return float(match.group(1)) if match else MISSING


def floats(value: Any, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers of a DICOM value, or None."""
    try:
        numbers = tuple(float(part) for part in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def number(value: Any) -> float:
    """The first number of a value, single or multiple; NaN where there is none."""
    if isinstance(value, (MultiValue, list, tuple)):
        value = value[0] if len(value) else None
    try:
        return float(value)
    except (TypeError, ValueError):
        return MISSING


def _whole(value: Any, default: int) -> int:
    plain = number(value)
    return default if math.isnan(plain) else int(plain)


def _padding(dataset: FileDataset, signed: bool, bits: int) -> tuple[int, int] | None:
    """Range of stored values that mean "outside the field" (PS3.3 C.7.5.1.1.2)."""
    ends = [number(dataset.get(tag)) for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if math.isnan(ends[0]):
        return None
    # Writers disagree on the sign of these values' type; only the bit pattern counts.
    span, half = 1 << bits, 1 << (bits - 1)
    whole = [int(end) % span for end in ends if not math.isnan(end)]
    if signed:
        whole = [value - span if value >= half else value for value in whole]
    return min(whole), max(whole)


def header_of(dataset: FileDataset, file: str) -> Header:
    """The header of a parsed file.

    Raises:
        FileError: it holds no single grey frame.
    """
    rows, cols = _whole(dataset.get("Rows"), 0), _whole(dataset.get("Columns"), 0)
    if not rows or not cols:
        raise FileError(file, "no_pixels", "Rows or Columns is missing or zero")
    bits = _whole(dataset.get("BitsAllocated"), 16)
    samples = _whole(dataset.get("SamplesPerPixel"), 1)
    frames = _whole(dataset.get("NumberOfFrames"), 1)
    if max(rows, cols) > MAX_SIDE_PX or bits not in (8, 16) or samples != 1 or frames > 1:
        found = f"{frames} frames of {rows} x {cols}, {samples} samples of {bits} bits"
        raise FileError(file, "not_ct_image", found)
    signed = _whole(dataset.get("PixelRepresentation"), 0) == 1
    stored = _whole(dataset.get("BitsStored"), bits)
    image_type = dataset.get("ImageType") or ""
    return Header(
        file=file,
        number=file_number(file),
        instance=number(dataset.get("InstanceNumber")),
        patient_id=str(dataset.get("PatientID") or ""),
        study_uid=str(dataset.get("StudyInstanceUID") or ""),
        series_uid=str(dataset.get("SeriesInstanceUID") or ""),
        image_type=image_type if isinstance(image_type, str) else "\\".join(map(str, image_type)),
        syntax=str(dataset.file_meta.get("TransferSyntaxUID") or ""),
        position_mm=floats(dataset.get("ImagePositionPatient"), 3),  # type: ignore[arg-type]
        orientation=floats(dataset.get("ImageOrientationPatient"), 6),  # type: ignore[arg-type]
        spacing_mm=_spacing(dataset.get("PixelSpacing")),
        thickness_mm=number(dataset.get("SliceThickness")),
        rows=rows,
        cols=cols,
        bits_allocated=bits,
        bits_stored=stored if 1 <= stored <= bits else bits,
        signed=signed,
        slope=number(dataset.get("RescaleSlope")),
        intercept=number(dataset.get("RescaleIntercept")),
        padding=_padding(dataset, signed, bits),
        photometric=str(dataset.get("PhotometricInterpretation") or "").strip(),
    )


def _spacing(value: Any) -> tuple[float, float] | None:
    pair = floats(value, 2)
    return (pair[0], pair[1]) if pair is not None and min(pair) > 0 else None


def read_header(path: Path) -> Header:
    """Read one file up to its pixels.

    Raises:
        FileError: not DICOM, damaged, or without a single grey frame.
    """
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
        return header_of(dataset, path.name)
    except FileError:
        raise
    except Exception as error:
        raise FileError(path.name, "unreadable_file", f"{type(error).__name__}: {error}") from error

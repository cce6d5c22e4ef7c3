"""The header of one frame, as far as geometry, grey values and the choice of a scan need it.

In: the values of a parsed file. Out: a frozen `Header` for each frame. Example::

    from cspine_kit.data.reader.headers.walk import walk

    values, syntax, at, length = walk(path.read_bytes())
    header = header_of(values.get, "17.dcm", syntax=syntax, at=at, length=length)
    header.position_mm, header.slope, header.number     # number = 17, the file number
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cspine_kit.data.reader.headers.decimals import MISSING, first, meant, several
from cspine_kit.data.reader.problems import FileError

Get = Callable[[str], Any]
"""Value of a keyword as text, list of texts or number; None where it is absent."""

MAX_SIDE_PX = 4096
"""Larger frames are refused: no CT has them, and a damaged header must not take all memory."""
LEAST_MM, MOST_MM = 0.02, 20.0
"""Sizes of a pixel or a slice outside of this are a mistake of the header."""


class Header(NamedTuple):
    """What one frame says about itself; None, NaN or "" where it says nothing. The first fields, to
    `pixels_length`, are those that differ inside a scan.

    `orientation` holds the direction of a row (increasing column), then of a column; `spacing_mm`
    the distance between rows, then between columns, as PixelSpacing has them. `pixels_at` is the
    byte where the file's pixel data starts and `pixels_length` its length, -1 where it is
    encapsulated; both 0 where only pydicom knows. `frame` counts the frames of one file from 0 and
    is None in a file of one. `scan` is what differs between acquisitions and reconstructions
    (`SCAN`), `times` acquisition and content time. `notes` are keys of `PROBLEMS`.
    """

    file: str
    number: float
    instance: float
    times: tuple[str, str]
    position_mm: tuple[float, float, float] | None
    location_mm: float
    pixels_at: int
    pixels_length: int
    patient_id: str
    study_uid: str
    series_uid: str
    image_type: str
    modality: str
    sop_class: str
    rescale_type: str
    scan: tuple[str, ...]
    syntax: str
    orientation: tuple[float, float, float, float, float, float] | None
    spacing_mm: tuple[float, float] | None
    thickness_mm: float
    step_mm: float
    rows: int
    cols: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    photometric: str
    frame: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file, and the frame where it holds several."""
        return self.file if self.frame is None else f"{self.file}[{self.frame}]"


RUN = ("AcquisitionNumber", "AcquisitionDate", "ContentDate", "TemporalPositionIdentifier", "KVP")
"""What tells one run of the scanner from another."""
SCAN = (*RUN, "SeriesNumber", "SeriesDate", "SeriesTime", "SeriesDescription", "ConvolutionKernel")
"""Keywords of `Header.scan`; the kernel is the last."""


OWN_FIELDS = Header._fields.index("pixels_length") + 1
"""So many fields differ inside a scan."""


def file_number(name: str) -> float:
    """Trailing digits of a file's stem (`12.dcm`, `IMG_00012.dcm`), NaN where there are none."""
    base = name.rpartition("/")[2]
    stem = base.rpartition(".")[0] or base
    digits = stem[len(stem.rstrip("0123456789")) :]
    return float(digits) if digits else MISSING


def _whole(value: Any, default: int) -> int:
    if isinstance(value, int):
        return int(value)
    plain = first(value)
    return int(plain) if math.isfinite(plain) else default


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return "\\".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _padding(get: Get, signed: bool, bits: int) -> tuple[int, int] | None:
    """Range of stored values that mean "outside the field" (PS3.3 C.7.5.1.1.2)."""
    if get("PixelPaddingValue") is None:
        return None
    ends = [first(get("PixelPaddingValue")), first(get("PixelPaddingRangeLimit"))]
    if math.isnan(ends[0]):
        return None
    # Writers disagree on the sign of these values' type; only the bit pattern counts.
    span, half = 1 << bits, 1 << (bits - 1)
    whole = [int(end) % span for end in ends if not math.isnan(end)]
    if signed:
        whole = [value - span if value >= half else value for value in whole]
    return min(whole), max(whole)


def _direction(six: tuple[float, ...] | None) -> Any:
    """Two orthogonal unit vectors, or None where the value is no orientation."""
    if six is None:
        return None
    row, col = six[:3], six[3:]
    long = [sum(v * v for v in vector) for vector in (row, col)]
    skew = sum(a * b for a, b in zip(row, col, strict=True))
    return six if all(0.8 < v < 1.2 for v in long) and abs(skew) < 0.1 else None


def _sane(size: float) -> float:
    return size if LEAST_MM <= size <= MOST_MM else MISSING


def header_of(
    get: Get, file: str, *, syntax: str, at: int, length: int, frame: int | None = None
) -> Header:
    """The header of a parsed frame.

    Args:
        get: what it says.
        file: its name.
        syntax: TransferSyntaxUID.
        at: where pixel data starts, 0 where that is unknown.
        length: of pixel data, -1 where it is encapsulated.
        frame: its place in a file of several frames.

    Raises:
        FileError: it holds no single grey frame.
    """
    rows, cols = _whole(get("Rows"), 0), _whole(get("Columns"), 0)
    if not rows or not cols:
        raise FileError(file, "no_pixels", "Rows or Columns is missing or zero")
    bits = _whole(get("BitsAllocated"), 16)
    samples = _whole(get("SamplesPerPixel"), 1)
    frames = 1 if frame is not None else _whole(get("NumberOfFrames"), 1)
    found = f"{frames} frames of {rows} x {cols}, {samples} samples of {bits} bits"
    if max(rows, cols) > MAX_SIDE_PX or samples != 1 or bits not in (8, 16, 32, 64):
        raise FileError(file, "not_ct_image", found)
    if frames > 1:
        raise FileError(file, "several_frames", found)
    if bits > 16:
        raise FileError(file, "wide_pixels", found)
    signed = _whole(get("PixelRepresentation"), 0) == 1
    stored = _whole(get("BitsStored"), bits)
    stored = stored if 1 <= stored <= bits else bits
    odd: set[str] = set()

    def numbers(keyword: str, count: int) -> tuple[float, ...] | None:
        value = get(keyword)
        if value is None:
            return None
        found = several(value, count)
        if found is None and (found := meant(value, count)) is not None:
            odd.add("odd_numbers")
        return found

    def number(keyword: str) -> float:
        value = get(keyword)
        if isinstance(value, list):
            return first(value)
        found = numbers(keyword, 1)
        return MISSING if found is None else found[0]

    pair = numbers("PixelSpacing", 2)
    if pair is None or not all(LEAST_MM <= size <= MOST_MM for size in pair):
        diameter = _sane(number("ReconstructionDiameter") / max(rows, cols))
        pair = None if math.isnan(diameter) else (diameter, diameter)
        odd.add("missing_spacing")
    return Header(
        file=file,
        number=file_number(file) if frame is None else frame + 1.0,
        instance=first(get("InstanceNumber")) if frame is None else frame + 1.0,
        patient_id=_text(get("PatientID")).strip(),
        study_uid=_text(get("StudyInstanceUID")),
        series_uid=_text(get("SeriesInstanceUID")),
        image_type=_text(get("ImageType")),
        modality=_text(get("Modality")).strip().upper(),
        sop_class=_text(get("SOPClassUID")),
        rescale_type=_text(get("RescaleType")).strip().upper(),
        scan=tuple([_text(get(keyword)) for keyword in SCAN]),
        times=(_text(get("AcquisitionTime")), _text(get("ContentTime"))),
        syntax=syntax,
        position_mm=numbers("ImagePositionPatient", 3),  # type: ignore[arg-type]
        orientation=_direction(numbers("ImageOrientationPatient", 6)),
        spacing_mm=pair,  # type: ignore[arg-type]
        thickness_mm=_sane(number("SliceThickness")),
        step_mm=_sane(abs(number("SpacingBetweenSlices"))),
        location_mm=number("SliceLocation"),
        rows=rows,
        cols=cols,
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=_whole(get("HighBit"), stored - 1),
        signed=signed,
        slope=number("RescaleSlope") or MISSING,  # 0 would make every value the same
        intercept=number("RescaleIntercept"),
        padding=_padding(get, signed, bits),
        photometric=_text(get("PhotometricInterpretation")).strip(),
        pixels_at=at,
        pixels_length=length,
        frame=frame,
        notes=tuple(odd),
    )


class Alike:
    """Headers of one file after the other; what a file shares with the one before is read once."""

    OWN = (
        *("InstanceNumber", "AcquisitionTime", "ContentTime"),
        *("ImagePositionPatient", "SliceLocation"),
    )
    """What each file of a scan says for itself."""

    def __init__(self) -> None:
        self._shared: dict[str, Any] = {}
        self._rest: tuple[Any, ...] = ()

    def header_of(
        self, values: Mapping[str, Any], file: str, *, syntax: str, at: int, length: int
    ) -> Header:
        """`header_of` for the values by keyword of a file of one frame."""
        shared = {**values, "TransferSyntaxUID": syntax}
        instance, began, shown, position, location = [shared.pop(name, None) for name in self.OWN]
        place = several(position, 3)
        depth = (MISSING,) if location is None else several(location, 1)
        if place is None or depth is None or shared != self._shared:
            header = header_of(values.get, file, syntax=syntax, at=at, length=length)
            self._shared, self._rest = shared, header[OWN_FIELDS:]
            if "odd_numbers" in header.notes:  # perhaps only of this file
                self._shared = {}
            return header
        times = _text(began), _text(shown)
        own = file, file_number(file), first(instance), times, place, *depth, at, length
        return Header._make((*own, *self._rest))

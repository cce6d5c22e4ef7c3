"""Defects of a study's files: how each is made, and what must come of it.

In: the sound slices of a study as DICOM datasets. Out: files by name. Example::

    from cspine_kit.phantom.scanner.files import slice_files

    slices = [*slice_files("1.2.3", scan, np.zeros(scan.grid.shape, np.int16))]
    files = DEFECTS["reversed"].change(slices, rng)
    files["1.dcm"].ImagePositionPatient           # now the lowest slice
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cspine_kit.phantom.scanner.files import compress, decimal, set_pixels

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

    Files = dict[str, FileDataset | bytes]
    Change = Callable[[list[FileDataset], np.random.Generator], Files]


@dataclass(frozen=True)
class Defect:
    """One defect: how files change, and what must come of the study."""

    change: Change
    what: str
    lost: int | None = 0
    """Slices that cannot be used; None where no slice count can be promised."""
    same: bool = True
    outcome: str = "predicted"


def _named(slices: list[FileDataset]) -> Files:
    return {f"{number}.dcm": file for number, file in enumerate(slices, start=1)}


def _bytes(file: FileDataset) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _stored(file: FileDataset) -> NDArray[np.int16]:
    shape = (file.Rows, file.Columns)
    return np.frombuffer(file.PixelData, np.int16).reshape(shape).copy()


def _each(change: Callable[[FileDataset, int], None]) -> Change:
    """Apply a change to every slice; it gets the dataset and its index."""

    def apply(slices: list[FileDataset], rng: np.random.Generator) -> Files:
        for index, file in enumerate(slices):
            change(file, index)
        return _named(slices)

    return apply


def _one(make: Callable[[FileDataset], FileDataset | bytes]) -> Change:
    """Replace the middle slice by something else."""

    def apply(slices: list[FileDataset], rng: np.random.Generator) -> Files:
        middle = len(slices) // 2
        files = _named(slices)
        files[f"{middle + 1}.dcm"] = make(slices[middle])
        return files

    return apply


def _keep(count: int) -> Change:
    """Keep only so many slices from the middle of the neck."""

    def apply(slices: list[FileDataset], rng: np.random.Generator) -> Files:
        first = (len(slices) - count) // 2
        return _named(slices[first : first + count])

    return apply


def _reversed(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    for number, file in enumerate(slices[::-1], start=1):
        file.InstanceNumber = number
    return _named(slices[::-1])


def _shuffled_names(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    return _named([slices[i] for i in rng.permutation(len(slices))])


def _wrong_instance_numbers(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    for file, number in zip(slices, rng.permutation(len(slices)), strict=True):
        file.InstanceNumber = int(number) + 1
    return _named(slices)


def _duplicated(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    files = _named(slices)
    for extra, index in enumerate((10, 11, 25), start=1):
        number = len(slices) + extra
        twin = _copy(slices[index])
        twin.SOPInstanceUID = f"{twin.SeriesInstanceUID}.{number}"
        twin.file_meta.MediaStorageSOPInstanceUID = twin.SOPInstanceUID
        twin.InstanceNumber = number
        files[f"{number}.dcm"] = twin
    return files


def _copy(file: FileDataset) -> FileDataset:
    from copy import deepcopy

    return deepcopy(file)


def _missing(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    gap = range(20, 25)
    return {name: f for i, (name, f) in enumerate(_named(slices).items()) if i not in gap}


def _two_series(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    files = _named(slices)
    for extra, file in enumerate(slices[20:32:2], start=1):
        other = _copy(file)
        other.SeriesInstanceUID = f"{file.StudyInstanceUID}.2"
        other.SOPInstanceUID = f"{other.SeriesInstanceUID}.{extra}"
        other.file_meta.MediaStorageSOPInstanceUID = other.SOPInstanceUID
        other.InstanceNumber = extra
        set_pixels(other, _stored(file) // 2)
        files[f"{len(slices) + extra}.dcm"] = other
    return files


def _enlarge(file: FileDataset, times: int) -> None:
    """The same picture on a finer matrix, in its true place."""
    set_pixels(file, np.kron(_stored(file), np.ones((times, times), np.int16)))
    old = float(file.PixelSpacing[0])
    file.PixelSpacing = [decimal(old / times)] * 2
    x, y, z = (float(v) for v in file.ImagePositionPatient)
    back = 0.5 * old * (1.0 - 1.0 / times)
    file.ImagePositionPatient = [decimal(v) for v in (x - back, y - back, z)]


def _mixed_sizes(file: FileDataset, index: int) -> None:
    if index % 9 == 4:
        _enlarge(file, 2)


def _to_768(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    kept = slices[:: max(1, len(slices) // 12)]
    for file in kept:
        _enlarge(file, 768 // file.Rows)
    return _named(kept)


def _monochrome1(file: FileDataset, index: int) -> None:
    file.PhotometricInterpretation = "MONOCHROME1"


def _monochrome1_inverted(file: FileDataset, index: int) -> None:
    file.PhotometricInterpretation = "MONOCHROME1"
    set_pixels(file, 4095 - _stored(file))


def _own_rescale(file: FileDataset, index: int) -> None:
    hu = _stored(file).astype(np.int32) + int(file.RescaleIntercept)
    slope, intercept = ((1.0, -1024), (0.5, -1024), (1.0, -2048), (0.25, -1024))[index % 4]
    file.BitsStored, file.HighBit = 16, 15
    file.RescaleSlope, file.RescaleIntercept = slope, intercept
    set_pixels(file, np.rint((hu - intercept) / slope).astype(np.int16))


def _signed(file: FileDataset, index: int) -> None:
    set_pixels(file, (_stored(file) + int(file.RescaleIntercept)).astype(np.int16))
    file.RescaleIntercept, file.PixelRepresentation = 0, 1


def _sign_bits_cut(file: FileDataset, index: int) -> None:
    """Signed values whose unused four high bits are zero instead of repeating the sign."""
    _signed(file, index)
    set_pixels(file, _stored(file) & 0x0FFF)


def _overflow(file: FileDataset, index: int) -> None:
    """Metal beyond what BitsStored can say."""
    if 30 <= index < 34:
        values = _stored(file)
        values[4:8, 4:8] = 9000
        set_pixels(file, values)


def _windows(file: FileDataset, index: int) -> None:
    file.WindowCenter, file.WindowWidth = [40, 500], [400, 2000]


def _no_position(file: FileDataset, index: int) -> None:
    del file.ImagePositionPatient


def _some_positions(file: FileDataset, index: int) -> None:
    if index % 7 == 3:
        del file.ImagePositionPatient


def _tilt(file: FileDataset, index: int) -> None:
    angle = np.radians(12.0)
    file.ImageOrientationPatient = [decimal(v) for v in (1, 0, 0, 0, np.cos(angle), np.sin(angle))]


def _non_square(file: FileDataset, index: int) -> None:
    old = float(file.PixelSpacing[0])
    set_pixels(file, np.ascontiguousarray(_stored(file)[::2]))
    file.PixelSpacing = [decimal(2 * old), decimal(old)]


def _no_pixels(file: FileDataset) -> FileDataset:
    del file.PixelData
    return file


def _unknown_syntax(file: FileDataset) -> bytes:
    """A well-formed file that names a transfer syntax nobody knows."""
    known, unknown = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"
    return _bytes(file).replace(known, unknown, 1)


def _corrupt_jpeg(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    files = _compressed("jpeg_lossless")(slices, rng)
    middle = len(slices) // 2  # compressed in place
    data = bytearray(_bytes(slices[middle]))
    start = data.rfind(b"\xff\xda")
    data[start : start + 400] = rng.integers(0, 256, 400, dtype=np.uint8).tobytes()
    files[f"{middle + 1}.dcm"] = bytes(data)
    return files


def _compressed(syntax: str) -> Change:
    return _each(lambda file, index: compress(file, syntax))


def _localizer(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    files = _named(slices)
    scout = _copy(slices[0])
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    scout.InstanceNumber = len(slices) + 1
    scout.SOPInstanceUID = f"{scout.SeriesInstanceUID}.{len(slices) + 1}"
    scout.file_meta.MediaStorageSOPInstanceUID = scout.SOPInstanceUID
    set_pixels(scout, np.repeat(_stored(scout), 2, axis=0))
    return {**files, f"{len(slices) + 1}.dcm": scout}


def _extra_junk(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    return {**_named(slices), "notes.dcm": b"This is a note and no image.\n", "Thumbs.db": b"\0\1"}


def _all_truncated(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    return {f"{number}.dcm": _bytes(file)[:300] for number, file in enumerate(slices, start=1)}


def _none(slices: list[FileDataset], rng: np.random.Generator) -> Files:
    return {}


_FALLBACK = {"lost": None, "same": False, "outcome": "fallback"}

DEFECTS: dict[str, Defect] = {
    "clean": Defect(_each(lambda f, i: None), "nothing is wrong: the reference"),
    "reversed": Defect(_reversed, "file number ascends with z"),
    "shuffled_names": Defect(_shuffled_names, "file numbers in random order"),
    "wrong_instance_number": Defect(_wrong_instance_numbers, "InstanceNumbers in random order"),
    "duplicated_z": Defect(_duplicated, "three slices stored twice; one of each is kept"),
    "missing_slices": Defect(_missing, "five slices absent; the gap is reported", 5, False),
    "two_series": Defect(_two_series, "a short second series; the longer one is kept"),
    "mixed_sizes": Defect(_each(_mixed_sizes), "some slices on twice the matrix", 0, False),
    "matrix_768": Defect(_to_768, "768 x 768 pixels, few slices", None, False),
    "monochrome1": Defect(_each(_monochrome1), "MONOCHROME1; rescaled HU are HU"),
    "monochrome1_inverted": Defect(_each(_monochrome1_inverted), "MONOCHROME1, values inverted"),
    "own_rescale": Defect(_each(_own_rescale), "slope and intercept differ per file"),
    "signed": Defect(_each(_signed), "signed stored values, intercept 0"),
    "sign_bits_cut": Defect(_each(_sign_bits_cut), "signed 12 bit without sign extension"),
    "overflow": Defect(_each(_overflow), "values beyond BitsStored in one corner", 0, False),
    "windows": Defect(_each(_windows), "multi-valued WindowCenter and WindowWidth"),
    "no_position": Defect(_each(_no_position), "no ImagePositionPatient; numbers order"),
    "some_positions": Defect(_each(_some_positions), "ImagePositionPatient absent in some"),
    "gantry_tilt": Defect(_each(_tilt), "slices tilted by 12 degrees", 0, False),
    "non_square": Defect(_each(_non_square), "rows twice as far apart as columns", 0, False),
    "three_slices": Defect(_keep(3), "3 slices", None, False),
    "one_slice": Defect(_keep(1), "1 slice", None, False),
    "empty_folder": Defect(_none, "a folder without files", **_FALLBACK),  # type: ignore[arg-type]
    "truncated_file": Defect(_one(lambda f: _bytes(f)[:-3000]), "one file cut off", 1, False),
    "zero_byte_file": Defect(_one(lambda f: b""), "one file of no bytes", 1, False),
    "text_file": Defect(_one(lambda f: b"see attachment\n"), "one slice is a text", 1, False),
    "no_pixels": Defect(_one(_no_pixels), "one slice without PixelData", 1, False),
    "localizer": Defect(_localizer, "a coronal localizer among the slices"),
    "unknown_syntax": Defect(_one(_unknown_syntax), "one file of unknown syntax", 1, False),
    "corrupt_jpeg": Defect(_corrupt_jpeg, "one damaged JPEG Lossless frame", None, False),
    "extra_junk": Defect(_extra_junk, "a text named .dcm and a thumbnail file besides"),
    "all_truncated": Defect(_all_truncated, "no file is readable", **_FALLBACK),  # type: ignore[arg-type]
    "jpeg_lossless": Defect(_compressed("jpeg_lossless"), "JPEG Lossless (.70)"),
    "jpeg_2000": Defect(_compressed("jpeg_2000"), "JPEG 2000 lossless (.90)"),
    "jpeg_ls": Defect(_compressed("jpeg_ls"), "JPEG-LS lossless (.80)"),
    "rle": Defect(_compressed("rle"), "RLE"),
    "listed_twice": Defect(_each(lambda f, i: None), "each of its rows stands twice in test.csv"),
    "no_folder": Defect(_none, "listed in test.csv, no folder", **_FALLBACK),  # type: ignore[arg-type]
    "path_uid": Defect(_none, "id with path characters; refused", **_FALLBACK),  # type: ignore[arg-type]
    "extra_folder": Defect(_each(lambda f, i: None), "a folder that no row asks for"),
}
"""Every defect by name, in the order of the manifest."""

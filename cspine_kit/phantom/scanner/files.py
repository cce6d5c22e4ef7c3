"""The files a scanner leaves: DICOM slices with the competition's tags.

In: a `Scan`, stored values (z, y, x) with z index 0 = most cranial. Out: 1.dcm..N.dcm. Example::

    stored = scan.digitize(np.full(scan.grid.shape, 50, np.int16))
    write_dicom(Path("1.2.3"), "1.2.3", scan, stored, syntax="jpeg_lossless")
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.errors import DataError
from cspine_kit.phantom.scanner.scan import Scan

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

GDCM_SYNTAX = {
    "jpeg_lossless": "JPEGLosslessProcess14_1",
    "jpeg_2000": "JPEG2000Lossless",
    "jpeg_ls": "JPEGLSLossless",
    "rle": "RLELossless",
}
"""Compressed syntaxes by short name; the competition's compressed files are JPEG Lossless."""


def decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    text = f"{float(value):.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def slice_files(study_uid: str, scan: Scan, stored: NDArray[np.int16]) -> Iterator[FileDataset]:
    """Uncompressed DICOM datasets of a study in file-number order, in memory."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    series_uid = f"{study_uid}.1"
    patient = study_uid.rsplit(".", 1)[1]
    way, up = scan.way, scan.axes[2]
    x, y, origin = scan.grid.x[::way], scan.grid.y[::way], np.array(scan.origin_mm)
    corner = x[0] * scan.axes[0] + y[0] * scan.axes[1] + origin
    right, down = way * scan.axes[:2]
    for number, index in enumerate(scan.file_order, start=1):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = UID(f"{series_uid}.{number}")
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID = CTImageStorage
        file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        file.ContentDate, file.ContentTime = "20220727", "180000.000000"
        file.PatientName = file.PatientID = patient
        file.SliceThickness = decimal(scan.thickness_mm)
        file.StudyInstanceUID, file.SeriesInstanceUID = study_uid, series_uid
        file.InstanceNumber = number
        position = corner + float(scan.grid.z[index]) * up
        file.ImagePositionPatient = [decimal(v) for v in position]
        file.ImageOrientationPatient = [decimal(v) for v in (*right, *down)]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.PixelSpacing = [decimal(v) for v in scan.spacing_mm[1:]]
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, scan.bits, scan.bits - 1
        file.PixelRepresentation = int(scan.signed)
        file.WindowCenter, file.WindowWidth = 500, 2000
        file.RescaleIntercept, file.RescaleSlope = scan.intercept, 1
        set_pixels(file, stored[index, ::way, ::way])
        yield file


def set_pixels(file: FileDataset, pixels: NDArray[np.int16]) -> None:
    """Put stored values (y, x) into a dataset, uncompressed."""
    file.Rows, file.Columns = pixels.shape
    file.PixelData = pixels.tobytes()
    file["PixelData"].VR = "OW"


def compress(file: FileDataset, syntax: str) -> None:
    """Compress a dataset's pixels in place, without loss.

    Raises:
        DataError: gdcm refuses.
    """
    import gdcm
    import pydicom

    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "plain.dcm", Path(folder) / "packed.dcm"
        file.save_as(plain, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(plain))
        change = gdcm.ImageChangeTransferSyntax()
        target = getattr(gdcm.TransferSyntax, GDCM_SYNTAX[syntax])
        change.SetTransferSyntax(gdcm.TransferSyntax(target))
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(packed))
        done = reader.Read()
        change.SetInput(reader.GetImage())
        done = done and change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        if not (done and writer.Write()):
            raise DataError(f"phantom: gdcm could not write {syntax}")
        # gdcm stamps the time of day into its files, so only the pixels are taken over
        out = pydicom.dcmread(packed)
    file.file_meta.TransferSyntaxUID = out.file_meta.TransferSyntaxUID
    file.PixelData = out.PixelData
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True


def write_dicom(
    folder: Path, study_uid: str, scan: Scan, stored: NDArray[np.int16], *, syntax: str = "plain"
) -> None:
    """Write 1.dcm..N.dcm of stored values (z, y, x); `syntax` is "plain" or of `GDCM_SYNTAX`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(slice_files(study_uid, scan, stored), start=1):
        if syntax != "plain":
            compress(file, syntax)
        file.save_as(folder / f"{number}.dcm", enforce_file_format=True)

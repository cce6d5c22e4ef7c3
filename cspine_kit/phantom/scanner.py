"""The scanner: what part of a neck is scanned, how finely, and the files it leaves.

In: a `Neck` and a generator. Out: a `Scan` (geometry), its volume in HU, and a folder of DICOM
files named 1.dcm..N.dcm. Example::

    scan = draw_scan(rng, neck, size_px=160, difficulty="easy")
    write_dicom(folder, study_uid, scan, scan.digitize(hu))

Tags are the ones the competition's files have.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspine_kit.phantom.shapes import Array, Grid
from cspine_kit.phantom.spine import Neck

EASY_FIELD_MM = 192.0
REVERSED_SHARE = 0.06


@dataclass(frozen=True)
class Scan:
    """Geometry and encoding of one study; `z_mm` descends with the slice index."""

    grid: Grid
    spacing_mm: tuple[float, float, float]
    thickness_mm: float
    reversed: bool
    noise_hu: float
    intercept: int
    signed: bool
    origin_mm: tuple[float, float, float]
    """Patient position (x, y, z) of the phantom's own origin."""

    @property
    def file_order(self) -> list[int]:
        """Slice index (0 = most cranial) of file 1, 2, ..."""
        order = list(range(len(self.grid.z)))
        return order[::-1] if self.reversed else order

    def digitize(self, hu: Array) -> NDArray[np.int16]:
        """Stored values of HU (z, y, x): rounded, shifted by the intercept, clipped to 12 bits."""
        low, high = (-2048, 2047) if self.signed else (0, 4095)
        stored = np.clip(np.rint(hu - self.intercept), low, high)
        return stored.astype(np.int16)


def draw_scan(rng: np.random.Generator, neck: Neck, *, size_px: int, difficulty: str) -> Scan:
    """Draw coverage, spacing and encoding of one study."""
    spacing_z = float(rng.choice((1.5, 1.75, 2.0)))
    field_mm = EASY_FIELD_MM
    pixel = field_mm / size_px
    top = neck.axes["C1"][0][2] + rng.uniform(14, 28)
    bottom = neck.axes["C7"][0][2] - rng.uniform(18, 32)
    count = round((top - bottom) / spacing_z) + 1
    corner = (top, -0.5 * field_mm + 6.0 + rng.uniform(-6, 6), -0.5 * field_mm + rng.uniform(-6, 6))
    grid = Grid.make((count, size_px, size_px), (spacing_z, pixel, pixel), corner)
    signed = bool(rng.random() < 0.5)
    return Scan(
        grid=grid,
        spacing_mm=(spacing_z, pixel, pixel),
        thickness_mm=spacing_z,
        reversed=bool(rng.random() < REVERSED_SHARE),
        noise_hu=float(rng.uniform(12, 25)),
        intercept=0 if signed else -1024,
        signed=signed,
        origin_mm=(0.0, 0.0, round(float(rng.uniform(-400, 200)), 1)),
    )


def add_noise(hu: Array, scan: Scan, rng: np.random.Generator) -> None:
    """Add dose noise to HU (z, y, x), in place."""
    for index in range(len(hu)):
        hu[index] += scan.noise_hu * rng.standard_normal(hu.shape[1:], dtype=np.float32)


def write_dicom(folder: Path, study_uid: str, scan: Scan, stored: NDArray[np.int16]) -> None:
    """Write files 1.dcm..N.dcm of stored values (z, y, x), z index 0 = most cranial."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    series_uid = f"{study_uid}.1"
    patient = study_uid.rsplit(".", 1)[1]
    x, y = scan.grid.x[0] + scan.origin_mm[0], scan.grid.y[0] + scan.origin_mm[1]
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
        file.SliceThickness = _decimal(scan.thickness_mm)
        file.StudyInstanceUID, file.SeriesInstanceUID = study_uid, series_uid
        file.InstanceNumber = number
        z = float(scan.grid.z[index]) + scan.origin_mm[2]
        file.ImagePositionPatient = [_decimal(v) for v in (x, y, z)]
        file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.Rows, file.Columns = stored.shape[1:]
        file.PixelSpacing = [_decimal(v) for v in scan.spacing_mm[1:]]
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
        file.PixelRepresentation = int(scan.signed)
        file.WindowCenter, file.WindowWidth = 500, 2000
        file.RescaleIntercept, file.RescaleSlope = scan.intercept, 1
        file.PixelData = stored[index].tobytes()
        file["PixelData"].VR = "OW"
        file.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    return f"{float(value):.6f}".rstrip("0").rstrip(".")


def write_mask(path: Path, scan: Scan, labels: NDArray[np.uint8]) -> None:
    """Write labels (z, y, x) as the competition's NIfTI: x to the left, y forward, z up.

    `get_fdata()[:, ::-1, ::-1].transpose(2, 1, 0)` gives (z, y, x) in file order where z descends
    with the file number; where it ascends, that z flip must be left out.
    """
    import nibabel

    data = labels.transpose(2, 1, 0)[:, ::-1, ::-1]
    dz, dy, dx = scan.spacing_mm
    grid, (x, y, z) = scan.grid, scan.origin_mm
    affine = np.diag([-dx, dy, dz, 1.0])
    affine[:3, 3] = -(grid.x[0] + x), -(grid.y[-1] + y), grid.z[-1] + z
    image = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        np.ascontiguousarray(data), affine
    )
    image.set_qform(affine, 1)  # type: ignore[no-untyped-call]
    image.set_sform(affine, 1)  # type: ignore[no-untyped-call]
    path.write_bytes(image.to_bytes())

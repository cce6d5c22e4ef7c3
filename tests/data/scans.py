"""Small synthetic scans for the data room's tests, written with pydicom alone."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

PITCH, STEP = 1.5, 3.0
NZ, SIZE = 24, 96


def neck_hu(nz: int = NZ, size: int = SIZE, shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """(nz, size, size) int16: an oval neck with a bone column behind its middle and a table.

    The right front (low row, low column) carries a bright mark and each slice has its own value in
    the column, so that order, flips and mirroring all show.
    """
    y, x = np.mgrid[:size, :size]
    cy, cx = size * 0.45 + shift[0], size / 2 + shift[1]
    hu = np.full((nz, size, size), -1000, dtype=np.int16)
    neck = ((y - cy) / (size * 0.3)) ** 2 + ((x - cx) / (size * 0.26)) ** 2 < 1
    column = (y - cy - size * 0.08) ** 2 + (x - cx) ** 2 < (size * 0.07) ** 2
    mark = (y - cy + size * 0.15) ** 2 + (x - cx + size * 0.12) ** 2 < (size * 0.025) ** 2
    hu[:, neck] = 50
    hu[:, mark] = 900
    for z in range(nz):
        hu[z, column] = 400 + 10 * z
    hu[:, int(size * 0.9) : int(size * 0.9) + 2, :] = -100
    return hu


def dataset(frame: np.ndarray, position: tuple, **changes: object) -> FileDataset:
    """One CT slice as pydicom would write it; `changes` set or (None) delete attributes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(position)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientID, ds.StudyInstanceUID = "CT", "p", "1.2.3"
    ds.SeriesInstanceUID = "1.2.3.1"
    ds.SliceThickness = STEP
    ds.ImagePositionPatient = list(position)
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [PITCH, PITCH]
    ds.Rows, ds.Columns = frame.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    ds.PixelData = frame.astype("<i2").tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return ds


def positions(nz: int) -> list[tuple[float, float, float]]:
    """Positions of slices from head to chest."""
    return [(-70.0, -60.0, 100.0 - STEP * z) for z in range(nz)]


def write_scan(
    folder: Path, hu: np.ndarray | None = None, *, reverse: bool = False, **changes: object
) -> np.ndarray:
    """Write a scan, file k.dcm = slice k from the head (or from the chest); returns its HU."""
    hu = neck_hu() if hu is None else hu
    folder.mkdir(parents=True, exist_ok=True)
    for z, position in enumerate(positions(len(hu))):
        number = len(hu) - z if reverse else z + 1
        ds = dataset(hu[z], position, **{"InstanceNumber": number, **changes})
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return hu


def neck_labels() -> np.ndarray:
    """(z, y, x): level k on slices 3k-3..3k-1 of the bone column, then T1."""
    labels = np.zeros((NZ, SIZE, SIZE), np.uint8)
    hu = neck_hu(NZ, SIZE)
    for z in range(NZ):
        labels[z][(hu[z] >= 400) & (hu[z] != 900)] = z // 3 + 1
    return labels


def write_mask(path: Path, labels: np.ndarray, *, sagittal: bool = True) -> None:
    """Save (z, y, x) labels as NIfTI; sagittal puts x first, running to the left, as the real."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y, z = positions(NZ)[0]
    affine = np.diag([-PITCH, -PITCH, -STEP, 1.0])
    affine[:3, 3] = -x, -y, z
    image = nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine)
    if sagittal:
        wanted = nibabel.orientations.axcodes2ornt(("P", "I", "R"))
        image = image.as_reoriented(
            nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), wanted)
        )
    nibabel.save(image, path)

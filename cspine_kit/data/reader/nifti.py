"""A CT as one NIfTI file, read as if each of its axial slices were a DICOM file.

In: `scan.nii` or `scan.nii.gz`, values in Hounsfield units. Out: headers and frames. Example::

    import nibabel
    from cspine_kit.data.reader.dicom import read_study

    right, front, up = (sign * size for sign, size in zip((-1, -1, -1), study.spacing_mm[::-1]))
    image = nibabel.Nifti1Image(study.hu.transpose(2, 1, 0), np.diag([right, front, up, 1.0]))
    nibabel.save(image, "scan.nii.gz")
    np.array_equal(read_study(Path("scan.nii.gz")).hu, study.hu)       # True

Order, orientation, tilt and grey values are settled from these headers as from DICOM's. NIfTI's x
runs to the right and y to the front (RAS); headers have DICOM's axes.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.errors import StudyError
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.paths import MASK_ENDINGS
from cspine_kit.data.reader.headers.header import Header, header_of
from cspine_kit.data.reader.headers.walk import EXPLICIT
from cspine_kit.data.reader.pixels.record import Stored
from cspine_kit.data.reader.pixels.values import AIR_HU

TO_MM = {"meter": 1000.0, "micron": 0.001}
"""Units that a header may name; millimeters where it names none."""

MOST_VOXELS = 1 << 30
"""4096 slices of 512 x 512: more than any scan of a neck, and a damaged header's are not read."""


def nifti_of(place: Path) -> Path | None:
    """The NIfTI file that a study is: `place` itself, or all that its folder holds; else None."""
    if place.is_dir():
        held = [path for path in place.iterdir() if not path.name.startswith(".")]
        place = held[0] if len(held) == 1 else place
    return place if place.is_file() and place.name.lower().endswith(MASK_ENDINGS) else None


def name_of(path: Path) -> str:
    """A file's name without `.nii` or `.nii.gz`."""
    return path.name[: path.name.lower().rindex(MASK_ENDINGS[0])]


class NiftiSlices:
    """The axial slices of one file.

    Attributes:
        headers: one for each.
        voxels: int16 HU (x, y, z), along those axes of the file that run most nearly to the right,
            the front and the head.
    """

    def __init__(self, path: Path) -> None:
        """Read a file whole.

        Raises:
            StudyError: it is damaged, or holds no single volume.
        """
        try:
            self.voxels, affine = _read(path)
        except StudyError:
            raise
        except Exception as error:
            problem = f"{path.name} cannot be read as NIfTI: {type(error).__name__}: {error}"
            raise StudyError(name_of(path), problem, "copy it again") from error
        self.headers = _headers(path.name, self.voxels.shape, affine)

    def decode(self, path: Path | str, header: Header, out: Any = None) -> Stored:
        """Stored values (rows, cols) of a slice; as `pixels.decode.decode`."""
        return np.ascontiguousarray(self.voxels[:, :, header.frame or 0].T)


def _read(path: Path) -> tuple[NDArray[np.int16], FloatArray]:
    """Voxels (x, y, z), and the affine (4, 4) from their indices to mm."""
    import nibabel
    from nibabel import orientations

    image: Any = nibabel.load(path)
    shape = image.shape
    if len(shape) < 3 or np.prod(shape[:3], dtype=object) != np.prod(shape, dtype=object):
        raise StudyError(
            name_of(path), f"{path.name} has shape {shape}", "give a volume of three axes"
        )
    if not 0 < np.prod(shape, dtype=object) <= MOST_VOXELS:
        raise StudyError(name_of(path), f"{path.name} has shape {shape}", "give a CT of the neck")
    affine = np.array(image.affine, np.float64)
    affine[:3] *= TO_MM.get(image.header.get_xyzt_units()[0], 1.0)
    scaled = image.dataobj.slope != 1.0 or image.dataobj.inter != 0.0
    values = image.get_fdata(dtype=np.float32) if scaled else np.asanyarray(image.dataobj)
    values = values.reshape(shape[:3])
    if values.dtype != np.int16:
        if values.dtype.kind == "f":
            values = np.rint(np.nan_to_num(values, nan=AIR_HU))
        ends = np.iinfo(np.int16)
        values = np.clip(values, ends.min, ends.max).astype(np.int16)
    ways: Any = orientations.io_orientation(affine)  # type: ignore[no-untyped-call]
    upright: Any = orientations.apply_orientation(values, ways)  # type: ignore[no-untyped-call]
    back = orientations.inv_ornt_aff(ways, shape[:3])  # type: ignore[no-untyped-call]
    return upright, affine @ back


def _headers(file: str, shape: tuple[int, ...], affine: FloatArray) -> list[Header]:
    """A header for each slice of voxels of a shape (x, y, z)."""
    right, front, up, first = (affine[:3] * [[-1.0], [-1.0], [1.0]]).T
    cols_mm, rows_mm, step_mm = (float(np.linalg.norm(way)) for way in (right, front, up))
    values = {
        **{"Rows": shape[1], "Columns": shape[0], "PixelRepresentation": 1},
        **{"RescaleSlope": 1.0, "RescaleIntercept": 0.0, "SliceThickness": step_mm},
        "PixelSpacing": [rows_mm, cols_mm],
        "ImageOrientationPatient": [*(right / cols_mm), *(front / rows_mm)],
    }

    def header(k: int) -> Header:
        own = {**values, "ImagePositionPatient": list(first + k * up)}
        return header_of(own.get, file, syntax=EXPLICIT, at=0, length=0, frame=k)

    return [header(k) for k in range(shape[2])]

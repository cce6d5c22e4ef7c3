"""One ordered axial series: where every slice lies, and what was wrong on the way.

In: settled headers (`settle`). Out: a frozen `Geometry`. Example::

    study.headers[0].file, study.z_mm[0]     # the most cranial slice
    study.patient_mm(study.z_mm[3], y_mm=5.0, x_mm=10.0)

Patient coordinates are DICOM's: x to the left, y to the back, z to the head (PS3.3 C.7.6.2.1.1).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.scans.find import modal
from cspine_kit.data.reader.scans.resliced import Turn


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One axial series in slice order; index 0 is the most cranial slice.

    Attributes:
        z_mm: (nz,) float64, position along the slice normal, strictly descending. Equals z of
            ImagePositionPatient where the gantry is not tilted; `origins_mm` says where it is.
        spacing_mm: z, y, x; z is the median distance between neighbors.
        shape: rows, cols after reorientation.
        origins_mm: (nz, 3) patient position of the center of pixel [0, 0] after reorientation.
        axes: (2, 3) unit directions of increasing row index (to the back) and column index (left).
        flips, to_stored, in_place: how frames as stored become frames of this grid; see
            `scans.placing.Grid`.
        reversed: file numbers ascend with z ascending.
        irregular: a distance between neighbors departs from the median by more than 10 %.
        left_out: what is in the folder besides and was not taken, one line for each scan.
        problems: keys of `PROBLEMS`.
        source, turn: the sagittal or coronal stack that this one is cut from, read in a turned
            frame of reference; None where the slices are axial as they are.
    """

    study_uid: str
    headers: tuple[Header, ...]
    z_mm: FloatArray
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int]
    origins_mm: FloatArray
    axes: FloatArray
    flips: NDArray[np.bool_]
    to_stored: FloatArray
    in_place: NDArray[np.bool_]
    reversed: bool
    irregular: bool
    left_out: tuple[str, ...]
    problems: tuple[str, ...]
    source: "Geometry | None" = None
    turn: Turn | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """File names in slice order, with the frame where a file holds several."""
        return tuple(header.name for header in self.headers)

    @property
    def as_stored(self) -> bool:
        """True where pixels of the files are pixels of the grid, frame by frame."""
        return bool(self.in_place.all()) and not self.flips.any()

    def patient_mm(self, z_mm: float, y_mm: float = 0.0, x_mm: float = 0.0) -> FloatArray:
        """Patient position (3,) of a place of this grid, also above or below its slices.

        Args:
            z_mm: along the slice normal, as `z_mm` of this geometry.
            y_mm, x_mm: in the grid's plane; with 0, 0 it is ImagePositionPatient of such a slice.
        """
        inside = float(np.clip(z_mm, self.z_mm[-1], self.z_mm[0]))
        first = [np.interp(-inside, -self.z_mm, column) for column in self.origins_mm.T]
        down, right = self.axes
        beyond = (z_mm - inside) * np.cross(right, down)
        place: FloatArray = first + beyond + y_mm * down + x_mm * right
        return place

    @property
    def slice_numbers(self) -> FloatArray:
        """File numbers (nz,) in slice order, NaN where a name has none."""
        return np.array([header.number for header in self.headers])

    @property
    def instance_numbers(self) -> FloatArray:
        """InstanceNumber (nz,) in slice order, NaN where absent."""
        return np.array([header.instance for header in self.headers])

    @property
    def transfer_syntax(self) -> str:
        """The most frequent transfer syntax of the files."""
        return modal([header.syntax for header in self.headers])

"""A sagittal or coronal stack read as an axial one.

In: headers of such a stack. Out: headers in a frame of reference that is turned so that the stack
is axial in it, and the way back. Example::

    sagittal = header._replace(orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    turn = turn_of(sagittal.orientation)
    turned(sagittal, turn).orientation                     # (1, 0, 0, 0, 1, 0): axial
    turn.block(np.zeros((20, 64, 48), np.int16)).shape     # (64, 48, 20): 64 axial slices

Turned axes are x', y', z' = left, back, head of a patient who would lie for an axial scan.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.scans.find import Orientation, normal_of


@dataclass(frozen=True)
class Turn:
    """How a stack is turned: rows of `matrix` (3, 3) are the turned axes in patient coordinates."""

    matrix: FloatArray
    sagittal: bool

    def block(self, hu: NDArray[np.int16]) -> NDArray[np.int16]:
        """A turned volume (z', y', x') as an axial one (z, y, x), a view."""
        return hu.transpose(1, 2, 0) if self.sagittal else hu[::-1].transpose(1, 0, 2)

    @property
    def seen_from(self) -> int:
        """The slice of the stack that the first row and column of axial slices lie on."""
        return 0 if self.sagittal else -1

    def back(self, vectors: FloatArray) -> FloatArray:
        """Turned positions or directions (n, 3) in patient coordinates."""
        return vectors @ self.matrix


SAGITTAL = Turn(np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]]), sagittal=True)
CORONAL = Turn(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), sagittal=False)


def turn_of(orientation: Orientation) -> Turn:
    """The turn that makes slices of this orientation axial."""
    normal = np.abs(normal_of(orientation))
    return SAGITTAL if normal[0] >= normal[1] else CORONAL


def turned(header: Header, turn: Turn) -> Header:
    """A header in the turned frame of reference."""
    position, orientation = header.position_mm, header.orientation
    if position is not None:
        header = header._replace(position_mm=tuple((turn.matrix @ position).tolist()))
    if orientation is not None:
        pair = np.array(orientation).reshape(2, 3) @ turn.matrix.T
        header = header._replace(orientation=tuple(pair.ravel().tolist()))  # type: ignore[arg-type]
    return header


def even(z_mm: FloatArray, step: float) -> NDArray[np.int64]:
    """The slices of a stack that are nearest to places `step` apart, from the first to the last."""
    count = max(1, round(float(z_mm[0] - z_mm[-1]) / step) + 1)
    places = z_mm[0] - step * np.arange(count)
    return np.abs(z_mm[:, None] - places[None]).argmin(axis=0)

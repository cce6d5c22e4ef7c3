"""From the headers of a folder to one ordered axial series, and what was wrong on the way.

In: headers of all readable files. Out: a frozen `Geometry`. Example::

    geometry = settle_geometry("1.2.3", headers, ())
    geometry.headers[0].file, geometry.z_mm[0]     # the most cranial slice

Patient coordinates are DICOM's: x to the left, y to the back, z to the head (PS3.3 C.7.6.2.1.1).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.errors import StudyError
from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.header import Header
from cspine_kit.data.reader.kinds import ct_slices
from cspine_kit.data.reader.placing import TILT_COSINE, settle_grid
from cspine_kit.data.reader.positions import settle_positions, step_told
from cspine_kit.data.reader.problems import PROBLEMS
from cspine_kit.data.reader.scans import SAME_POSITION_MM, choose_scan, modal, normal_of

FEW_SLICES = 10
MONOTONE_SHARE = 0.9


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
            `placing.Grid`.
        reversed: file numbers ascend with z ascending.
        irregular: a distance between neighbors departs from the median by more than 10 %.
        left_out: what is in the folder besides and was not taken, one line for each scan.
        problems: keys of `PROBLEMS`.
    """

    study_uid: str
    headers: tuple[Header, ...]
    z_mm: FloatArray
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int]
    origins_mm: FloatArray
    axes: FloatArray
    flips: tuple[bool, bool, bool]
    to_stored: FloatArray
    in_place: NDArray[np.bool_]
    reversed: bool
    irregular: bool
    left_out: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """File names in slice order, with the frame where a file holds several."""
        return tuple(header.name for header in self.headers)

    @property
    def as_stored(self) -> bool:
        """True where pixels of the files are pixels of the grid, frame by frame."""
        return bool(self.in_place.all()) and not any(self.flips)

    def patient_mm(self, z_mm: float, y_px: float = 0.0, x_px: float = 0.0) -> FloatArray:
        """Patient position (3,) of a place of this grid, also above or below its slices.

        Args:
            z_mm: along the slice normal, as `z_mm` of this geometry.
            y_px, x_px: pixel of the grid; with 0, 0 it is ImagePositionPatient of such a slice.
        """
        inside = float(np.clip(z_mm, self.z_mm[-1], self.z_mm[0]))
        first = [np.interp(-inside, -self.z_mm, column) for column in self.origins_mm.T]
        (down, right), (_, pitch_y, pitch_x) = self.axes, self.spacing_mm
        beyond = (z_mm - inside) * np.cross(right, down)
        place: FloatArray = first + beyond + y_px * pitch_y * down + x_px * pitch_x * right
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


def _drop_duplicates(z: FloatArray, problems: set[str]) -> NDArray[np.int64]:
    """Order of slices, cranial first, with one slice per position (the first by file number)."""
    order = np.argsort(-z, kind="stable")
    keep = np.ones(len(order), dtype=bool)
    keep[1:] = -np.diff(z[order]) > SAME_POSITION_MM
    if not keep.all():
        problems.add("duplicate_position")
    kept: NDArray[np.int64] = order[keep]
    return kept


def _runs_down(numbers: FloatArray, code: str, problems: set[str]) -> bool:
    """True where numbers descend in slice order; neither way is a problem `code`."""
    known = numbers[np.isfinite(numbers)]
    steps = np.diff(known)
    if len(steps) == 0:
        return False
    down = float((steps < 0).mean())
    if 1 - MONOTONE_SHARE < down < MONOTONE_SHARE:
        problems.add(code)
    return down >= MONOTONE_SHARE


def _note_values(series: list[Header], problems: set[str]) -> None:
    """Problems of grey values that headers show."""
    if any(np.isnan(h.slope) or np.isnan(h.intercept) for h in series):
        problems.add("missing_rescale")
    if len({(h.slope, h.intercept) for h in series if not np.isnan(h.slope)}) > 1:
        problems.add("mixed_rescale")
    if any("odd_numbers" in h.notes for h in series):
        problems.add("odd_numbers")


def _note_identity(study_uid: str, series: list[Header], problems: set[str]) -> None:
    """A folder that is named after another study than its files say."""
    named = study_uid.replace(".", "").isdigit() and "." in study_uid
    inside = {h.study_uid for h in series} - {""}
    if named and inside and study_uid not in inside:
        problems.add("other_study")


def _note_order(z_mm: FloatArray, step: float, problems: set[str]) -> bool:
    """Problems of distances; True where they vary."""
    gaps = -np.diff(z_mm)
    irregular = bool(len(gaps)) and bool(np.abs(gaps - step).max() > 0.1 * step)
    if irregular:
        problems.add("gap" if gaps.max() > 1.5 * step else "irregular_spacing")
    if len(z_mm) < FEW_SLICES:
        problems.add("few_slices")
    return irregular


def settle_geometry(study_uid: str, headers: list[Header], found: tuple[str, ...]) -> Geometry:
    """Choose, orient and order the slices of one study.

    Args:
        study_uid: name of the study in errors and results.
        headers: of every readable frame of the folder.
        found: problem codes known so far.

    Raises:
        StudyError: no file, no CT, or no axial series.
    """
    if not headers:
        raise StudyError(
            study_uid,
            "no readable slice in its folder or one level down",
            "give the folder that holds the DICOM files",
        )
    problems = set(found)
    slices = ct_slices(study_uid, headers, problems)
    series, orientation, others = choose_scan(study_uid, slices, problems)
    normal = normal_of(orientation)
    positions = settle_positions(series, normal, problems)
    order = _drop_duplicates(positions @ normal, problems)
    dropped = len(series) - len(order)
    series, positions = [series[i] for i in order], positions[order]
    z_mm = positions @ normal
    grid = settle_grid(series, positions, orientation, problems)
    step = float(np.median(-np.diff(z_mm))) if len(z_mm) > 1 else step_told(series)
    if normal[2] < TILT_COSINE:
        problems.add("gantry_tilt")
    irregular = _note_order(z_mm, step, problems)
    _note_values(series, problems)
    _note_identity(study_uid, series, problems)
    runs_down = _runs_down(np.array([h.number for h in series]), "shuffled_files", problems)
    _runs_down(np.array([h.instance for h in series]), "shuffled_instances", problems)
    left_out = [scan.describe() for scan in others]
    if len(slices) < len(headers):
        left_out.append(f"{len(headers) - len(slices)} files that are no slices of a CT")
    if dropped:
        left_out.append(f"{dropped} slices at the position of another")
    return Geometry(
        study_uid=study_uid,
        headers=tuple(series),
        z_mm=z_mm,
        spacing_mm=(step, *grid.pitch_mm),
        shape=grid.shape,
        origins_mm=grid.origins_mm,
        axes=grid.axes,
        flips=grid.flips,
        to_stored=grid.to_stored,
        in_place=grid.in_place,
        reversed=runs_down,
        irregular=irregular,
        left_out=tuple(left_out),
        problems=tuple(code for code in PROBLEMS if code in problems),
    )

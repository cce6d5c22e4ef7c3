"""From the headers of a folder to one ordered axial series, and what was wrong on the way.

In: headers of all readable frames. Out: a `Geometry`. Example::

    from cspine_kit.data.reader.headers.files import read_headers

    headers, errors = read_headers(folder)
    geometry = settle_geometry(uid, headers, tuple(error.code for error in errors))
    geometry.files[0], geometry.z_mm[0]     # the most cranial slice
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.errors import StudyError
from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.problems import PROBLEMS
from cspine_kit.data.reader.scans.choice import AXIAL_COSINE, choose_scan
from cspine_kit.data.reader.scans.find import SAME_POSITION_MM, Orientation, normal_of
from cspine_kit.data.reader.scans.geometry import Geometry
from cspine_kit.data.reader.scans.kinds import ct_slices
from cspine_kit.data.reader.scans.placing import TILT_COSINE, settle_grid
from cspine_kit.data.reader.scans.positions import settle_positions, step_told
from cspine_kit.data.reader.scans.resliced import Turn, even, turn_of, turned

FEW_SLICES = 10
MONOTONE_SHARE = 0.9


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
    if any(math.isnan(h.slope) or math.isnan(h.intercept) for h in series):
        problems.add("missing_rescale")
    if len({(h.slope, h.intercept) for h in series if not math.isnan(h.slope)}) > 1:
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


def _settle_series(
    study_uid: str, series: list[Header], orientation: Orientation, problems: set[str]
) -> Geometry:
    """The geometry of one axial scan."""
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
        left_out=(f"{dropped} slices at the position of another",) if dropped else (),
        problems=tuple(problems),
    )


def _axial(source: Geometry, turn: Turn) -> Geometry:
    """The axial slices that are cut from a stack that was settled in a turned frame."""
    down, right = source.axes
    head = np.cross(right, down)
    step, pitch_y, pitch_x = source.spacing_mm
    count, (nz, across) = len(even(source.z_mm, step)), source.shape
    sides = ((right, across, pitch_x), (-head, count, step))
    if not turn.sagittal:
        sides = ((head, count, step), (right, across, pitch_x))
    (rows, n_rows, row_mm), (cols, n_cols, col_mm) = sides
    axes = turn.back(np.stack([rows, cols]))
    first = source.origins_mm[turn.seen_from] + np.arange(nz)[:, None] * pitch_y * down
    origins = turn.back(first)
    same = np.broadcast_to(np.eye(2, 3), (nz, 2, 3))
    header = source.headers[0]._replace(file="resliced", number=math.nan, instance=math.nan)
    return Geometry(
        study_uid=source.study_uid,
        headers=tuple(header._replace(frame=z) for z in range(nz)),
        z_mm=origins @ np.cross(axes[1], axes[0]),
        spacing_mm=(pitch_y, row_mm, col_mm),
        shape=(n_rows, n_cols),
        origins_mm=origins,
        axes=axes,
        flips=np.zeros((nz, 3), dtype=bool),
        to_stored=same,
        in_place=np.ones(nz, dtype=bool),
        reversed=False,
        irregular=source.irregular,
        left_out=source.left_out,
        problems=source.problems,
        source=source,
        turn=turn,
    )


def settle_geometry(study_uid: str, headers: list[Header], found: tuple[str, ...]) -> Geometry:
    """Choose, orient and order the slices of one study.

    Args:
        study_uid: name of the study in errors and results.
        headers: of every readable frame of the folder.
        found: problem codes known so far.

    Raises:
        StudyError: no file, no CT, or no stack of slices.
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
    if normal_of(orientation)[2] >= AXIAL_COSINE:
        geometry = _settle_series(study_uid, series, orientation, problems)
    else:
        turn = turn_of(orientation)
        series = [turned(header, turn) for header in series]
        told = next(h.orientation for h in series if h.orientation is not None)
        geometry = _axial(_settle_series(study_uid, series, told, problems), turn)
    left_out = [scan.describe() for scan in others]
    if len(slices) < len(headers):
        left_out.append(f"{len(headers) - len(slices)} files that are no slices of a CT")
    codes = tuple(code for code in PROBLEMS if code in geometry.problems)
    return replace(geometry, left_out=(*left_out, *geometry.left_out), problems=codes)

"""Where each slice of a scan lies: from ImagePositionPatient, SliceLocation, or numbers.

In: headers of one scan and its normal. Out: positions (n, 3) in mm. Example::

    from cspine_kit.data.reader.scans.find import normal_of

    normal = normal_of(study.headers[0].orientation)
    positions = settle_positions(list(study.headers), normal, set())

ImagePositionPatient counts where it tells slices apart. What is missing, meters away or the same
everywhere is filled from SliceLocation, else from InstanceNumber, else from file numbers.
"""

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.scans.find import SAME_POSITION_MM

ASSUMED_STEP_MM = 1.0
STRAY_MM = 2000.0
"""No table moves farther; a position beyond is a mistake of one file."""
AGREE_MM, ROUNDED_MM = 0.05, 3.0
"""SliceLocation and position of a slice agree up to this, and up to this where one is rounded."""

Known = NDArray[np.bool_]


def step_told(series: list[Header]) -> float:
    """Distance of slices as the files say: SpacingBetweenSlices, else SliceThickness, else 1 mm."""
    for told in ([h.step_mm for h in series], [h.thickness_mm for h in series]):
        sizes = [size for size in told if size > 0]
        if sizes:
            return float(np.median(sizes))
    return ASSUMED_STEP_MM


def _numbers(series: list[Header]) -> tuple[FloatArray, str]:
    """What orders slices that do not say where they lie, and the code that tells which."""
    instance = np.array([h.instance for h in series])
    if np.isfinite(instance).all() and len(np.unique(instance)) == len(series):
        return instance, "ordered_by_instance"
    files = np.array([h.number for h in series])
    if not np.isfinite(files).all():
        files = np.arange(len(series), dtype=np.float64)
    return files, "ordered_by_file_number"


def _distinct(values: FloatArray) -> int:
    """How many values there are when those nearer than `SAME_POSITION_MM` count once."""
    return 1 + int((np.diff(np.sort(values)) > SAME_POSITION_MM).sum()) if len(values) else 0


def _collide(z: FloatArray, known: Known) -> Known:
    """Slices that share their position with another."""
    order = np.argsort(np.where(known, z, np.inf), kind="stable")
    near = np.diff(z[order]) <= SAME_POSITION_MM
    found = np.zeros(len(z), dtype=bool)
    found[order[1:]] |= near
    found[order[:-1]] |= near
    return found & known


def _by_location(
    z: FloatArray, known: Known, location: FloatArray, near_mm: float = AGREE_MM
) -> FloatArray | None:
    """z (n,) that SliceLocation tells on the scale of known positions; None where it cannot.

    SliceLocation counts along the table, in either direction and from any start.
    """
    if not np.isfinite(location).all() or _distinct(location) < len(location):
        return None
    if known.sum() < 2:
        return location.copy()
    offsets = [(sign, z[known] - sign * location[known]) for sign in (1.0, -1.0)]
    sign, offset = min(
        offsets, key=lambda pair: float(np.median(np.abs(pair[1] - np.median(pair[1]))))
    )
    start = float(np.median(offset))
    agree = np.abs(offset - start) <= near_mm
    return sign * location + start if agree.mean() > 0.5 else None


def _fill(
    series: list[Header],
    positions: FloatArray,
    known: Known,
    normal: FloatArray,
    problems: set[str],
) -> FloatArray:
    """Positions of slices that say none, on the line of the others."""
    location = np.array([h.location_mm for h in series])
    z = _by_location(positions @ normal, known, location)
    if z is not None:
        problems.add("ordered_by_location")
        shift = z - positions @ normal
        if not known.any():
            return np.outer(z, normal)
        base = np.median(positions[known] - np.outer(positions[known] @ normal, normal), axis=0)
        own = np.where(
            known[:, None], positions + np.outer(shift * ~known, normal), base + np.outer(z, normal)
        )
        return own
    numbers, code = _numbers(series)
    problems.add(code)
    if known.sum() >= 2 and np.ptp(numbers[known]) > 0:
        filled = positions.copy()
        for axis in range(3):
            slope, start = np.polyfit(numbers[known], positions[known, axis], 1)
            filled[~known, axis] = start + slope * numbers[~known]
        return filled
    # Of the competition's studies 94 % are numbered from head to chest.
    place = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")
    return np.outer(-step_told(series) * place, normal)


def settle_positions(series: list[Header], normal: FloatArray, problems: set[str]) -> FloatArray:
    """Positions (n, 3) of the first pixel of every slice.

    Args:
        series: the slices of one scan.
        normal: (3,) unit normal, to the head.
        problems: takes the codes of what was missing.
    """
    known = np.array([h.position_mm is not None for h in series])
    positions = np.array([h.position_mm or (0.0, 0.0, 0.0) for h in series])
    if known.any():
        middle = np.median(positions[known], axis=0)
        stray = known & (np.abs(positions - middle).max(axis=1) > STRAY_MM)
        if stray.any():
            problems.add("stray_position")
            known &= ~stray
    z = positions @ normal
    same = len(series) > 1 and _distinct(z[known]) == 1
    if not known.any() or same:
        problems.add("no_position")
        return _fill(series, positions, np.zeros(len(series), dtype=bool), normal, problems)
    collide = _collide(z, known)
    if collide.any():
        # Of slices at one place, those lie elsewhere whose SliceLocation says so.
        location = np.array([h.location_mm for h in series])
        rounded = _by_location(z, known, location, ROUNDED_MM)
        if rounded is not None and np.abs(rounded - z).max() <= ROUNDED_MM and collide.sum() > 2:
            problems.add("rounded_position")
            return positions + np.outer(rounded - z, normal)
        told = _by_location(z, known & ~collide if (~collide).sum() > 1 else known, location)
        wrong = collide & (np.abs(told - z) > AGREE_MM) if told is not None else collide & False
        known &= ~wrong
    if known.all():
        return positions
    problems.add("missing_position")
    return _fill(series, positions, known, normal, problems)

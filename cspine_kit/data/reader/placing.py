"""Where frames as stored lie on a study's upright grid.

In: headers of a settled scan. Out: the grid's axes, and for each frame the map from grid pixels to
stored pixels. Example::

    grid = settle_grid(series, positions, orientation, problems)
    row, col = grid.to_stored[z] @ (y, x, 1)         # where grid pixel y, x of slice z is stored
    y, x = to_grid(grid.to_stored[z]) @ (row, col, 1)

Slices are placed by position and orientation (PS3.3 C.7.6.2.1.1). A frame that needs no more than
flips is copied; others are moved or resampled.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.header import Header
from cspine_kit.data.reader.scans import Orientation, modal, normal_of

ASSUMED_FIELD_MM = 200.0
"""Field of view where no file tells PixelSpacing: usual for a neck."""
UPRIGHT_COSINE = float(np.cos(np.deg2rad(20.0)))
"""Frames turned by more in their plane are turned back."""
IN_PLACE_PX = 0.5
"""A frame whose corners lie nearer to where they belong is copied as it is."""
TILT_COSINE = 0.9998
"""About one degree: below it a series counts as tilted."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The upright grid of a scan.

    Attributes:
        shape: rows, columns.
        pitch_mm: distance of rows, of columns.
        axes: (2, 3) unit directions of increasing row index (to the back) and column index (left).
        origins_mm: (nz, 3) patient position of the center of pixel [0, 0] of each slice.
        flips: transpose, flip rows, flip columns: what turns a frame as stored into one of the
            grid where nothing else is needed.
        to_stored: (nz, 2, 3) from a grid pixel (row, column, 1) to the stored pixel of its frame.
        in_place: (nz,) bool, True where the flips alone do it.
    """

    shape: tuple[int, int]
    pitch_mm: tuple[float, float]
    axes: FloatArray
    origins_mm: FloatArray
    flips: tuple[bool, bool, bool]
    to_stored: FloatArray
    in_place: NDArray[np.bool_]


def to_grid(to_stored: FloatArray) -> FloatArray:
    """The inverse (2, 3) of one map: from a stored pixel (row, column, 1) to the grid."""
    inverse = np.linalg.inv(np.vstack([to_stored, [0.0, 0.0, 1.0]]))
    return inverse[:2]


def pitches_of(series: list[Header], problems: set[str]) -> list[tuple[float, float]]:
    """Distance of rows and of columns of every frame as stored, assumed where none tells it."""
    told = [h.spacing_mm for h in series if h.spacing_mm is not None]
    if not told:
        problems.add("assumed_spacing")
        guess = ASSUMED_FIELD_MM / max(series[0].rows, series[0].cols)
        return [(guess, guess)] * len(series)
    if any(h.spacing_mm is None or "missing_spacing" in h.notes for h in series):
        problems.add("missing_spacing")
    usual = modal(told)
    return [h.spacing_mm or usual for h in series]


def _nearest(orientation: Orientation) -> tuple[FloatArray, tuple[bool, bool, bool]]:
    """Axes (2, 3) along a frame's own edges, as near to upright as flips turn them."""
    row, col = np.array(orientation[:3]), np.array(orientation[3:])
    transpose = bool(abs(row[1]) > abs(row[0]))
    down, right = (row, col) if transpose else (col, row)
    flip_rows, flip_cols = bool(down[1] < 0), bool(right[0] < 0)
    axes = np.stack([-down if flip_rows else down, -right if flip_cols else right])
    return axes, (transpose, flip_rows, flip_cols)


def _upright(axes: FloatArray, normal: FloatArray, problems: set[str]) -> FloatArray:
    """The axes, or those of the patient where the frames lie turned in their plane."""
    left = np.array([1.0, 0.0, 0.0]) - normal[0] * normal
    left /= np.linalg.norm(left)
    if axes[1] @ left >= UPRIGHT_COSINE:
        return axes
    problems.add("turned")
    back = np.cross(normal, left)
    return np.stack([back, left])


def _reference(inside: FloatArray, z: FloatArray, shear: FloatArray) -> FloatArray:
    """In-plane place (n, 2) where each slice of a straight stack belongs.

    Args:
        inside: (n, 2) in-plane place of every frame, mm along the axes.
        z: (n,) along the normal.
        shear: (2,) in-plane way per mm of the normal of a stack that runs along the table.
    """

    def straight(slope: FloatArray) -> FloatArray:
        rest = inside - np.outer(z, slope)
        usual = modal(map(tuple, np.round(rest)))
        near = np.abs(rest - usual).max(axis=1) <= 1.0
        place: FloatArray = np.median(rest[near], axis=0) + np.outer(z, slope)
        return place

    ways = [straight(np.zeros(2)), straight(shear)]
    return min(ways, key=lambda way: float(np.median(np.abs(inside - way).max(1))))


def settle_grid(
    series: list[Header],
    positions: FloatArray,
    orientation: Orientation,
    problems: set[str],
) -> Grid:
    """The grid of a scan whose slices are in order.

    Args:
        series: headers in slice order.
        positions: (nz, 3) patient position of each frame's first stored pixel.
        orientation: the scan's.
        problems: takes what had to be done.
    """
    axes, flips = _nearest(orientation)
    normal = normal_of(orientation)
    upright = _upright(axes, normal, problems)
    turned = upright is not axes
    if any(flips) and not turned:
        problems.add("reoriented")
    pitches = pitches_of(series, problems)
    frames = [
        (h.rows, h.cols, round(y, 4), round(x, 4))
        for h, (y, x) in zip(series, pitches, strict=True)
    ]
    usual = modal(frames)
    if len(set(frames)) > 1:
        problems.add("mixed_shapes")
    rows, cols = usual[:2]
    pitch_y, pitch_x = pitches[frames.index(usual)]
    if abs(pitch_y - pitch_x) > 0.01 * pitch_x:
        problems.add("nonsquare_pixels")
    shape, pitch = ((rows, cols), (pitch_y, pitch_x))
    if flips[0]:
        shape, pitch = ((cols, rows), (pitch_x, pitch_y))
    size = np.array([(h.rows, h.cols) for h in series], dtype=np.float64)
    step = np.array(pitches)
    turns = np.array([h.orientation or orientation for h in series])
    row, col = turns[:, :3], turns[:, 3:]
    across = row * (step[:, 1:] * (size[:, 1:] - 1))
    along = col * (step[:, :1] * (size[:, :1] - 1))
    # Frames of one scan share the middle of their field, whatever their matrix.
    middle = positions + (across + along) / 2
    z = middle @ normal
    place = _reference(middle @ upright.T, z, (upright @ [0.0, 0.0, 1.0]) / normal[2])
    half = (np.array(shape) - 1) / 2 * np.array(pitch)
    origins = np.outer(z, normal) + (place - half) @ upright
    to_stored = _maps(
        origins,
        upright * np.array(pitch)[:, None],
        positions=positions,
        row=row,
        col=col,
        pitches=step,
    )
    sizes = size[:, ::-1] if flips[0] else size
    ends = np.array([(r, c, 1.0) for r in (0, shape[0] - 1) for c in (0, shape[1] - 1)])
    away = to_turned(to_stored, flips, size) @ ends.T - ends[:, :2].T
    in_place = (sizes == shape).all(axis=1) & (np.abs(away).max(axis=(1, 2)) <= IN_PLACE_PX)
    down, right = (across, along) if flips[0] else (along, across)
    first = positions + down * flips[1] + right * flips[2]
    origins[in_place] = first[in_place]
    if not in_place.all() and not turned and len(set(frames)) == 1:
        problems.add("moved_frames")
    return Grid(
        shape=shape,
        pitch_mm=pitch,
        axes=upright,
        origins_mm=origins,
        flips=flips,
        to_stored=to_stored,
        in_place=in_place,
    )


def _maps(
    origins: FloatArray,
    steps: FloatArray,
    *,
    positions: FloatArray,
    row: FloatArray,
    col: FloatArray,
    pitches: FloatArray,
) -> FloatArray:
    """`Grid.to_stored`: patient positions of grid pixels, seen along each frame's own edges.

    Args:
        origins: (n, 3) of the grid's first pixels.
        steps: (2, 3) way in mm from one grid row, one grid column to the next.
        positions: (n, 3) of the frames' first pixels.
        row, col: (n, 3) directions along a row and along a column of each frame.
        pitches: (n, 2) distance of rows and of columns of each frame.
    """
    away = origins - positions
    lines = []
    for direction, pitch in ((col, pitches[:, 0]), (row, pitches[:, 1])):
        start = np.einsum("nk,nk->n", away, direction)
        lines.append(np.column_stack([direction @ steps.T, start]) / pitch[:, None])
    return np.stack(lines, axis=1)


def to_turned(
    to_stored: FloatArray, flips: tuple[bool, bool, bool], size: FloatArray
) -> FloatArray:
    """Maps (n, 2, 3) to the pixels of frames after their flips instead of the stored ones.

    `size` (n, 2) holds rows and columns as stored.
    """
    transpose, flip_rows, flip_cols = flips
    turned = (to_stored[:, ::-1] if transpose else to_stored).copy()
    sizes = size[:, ::-1] if transpose else size
    for axis, flip in enumerate((flip_rows, flip_cols)):
        if flip:
            turned[:, axis] *= -1.0
            turned[:, axis, 2] += sizes[:, axis] - 1
    return turned

"""Where frames as stored lie on a study's upright grid.

In: headers of a settled scan. Out: the grid's axes, and for each frame the map from grid pixels to
stored pixels. Example::

    series = list(study.headers)
    positions = np.array([header.position_mm for header in series])
    grid = settle_grid(series, positions, series[0].orientation, set())
    row, col = grid.to_stored[0] @ (10, 20, 1)     # where grid pixel 10, 20 of slice 0 is stored
    y, x = to_grid(grid.to_stored[0]) @ (row, col, 1)

Slices are placed by position and orientation (PS3.3 C.7.6.2.1.1). A frame that needs no more than
flips is copied; others are moved or resampled.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.scans.find import Orientation, modal, normal_of

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
        flips: (nz, 3) bool: transpose, flip rows, flip columns; what turns a frame as stored
            upright.
        to_stored: (nz, 2, 3) from a grid pixel (row, column, 1) to the stored pixel of its frame.
        in_place: (nz,) bool, True where the flips alone do it.
    """

    shape: tuple[int, int]
    pitch_mm: tuple[float, float]
    axes: FloatArray
    origins_mm: FloatArray
    flips: NDArray[np.bool_]
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


class _Stored(NamedTuple):
    """Frames as they are stored: (n, 3) first pixel's position, directions along a row and along a
    column, (n, 2) pitches and size, both (rows, columns)."""

    positions: FloatArray
    row: FloatArray
    col: FloatArray
    pitches: FloatArray
    size: FloatArray

    @property
    def edges(self) -> tuple[FloatArray, FloatArray]:
        """From the first to the last pixel (n, 3) of a column, and of a row."""
        down, right = ((self.size - 1) * self.pitches).T[:, :, None]
        return self.col * down, self.row * right

    def maps(self, origins: FloatArray, steps: FloatArray) -> FloatArray:
        """`Grid.to_stored`: positions of grid pixels, seen along each frame's own edges.

        Args:
            origins: (n, 3) of the grid's first pixels.
            steps: (2, 3) way in mm from one grid row, one grid column to the next.
        """
        away, lines = origins - self.positions, []
        for direction, pitch in ((self.col, self.pitches[:, 0]), (self.row, self.pitches[:, 1])):
            start = np.einsum("nk,nk->n", away, direction)
            lines.append(np.column_stack([direction @ steps.T, start]) / pitch[:, None])
        return np.stack(lines, axis=1)


def _usual_frame(
    series: list[Header],
    pitches: list[tuple[float, float]],
    transposed: NDArray[np.bool_],
    problems: set[str],
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Shape and pitch of most frames after their flips."""
    frames = [
        (h.cols, h.rows, x, y) if transpose else (h.rows, h.cols, y, x)
        for h, (y, x), transpose in zip(series, pitches, transposed, strict=True)
    ]
    short = {f: (*f[:2], round(f[2], 4), round(f[3], 4)) for f in set(frames)}
    rounded = [short[frame] for frame in frames]
    rows, cols, y, x = frames[rounded.index(modal(rounded))]
    if len(set(rounded)) > 1:
        problems.add("mixed_shapes")
    if abs(y - x) > 0.01 * x:
        problems.add("nonsquare_pixels")
    return (rows, cols), (y, x)


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
    axes, normal = _nearest(orientation)[0], normal_of(orientation)
    told = {h.orientation for h in series}
    flips_of = {own: _nearest(own or orientation)[1] for own in told}
    flips = np.array([flips_of[h.orientation] for h in series])
    upright = _upright(axes, normal, problems)
    if flips.any() and upright is axes:
        problems.add("reoriented")
    pitches = pitches_of(series, problems)
    shape, pitch = _usual_frame(series, pitches, flips[:, 0], problems)
    ways = np.array([h.orientation or orientation for h in series])
    size = np.array([(h.rows, h.cols) for h in series], dtype=np.float64)
    stored = _Stored(positions, ways[:, :3], ways[:, 3:], np.array(pitches), size)
    along, across = stored.edges
    # Frames of one scan share the middle of their field, whatever their matrix.
    middle = positions + (along + across) / 2
    z = middle @ normal
    place = _reference(middle @ upright.T, z, (upright @ [0.0, 0.0, 1.0]) / normal[2])
    half = (np.array(shape) - 1) / 2 * np.array(pitch)
    origins = np.outer(z, normal) + (place - half) @ upright
    to_stored = stored.maps(origins, upright * np.array(pitch)[:, None])
    ends = np.array([(r, c, 1.0) for r in (0, shape[0] - 1) for c in (0, shape[1] - 1)])
    away = np.abs(to_turned(to_stored, flips, size) @ ends.T - ends[:, :2].T).max(axis=(1, 2))
    sizes = np.where(flips[:, :1], size[:, ::-1], size)
    in_place = (sizes == shape).all(axis=1) & (away <= IN_PLACE_PX)
    down, right = np.where(flips[:, :1], (across, along), (along, across))
    first = positions + down * flips[:, 1:2] + right * flips[:, 2:]
    origins[in_place] = first[in_place]
    if not in_place.all() and upright is axes and "mixed_shapes" not in problems:
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


def to_turned(to_stored: FloatArray, flips: NDArray[np.bool_], size: FloatArray) -> FloatArray:
    """Maps (n, 2, 3) to the pixels of frames after their `flips` (n, 3) instead of the stored ones.

    `size` (n, 2) holds rows and columns as stored.
    """
    transpose = flips[:, :1]
    turned = np.where(transpose[:, :, None], to_stored[:, ::-1], to_stored)
    sizes = np.where(transpose, size[:, ::-1], size)
    turned *= np.where(flips[:, 1:], -1.0, 1.0)[:, :, None]
    turned[:, :, 2] += flips[:, 1:] * (sizes - 1)
    return turned

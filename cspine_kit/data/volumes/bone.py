"""What is bone of the spine in a plane: as a mask, or with all the rest as air.

In: codes of a plane, the middle of its spine. Out: the same codes, 0 where there is no such bone.
Example::

    plane = volume.voxels.slices([30])[0]
    middle = tuple(volume.to_px(np.array([volume.middle_mm]))[0])
    shown = without_background(plane, volume.curve, volume.lattice.spacing_mm, middle)

No mask is asked for: scans to be judged have none. Bone is what is bright, closed over its marrow;
of the spine is what reaches close to its path, which the vertebra stage tells. Jaw, skull, ribs and
shoulders go with the muscles where they do not touch it.
"""

import cv2
import numpy as np

from cspine_kit.data.volumes.curve import Grey, HuCurve

BONE_HU = 150
"""Cortex and the denser part of marrow lie above; muscle and unenhanced vessels below."""

CLOSE_MM, EDGE_MM = 3.0, 2.0
"""Gaps of marrow that are closed, and how far around bone everything is kept: lines of a break
end at its edge."""

NEAR_MM = 20.0
"""From the middle of the spine: bone that comes closer is the spine's, with all that is on it."""


COARSE_MM = 0.6
"""Finer planes are thinned out to about this for a mask that is an image of its own: a quarter of
the time, and as good as the same mask at the pixels that networks see."""


def without_background(
    plane: Grey,
    curve: HuCurve,
    spacing_mm: tuple[float, float],
    middle: tuple[float | None, float],
) -> Grey:
    """A plane with everything as air that is not bone of the spine: see `bone_of_spine`."""
    return plane * bone_of_spine(plane, curve, spacing_mm, middle)


def thinned_bone(
    plane: Grey,
    curve: HuCurve,
    spacing_mm: tuple[float, float],
    middle: tuple[float | None, float],
) -> Grey:
    """`bone_of_spine` of every second or third pixel of a fine plane, in the plane's own pixels."""
    each = tuple(max(1, round(COARSE_MM / spacing)) for spacing in spacing_mm)
    few = np.ascontiguousarray(plane[:: each[0], :: each[1]])
    row, col = middle
    own = bone_of_spine(
        few,
        curve,
        (spacing_mm[0] * each[0], spacing_mm[1] * each[1]),
        (None if row is None else row / each[0], col / each[1]),
    )
    whole = own.repeat(each[0], axis=0).repeat(each[1], axis=1)
    return whole[: plane.shape[0], : plane.shape[1]]


def bone_of_spine(
    plane: Grey,
    curve: HuCurve,
    spacing_mm: tuple[float, float],
    middle: tuple[float | None, float],
) -> Grey:
    """1 where a plane shows bone of the spine and its edge, else 0.

    Args:
        plane: codes (rows, cols).
        curve: what they mean.
        spacing_mm: of rows and columns.
        middle: row and column of the middle of the spine; a row of None stands for all rows, where
            the spine runs down the plane.
    """
    row, col = middle
    y = np.zeros(plane.shape[0]) if row is None else np.arange(plane.shape[0]) - row
    x = np.arange(plane.shape[1]) - col
    near = np.hypot(y[:, None] * spacing_mm[0], x * spacing_mm[1]) <= NEAR_MM
    hard = (plane >= curve.encode(np.array([BONE_HU], np.int16))[0]).astype(np.uint8)
    closed = cv2.morphologyEx(hard, cv2.MORPH_CLOSE, _disc(CLOSE_MM, spacing_mm))
    parts = cv2.connectedComponents(closed)[1]
    own = np.isin(parts, np.setdiff1d(parts[near], [0])).astype(np.uint8)
    return cv2.dilate(own, _disc(EDGE_MM, spacing_mm)).astype(np.uint8)


def _disc(radius_mm: float, spacing_mm: tuple[float, float]) -> Grey:
    rows, cols = (2 * round(radius_mm / spacing) + 1 for spacing in spacing_mm)
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (cols, rows)).astype(np.uint8)

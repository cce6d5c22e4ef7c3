"""Where the neck lies in a scan: a coarse survey of some slices, and the center of the spine.

In: a `Geometry` and frames. Out: coarse planes, and y, x in native pixels. Example::

    survey = Survey(study)
    planes = {z: survey.coarse(study.hu[z]) for z in survey.slices}
    y, x = survey.center(planes)
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from cspine_kit.data.reader.pixels.values import HuArray
from cspine_kit.data.reader.scans.geometry import Geometry

GRID_MM = 4.0
"""Pixel size of the coarse planes, as near as whole native pixels come to it."""
SURVEY_MM = 5.0
"""Distance of the surveyed slices."""
BODY_HU, BONE_HU = -300, 200
MIDLINE_MM = 25.0
"""Half width of the strip around the body's middle in which bone counts as spine."""
NECK_SHARE = 0.8
"""Share of slices with the smallest body outline that may be neck: the shoulders are left out."""
BEHIND_MM = 17.0
"""From the median of midline bone, which the bodies decide, back to the middle of the spine with
its spinous processes: measured against masks of phantoms and on a real CT (docs/data.md)."""


def _outline(coarse: HuArray) -> NDArray[np.bool_]:
    """The body on one coarse slice: the largest piece of tissue without thin things."""
    tissue = (coarse > BODY_HU).astype(np.uint8)
    # A table is a few millimeters thick: two coarse pixels of opening take it off.
    opened = cv2.morphologyEx(tissue, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:
        return np.zeros(coarse.shape, dtype=bool)
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    found: NDArray[np.bool_] = labels == largest
    return found


class Survey:
    """Which slices of a study are looked at first, how coarse, and what they tell.

    Attributes:
        wanted_mm: whole multiples of `SURVEY_MM` in patient coordinates, from the head down, so
            that a copy that lacks some slices is surveyed at the same places.
        nearest: the slice index next to each of them.
        slices: those indices once each, ascending.
        step: native pixels (y, x) averaged into one coarse pixel.
    """

    def __init__(self, geometry: Geometry) -> None:
        z_mm, pitch = geometry.z_mm, geometry.spacing_mm[1:]
        self.wanted_mm = SURVEY_MM * np.arange(z_mm[0] // SURVEY_MM, z_mm[-1] // SURVEY_MM, -1)
        if not len(self.wanted_mm):
            self.wanted_mm = z_mm[:1]
        self.nearest = np.abs(z_mm[:, None] - self.wanted_mm[None]).argmin(axis=0)
        self.slices = [int(z) for z in np.unique(self.nearest)]
        self.step = tuple(
            min(max(1, round(GRID_MM / p)), size)
            for p, size in zip(pitch, geometry.shape, strict=True)
        )
        self._geometry = geometry

    def coarse(self, hu: HuArray) -> HuArray:
        """A frame (rows, cols) averaged to whole coarse pixels; a rest at the far edges is cut."""
        rows, cols = (size // n for size, n in zip(hu.shape, self.step, strict=True))
        cut = hu[: rows * self.step[0], : cols * self.step[1]]
        small = cv2.resize(np.ascontiguousarray(cut), (cols, rows), interpolation=cv2.INTER_AREA)
        return small.astype(np.int16, copy=False)

    def center(self, planes: dict[int, HuArray]) -> tuple[float, float]:
        """The middle of the cervical spine: y, x in native pixels.

        x is the middle of the body's outline; y follows the bone near it, slice by slice, on all
        but the widest slices (the shoulders). Without bone it is the outline's middle, without a
        body the middle of the frame.
        """
        bodies = [(plane, _outline(plane)) for plane in planes.values()]
        areas = np.array([int(body.sum()) for _, body in bodies])
        if not areas.any():
            rows, cols = self._geometry.shape
            return (rows - 1) / 2, (cols - 1) / 2
        limit = np.quantile(areas[areas > 0], NECK_SHARE)
        neck = [pair for pair, area in zip(bodies, areas, strict=True) if 0 < area <= limit]
        y, x = np.median([np.argwhere(body).mean(axis=0) for _, body in neck], axis=0)
        pitch = self._geometry.spacing_mm[1:]
        reach = MIDLINE_MM / (self.step[1] * pitch[1])
        bones = []
        for plane, body in neck:
            down, right = np.nonzero(body & (plane > BONE_HU))
            near = down[np.abs(right - x) <= reach]
            if len(near):
                bones.append(np.median(near))
        if bones:
            y = float(np.median(bones)) + BEHIND_MM / (self.step[0] * pitch[0])
        middle = [n * at + (n - 1) / 2 for n, at in zip(self.step, (y, x), strict=True)]
        rows, cols = self._geometry.shape
        return min(max(middle[0], 0.0), rows - 1.0), min(max(middle[1], 0.0), cols - 1.0)

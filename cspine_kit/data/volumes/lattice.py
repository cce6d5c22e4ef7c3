"""The grid on which the slices of a volume lie, and boxes of it.

In: a study's own frame and a spacing. Out: positions in mm and in pixels of the grid, resampled
slices. Example::

    lattice = Lattice.of(study.shape, study.spacing_mm[1:], spacing_mm=2.0)
    box = lattice.square(center_mm=(60.0, 60.0), side_mm=40.0)
    voxels = box.cut(lattice.resample(np.zeros(study.shape, np.uint8)))

A lattice is that of the whole frame, whatever part of it is kept: a voxel has one value in every
volume that holds it.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.volumes.curve import Grey

AREA_ZOOM = 1.5
"""Pixels per resampled pixel above which areas are averaged. Up to it, linear interpolation still
weighs every pixel, keeps more of what the coarser grid can show (its response falls as sinc(f)^2,
an area average's as sinc(f) sinc(zoom f)) and costs a fifth."""


def interpolation(zoom: float) -> int:
    """OpenCV's method to resample a plane by `zoom` pixels per new pixel."""
    return cv2.INTER_AREA if zoom > AREA_ZOOM else cv2.INTER_LINEAR


@dataclass(frozen=True)
class Box:
    """Rows y0..y1 and columns x0..x1 (ends excluded) of a lattice; it may reach over the frame."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0

    def cut(self, plane: Grey) -> Grey:
        """This part of a plane of the whole lattice; 0 outside of it."""
        inside = plane[max(self.y0, 0) : max(self.y1, 0), max(self.x0, 0) : max(self.x1, 0)]
        if inside.shape == self.shape:
            return inside
        part = np.zeros(self.shape, np.uint8)
        down, right = max(-self.y0, 0), max(-self.x0, 0)
        part[down : down + inside.shape[0], right : right + inside.shape[1]] = inside
        return part

    def overlap(self, other: "Box") -> "Box":
        """What both hold; where they lie apart, the pixel of `other` that is nearest."""
        y0, x0 = (
            min(max(mine, low), high - 1)
            for mine, low, high in zip(
                (self.y0, self.x0), (other.y0, other.x0), (other.y1, other.x1), strict=True
            )
        )
        y1, x1 = max(min(self.y1, other.y1), y0 + 1), max(min(self.x1, other.x1), x0 + 1)
        return Box(y0, x0, y1, x1)

    def union(self, other: "Box") -> "Box":
        """The smallest box that holds both."""
        return Box(
            min(self.y0, other.y0),
            min(self.x0, other.x0),
            max(self.y1, other.y1),
            max(self.x1, other.x1),
        )

    def holds(self, other: "Box") -> bool:
        """True where the other box leaves this one nowhere."""
        return (
            self.y0 <= other.y0 and self.x0 <= other.x0 and other.y1 <= self.y1
        ) and other.x1 <= self.x1


@dataclass(frozen=True)
class Lattice:
    """A study's frame resampled as a whole.

    Attributes:
        frame_px: rows, cols of the native frame.
        pitch_mm: y, x spacing of the native frame.
        shape: rows, cols of the lattice.
    """

    frame_px: tuple[int, int]
    pitch_mm: tuple[float, float]
    shape: tuple[int, int]

    @classmethod
    def of(
        cls, frame_px: tuple[int, int], pitch_mm: tuple[float, ...], spacing_mm: float
    ) -> "Lattice":
        """The lattice whose whole pixels come nearest to a spacing."""
        rows, cols = (
            max(1, round(n * p / spacing_mm)) for n, p in zip(frame_px, pitch_mm, strict=True)
        )
        y, x = map(float, pitch_mm)
        return cls((int(frame_px[0]), int(frame_px[1])), (y, x), (rows, cols))

    @property
    def zoom(self) -> tuple[float, float]:
        """Native pixels per pixel of the lattice, y, x."""
        y, x = (n / m for n, m in zip(self.frame_px, self.shape, strict=True))
        return y, x

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """y, x distance of its pixels."""
        y, x = (p * z for p, z in zip(self.pitch_mm, self.zoom, strict=True))
        return y, x

    @property
    def whole(self) -> Box:
        """All of it."""
        return Box(0, 0, *self.shape)

    def to_mm(self, px: FloatArray) -> FloatArray:
        """(n, 2) y, x in pixels of the lattice as mm of the study's frame (pixel centers)."""
        return ((np.asarray(px) + 0.5) * self.zoom - 0.5) * self.pitch_mm

    def to_px(self, mm: FloatArray) -> FloatArray:
        """(n, 2) y, x in mm of the study's frame as pixels of the lattice."""
        return (np.asarray(mm) / self.pitch_mm + 0.5) / self.zoom - 0.5

    def square(self, center_mm: tuple[float, float], side_mm: float) -> Box:
        """The box of a side around a center, to whole pixels; it may reach over the frame."""
        spans = [max(1, round(side_mm / s)) for s in self.spacing_mm]
        middle = self.to_px(np.array([center_mm]))[0]
        y0, x0 = (round(float(at) - (span - 1) / 2) for at, span in zip(middle, spans, strict=True))
        return Box(y0, x0, y0 + spans[0], x0 + spans[1])

    def around(self, low_mm: FloatArray, high_mm: FloatArray) -> Box:
        """The smallest box inside the frame that holds all between two corners y, x in mm."""
        y0, x0 = np.floor(self.to_px(np.asarray(low_mm, np.float64)[None])[0]).astype(int)
        y1, x1 = np.ceil(self.to_px(np.asarray(high_mm, np.float64)[None])[0]).astype(int)
        return Box(int(y0), int(x0), int(y1) + 1, int(x1) + 1).overlap(self.whole)

    def same_place(self, other: "Lattice", box: Box) -> Box:
        """What another lattice's box covers of this one, to whole pixels, inside the frame."""
        edges = np.array([[box.y0, box.x0], [box.y1, box.x1]]) - 0.5
        (y0, x0), (y1, x1) = np.rint(self.to_px(other.to_mm(edges)) + 0.5).astype(int)
        return Box(int(y0), int(x0), int(y1), int(x1)).overlap(self.whole)

    def resample(self, frame: Grey) -> Grey:
        """A native frame (rows, cols) uint8 on the whole lattice: areas averaged above `AREA_ZOOM`
        native pixels to one, linear up to it."""
        if self.shape == self.frame_px:
            return frame
        method = interpolation(min(self.zoom))
        return cv2.resize(frame, self.shape[::-1], interpolation=method)  # type: ignore[return-value]

    def resample_labels(self, labels: Grey) -> Grey:
        """Labels of a native frame on the whole lattice: those of the nearest native pixel."""
        rows, cols = (
            np.minimum(((np.arange(m) + 0.5) * z).astype(int), n - 1)
            for m, z, n in zip(self.shape, self.zoom, self.frame_px, strict=True)
        )
        return labels[rows[:, None], cols]

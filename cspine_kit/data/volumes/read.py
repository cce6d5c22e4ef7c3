"""From DICOM files to a study's volumes in one pass: each slice is decoded once.

In: a folder and the config's `volumes`. Out: the coarse volume, the fine one, or both. Example::

    volumes, geometry = read_both(folder, config.volumes)       # a kernel's: the wide fine one
    volumes.coarse.z_mm[0], volumes.fine.spacing_mm

A slice is decoded, encoded, resampled and cut at once, so that a study is never held whole at full
resolution. The coarse volume averages consecutive slices. Outside the frame voxels are air (0).
"""

from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

import numpy as np

from cspine_kit.core.config import VolumesConfig
from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.dicom import gather
from cspine_kit.data.reader.pixels.frames import Frames
from cspine_kit.data.reader.pixels.values import HuArray
from cspine_kit.data.reader.scans.geometry import Geometry
from cspine_kit.data.volumes.curve import Grey, HuCurve
from cspine_kit.data.volumes.cut import Cut, fine_lattice, wide_cut
from cspine_kit.data.volumes.lattice import Box, Lattice
from cspine_kit.data.volumes.neck import Survey
from cspine_kit.data.volumes.volume import Held, Volume, Volumes, nearest_slices

Allocate = Callable[[tuple[int, int, int]], Grey]
"""Gives memory (z, y, x) uint8 for voxels, which may be a mapped file."""


def _in_memory(shape: tuple[int, int, int]) -> Grey:
    return np.empty(shape, np.uint8)


@dataclass(frozen=True)
class _Part:
    """What is kept of each slice on one lattice."""

    lattice: Lattice
    box: Box
    voxels: Grey

    def of(self, codes: Grey) -> Grey:
        return self.box.cut(self.lattice.resample(codes))


class _Pass:
    """One pass over the frames of a study.

    `z_mm` are the slices that the volumes shall have; the frame next to each one fills it, so that
    a slice that cannot be decoded shows its neighbor.
    """

    def __init__(
        self, frames: Frames, config: VolumesConfig, z_mm: FloatArray | None, threads: int
    ) -> None:
        geometry = frames.geometry
        self.frames, self.config, self.threads = frames, config, threads
        self.curve = HuCurve.of(config.curve)
        self.z_mm = geometry.z_mm if z_mm is None else z_mm
        self.source = nearest_slices(geometry.z_mm, self.z_mm)
        self._seen = dict[int, Grey]()

    def codes(self, k: int) -> Grey:
        """Codes of the frame that fills slice k, as large as it is."""
        z = int(self.source[k])
        seen = self._seen.pop(z, None)  # dropped with its slice, so that the two hardly add up
        return self.curve.encode(self.frames.hu(z)) if seen is None else seen

    def coarse(self) -> Volume:
        """The coarse volume, its voxels still to be filled."""
        geometry, config = self.frames.geometry, self.config.coarse
        lattice = Lattice.of(geometry.shape, geometry.spacing_mm[1:], config.spacing_mm)
        y, x = (c * p for c, p in zip(self._survey(), geometry.spacing_mm[1:], strict=True))
        box = lattice.square((y, x), config.field_mm)
        group = group_of(geometry.spacing_mm[0], config.spacing_mm)
        starts = np.arange(0, len(self.z_mm), group)
        counts = np.diff([*starts, len(self.z_mm)])
        return Volume(
            study_uid=geometry.study_uid,
            voxels=Held(_in_memory((len(starts), *box.shape))),
            z_mm=np.add.reduceat(self.z_mm, starts) / counts,
            step_mm=group * float(geometry.spacing_mm[0]),
            lattice=lattice,
            corner=(box.y0, box.x0),
            curve=self.curve,
            group=group,
        )

    def fine(self, lattice: Lattice, cut: Cut, allocate: Allocate) -> Volume:
        """A fine volume, its voxels still to be filled."""
        kept = slice(cut.first, cut.last + 1)
        return Volume(
            study_uid=self.frames.geometry.study_uid,
            voxels=Held(allocate((cut.last + 1 - cut.first, *cut.box.shape))),
            z_mm=self.z_mm[kept],
            step_mm=float(self.frames.geometry.spacing_mm[0]),
            lattice=lattice,
            corner=(cut.box.y0, cut.box.x0),
            curve=self.curve,
            first_slice=cut.first,
        )

    def _survey(self) -> tuple[float, float]:
        """y, x of the neck in native pixels; the frames it looks at are kept as codes."""
        survey = Survey(self.frames.geometry)
        planes = dict[int, HuArray]()

        def look(z: int) -> None:
            hu = self.frames.hu(z)
            planes[z] = survey.coarse(hu)
            # A map of its own goes back to the system with its slice; malloc would keep the memory.
            memory = np.frombuffer(mmap(-1, hu.size), np.uint8).reshape(hu.shape)
            self._seen[z] = self.curve.encode(hu, memory)

        self.frames.each(look, survey.slices, self.threads)
        return survey.center({z: planes[z] for z in survey.slices})

    def fill(self, coarse: Volume | None, fine: Volume | None) -> None:
        """Decode what the volumes show, group of slices by group."""
        group = coarse.group if coarse is not None else 1
        first = fine.first_slice if coarse is None and fine is not None else 0
        last = len(self.z_mm) if fine is None else first + len(fine.z_mm)
        parts = [None if volume is None else _part(volume) for volume in (coarse, fine)]

        def unit(at: int) -> None:
            own = range(first + at * group, min(first + (at + 1) * group, last))
            total: np.ndarray | None = None
            for k in own:
                codes = self.codes(k)
                if parts[1] is not None:
                    parts[1].voxels[k - first] = parts[1].of(codes)
                if parts[0] is not None:
                    plane = parts[0].of(codes)
                    total = plane.astype(np.uint32) if total is None else total + plane
            if parts[0] is not None and total is not None:
                parts[0].voxels[at] = (total + len(own) // 2) // len(own)

        self.frames.each(unit, range(-(-(last - first) // group)), self.threads)


def _part(volume: Volume) -> _Part:
    voxels = volume.voxels
    if not isinstance(voxels, Held):
        raise TypeError("only voxels in memory can be filled")
    return _Part(volume.lattice, volume.box, voxels.array)


def group_of(native_mm: float, spacing_mm: float) -> int:
    """Native slices that make one coarse slice."""
    return max(1, round(spacing_mm / native_mm))


def read_both(
    folder: Path,
    config: VolumesConfig,
    study_uid: str | None = None,
    *,
    threads: int = 0,
    allocate: Allocate = _in_memory,
) -> tuple[Volumes, Geometry]:
    """The coarse volume and a fine one of all slices in the coarse field.

    Args:
        folder: the study's files.
        config: of the volumes.
        study_uid: name in errors and results; the folder's name where it is None.
        threads: that decode at once; 0 = usable cores.
        allocate: memory for the voxels of the fine volume.

    Returns:
        Both, and the geometry with the reader's problem codes.

    Raises:
        StudyError: no slice at all can be read, or none is axial.
    """

    def take(frames: Frames) -> Volumes:
        reading = _Pass(frames, config, None, threads)
        coarse = reading.coarse()
        lattice = fine_lattice(coarse, config.fine)
        cut = wide_cut(coarse, lattice, len(reading.z_mm))
        fine = reading.fine(lattice, cut, allocate)
        reading.fill(coarse, fine)
        return Volumes(coarse, fine)

    geometry, volumes = gather(folder, study_uid, take)
    return volumes, geometry


def read_coarse(
    folder: Path,
    config: VolumesConfig,
    study_uid: str | None = None,
    *,
    z_mm: FloatArray | None = None,
    threads: int = 0,
) -> tuple[Volume, Geometry]:
    """The coarse volume alone; arguments, and what is raised, as of `read_both`.

    Args:
        z_mm: native slices that it shall be made of, where not all of them may be readable.
    """

    def take(frames: Frames) -> Volume:
        reading = _Pass(frames, config, z_mm, threads)
        coarse = reading.coarse()
        reading.fill(coarse, None)
        return coarse

    geometry, coarse = gather(folder, study_uid, take)
    return coarse, geometry


def read_fine(
    folder: Path,
    config: VolumesConfig,
    cut: Cut,
    study_uid: str | None = None,
    *,
    z_mm: FloatArray | None = None,
    threads: int = 0,
) -> tuple[Volume, Geometry]:
    """A fine volume of some slices, which alone are decoded; the rest as `read_coarse`."""

    def take(frames: Frames) -> Volume:
        reading = _Pass(frames, config, z_mm, threads)
        shape, pitch = frames.geometry.shape, frames.geometry.spacing_mm[1:]
        lattice = Lattice.of(shape, pitch, config.fine.spacing_mm)
        fine = reading.fine(lattice, cut, _in_memory)
        reading.fill(None, fine)
        return fine

    geometry, fine = gather(folder, study_uid, take)
    return fine, geometry

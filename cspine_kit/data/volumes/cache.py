"""The cache: files of volumes, made where they are missing or no longer fit, and their tables.

In: tables of the data room and a competition. Out: `<study_uid>.arrow` below a folder, and rows of
the table `coarse` or `fine`. Example::

    cache = Cache.coarse(config, paths)
    rows, failures = cache.build(studies, slices, competition)

A file says in its metadata what it was made by (`recipe`) and from which files (`source`). It is
kept as long as both are as they were; where the study's folder is not there, as on a machine that
got finished volumes alone, the recipe decides. A volume has the slices that the index lists: where
one cannot be decoded, its neighbor stands in.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.config import Config, VolumesConfig
from cspine_kit.core.errors import ArtifactError, DataError, Unfinished
from cspine_kit.core.execution import Outcome, map_studies, usable_cores
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.room import room_left_gb
from cspine_kit.core.runs import file_state, fingerprint, listing_fingerprint
from cspine_kit.core.tables import CONTRACTS
from cspine_kit.data.masks import MASKS_VERSION, read_mask
from cspine_kit.data.reader.dicom import READER_VERSION, read_study
from cspine_kit.data.volumes.cut import Cut
from cspine_kit.data.volumes.read import group_of, read_coarse, read_fine
from cspine_kit.data.volumes.shards import finished
from cspine_kit.data.volumes.store import ENDING, open_volume, write_volume
from cspine_kit.data.volumes.volume import Volume, with_mask

log = logging.getLogger(__name__)

READ_MB_PER_S = 60.0
"""Rough rate at which one core turns files into a volume; only for the estimate told beforehand."""

COMPRESSED = 0.7
"""Bytes of a stored voxel; 0.38 to 0.66 were measured (docs/data.md)."""


@dataclass(frozen=True)
class Job:
    """One file to make: from a folder, where there is one from a mask, of some slices, by a cut."""

    folder: Path
    mask: Path | None
    path: Path
    source: str
    z_mm: FloatArray
    cut: Cut | None
    voxels: int


def _source(folder: Path, mask: Path | None) -> str:
    """Fingerprint of a study's files as they lie there, by listing; "" without a folder."""
    if not folder.is_dir():
        return ""
    state = (MASKS_VERSION, file_state(mask)) if mask is not None else None
    return fingerprint(listing_fingerprint(folder), state)


def _make(job: Job, config: VolumesConfig, recipe: str, threads: int) -> bool:
    """Read one study and write its file; False where there was no room for it (`core.room`)."""
    if room_left_gb() < job.voxels / 1e9:
        return False
    uid = job.path.name.removesuffix(ENDING)
    read = read_coarse if job.cut is None else partial(read_fine, cut=job.cut)
    volume, geometry = read(job.folder, config, study_uid=uid, z_mm=job.z_mm, threads=threads)
    if job.mask is not None:
        study = read_study(job.folder, uid, threads=threads)
        volume = with_mask(volume, read_mask(job.mask, study), study.z_mm)
    stand_ins = len(job.z_mm) - len(geometry.z_mm)
    facts = {"recipe": recipe, "source": job.source, "stand_ins": stand_ins}
    write_volume(volume, job.path, facts)
    return True


def _row(path: Path, volume: Volume, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "study_uid": volume.study_uid,
        "path": str(path),
        **dict(zip(("nz", "ny", "nx"), volume.voxels.shape, strict=True)),
        **dict(zip(("spacing_z", "spacing_y", "spacing_x"), volume.spacing_mm, strict=True)),
        **dict(zip(("corner_y_px", "corner_x_px"), volume.corner, strict=True)),
        "first_slice": volume.first_slice,
        "group": volume.group,
        "stand_ins": int(facts["stand_ins"]),
        "has_mask": volume.mask is not None,
        **{name: facts[name] for name in ("checksum", "mask_checksum")},
    }


def _too_much(stale: Mapping[str, Job], most_gb: float) -> list[str]:
    """Studies whose files do not fit into `most_gb` any more, after those before them."""
    filled = np.cumsum([COMPRESSED * job.voxels for job in stale.values()]) / 1e9
    return [uid for uid, size in zip(stale, filled, strict=True) if size > most_gb]


@dataclass(frozen=True)
class Cache:
    """The files of one kind of volumes.

    Attributes:
        name: coarse or fine.
        config: of the run.
        folder: where files are made.
        shipped: further folders that may hold them.
        recipe: fingerprint of what decides their voxels besides the study's files.
    """

    name: str
    config: Config
    folder: Path
    shipped: tuple[Path, ...]
    recipe: str

    @classmethod
    def coarse(cls, config: Config, paths: RunPaths) -> "Cache":
        """Files of coarse volumes."""
        volumes = config.volumes
        recipe = fingerprint(READER_VERSION, "coarse", volumes.curve, volumes.coarse)
        return cls("coarse", config, paths.cache / "coarse", volumes.shipped, recipe)

    @classmethod
    def fine(cls, config: Config, paths: RunPaths) -> "Cache":
        """Files of fine volumes: field and margin decide their extent, not their voxels."""
        volumes, spacing = config.volumes, config.volumes.fine.spacing_mm
        recipe = fingerprint(READER_VERSION, "fine", volumes.curve, volumes.coarse, spacing)
        return cls("fine", config, paths.cache / "fine", volumes.shipped, recipe)

    def _kept(self, path: Path, source: str, needed: Cut | None) -> dict[str, Any] | None:
        """The row of a file that can be used as it is; None where it must be made."""
        try:
            volume, facts = open_volume(path)
        except ArtifactError as error:
            log.warning("cache: %s is made again: %s", path, error)
            return None
        if facts.get("recipe") != self.recipe or (source and facts.get("source") != source):
            return None
        first, last = volume.first_slice, volume.first_slice + len(volume.z_mm) - 1
        if needed is not None and not Cut(volume.box, first, last).holds(needed):
            return None
        return _row(path, volume, facts)

    def states(self, uids: Iterable[str], competition: Competition) -> dict[str, Any]:
        """What would have to change before studies that failed are tried again."""
        failed = list(uids)
        there = finished(self.name, self.folder, *self.shipped) if failed else {}
        return {
            uid: (
                listing_fingerprint(competition.images("train", uid)),
                file_state(there[uid]) if uid in there else None,
            )
            for uid in failed
        }

    def build(
        self,
        studies: pd.DataFrame,
        slices: pd.DataFrame,
        competition: Competition,
        cuts: Mapping[str, tuple[Cut, Cut]] | None = None,
        *,
        failed: Mapping[str, str] | None = None,
        most_gb: float | None = None,
    ) -> tuple[pd.DataFrame, dict[str, str]]:
        """Make every file that is missing or does not fit.

        Args:
            studies: rows of the `studies` table.
            slices: the `slices` table, or more of it than is needed.
            competition: where their files lie.
            cuts: of fine volumes by study_uid: what a file must hold, and what is cut where it has
                to be made.
            failed: reasons by study_uid of an earlier try; they stand where the scan is not here.
            most_gb: make no more than this, in 10^9 bytes as they are estimated beforehand; nor is
                more made than there is room for (`core.room`).

        Returns:
            Rows of the table, and reasons by study_uid where there is none.

        Raises:
            DataError: not enough room on the disk.
            Unfinished: `most_gb` or the room left some for another time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        listed = dict(tuple(slices.sort_values("slice_idx").groupby("study_uid")["z_mm"]))
        there = finished(self.name, self.folder, *self.shipped)
        own = finished(self.name, self.folder)
        rows, stale = dict[str, dict[str, Any]](), dict[str, Job]()
        failures = dict[str, str]()
        for row in studies.itertuples(index=False):
            uid = str(row.study_uid)
            folder = competition.images(row.split, uid)
            mask = competition.segmentation(uid) if row.has_mask else None
            needed, cut = (cuts or {}).get(uid, (None, None))
            source = _source(folder, mask)
            # Files made elsewhere were made of scans with other times: there the recipe decides.
            known = source if uid in own else ""
            kept = self._kept(there[uid], known, needed) if uid in there else None
            if kept is not None:
                rows[uid] = kept
            elif uid in (failed or {}) and not folder.is_dir():
                failures[uid] = (failed or {})[uid]
            else:
                path = own.get(uid, self.folder / f"{uid}{ENDING}")
                z_mm = listed[uid].to_numpy(np.float64)
                voxels = self._voxels(row.n_slices, row.spacing_z) if cut is None else cut.voxels
                stale[uid] = Job(folder, mask, path, source, z_mm, cut, voxels)
        left = [] if most_gb is None else _too_much(stale, most_gb)
        stale = {uid: job for uid, job in stale.items() if uid not in left}
        if stale:
            outcome = self._make_all(stale, studies)
            failures |= outcome.failures
            left += [uid for uid, made in outcome.results.items() if not made]
        if left:
            raise Unfinished(f"{len(left)} {self.name} volumes of {len(studies)} are left")
        for uid, job in stale.items():
            if uid not in failures:
                volume, facts = open_volume(job.path)
                rows[uid] = _row(job.path, volume, facts)
        for uid, entry in rows.items():
            if entry["stand_ins"] > 0:
                count = entry["stand_ins"]
                log.warning("study %s: %d slices show a neighbor, see cspine inspect", uid, count)
        ordered = [rows[uid] for uid in studies["study_uid"] if uid in rows]
        return pd.DataFrame(ordered, columns=list(CONTRACTS[self.name].columns)), failures

    def _make_all(self, stale: Mapping[str, Job], studies: pd.DataFrame) -> Outcome[bool]:
        execution = self.config.execution
        jobs = execution.jobs
        # Processes share the cores; threads take what they leave.
        threads = max(1, usable_cores() // min(jobs or usable_cores(), len(stale)))
        self._check_disk(studies[studies["study_uid"].isin(list(stale))], stale)
        return map_studies(
            partial(_make, config=self.config.volumes, recipe=self.recipe, threads=threads),
            stale,
            jobs=jobs,
            title=f"{self.name} volumes",
            backend=execution.backend,
        )

    def _voxels(self, slices: int, spacing_z: float) -> int:
        """Voxels of a coarse volume."""
        grid = self.config.volumes.coarse
        return int(np.ceil(slices / group_of(spacing_z, grid.spacing_mm))) * grid.side_px**2

    def _check_disk(self, studies: pd.DataFrame, stale: Mapping[str, Job]) -> None:
        """Tell the size and rough time of the files before they are made.

        Raises:
            DataError: the disk has no room for them.
        """
        cuts = [job.cut for job in stale.values() if job.cut is not None]
        voxels, share = sum(job.voxels for job in stale.values()), 1.0
        if cuts:
            share = sum(cut.last + 1 - cut.first for cut in cuts) / studies["n_slices"].sum()
        source = float((studies["n_slices"] * studies["rows"] * studies["cols"]).sum()) * 2 * share
        free = shutil.disk_usage(self.folder).free
        size, cores = voxels * COMPRESSED, max(1, self.config.execution.jobs)
        log.info(
            "cache: %d %s volumes, %.2f GB, about %.2f GB on disk (%.1f GB free), about %.1f "
            "minutes",
            len(studies),
            self.name,
            voxels / 1e9,
            size / 1e9,
            free / 1e9,
            source / 1e6 / READ_MB_PER_S / cores / 60,
        )
        if size > free:
            raise DataError(
                f"{self.name} volumes need about {size / 1e9:.1f} GB in {self.folder}, "
                f"{free / 1e9:.1f} GB are free; make room, or raise "
                f"volumes.{self.name}.spacing_mm or lower volumes.{self.name}.field_mm"
            )

"""The cache: every study decoded once into one compact volume file.

In: the tables `studies` and `slices` and a competition. Out: `<cache>/<study_uid>.npy`, beside each
its row as JSON and its key, and the `volumes` table. Example::

    volumes, failures = build_cache(studies, slices, competition, config.cache, paths, jobs=2)

A volume has the slices that the index lists: where one cannot be decoded, its neighbor stands in.
It is made again only where its folder's listing, the config or the reader's version changed.
"""

import hashlib
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.config import CacheConfig
from cspine_kit.core.errors import DataError
from cspine_kit.core.execution import Backend, map_studies, usable_cores
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.runs import (
    fingerprint,
    is_fresh,
    listing_fingerprint,
    publish,
    read_json,
    write_json,
)
from cspine_kit.core.tables import CONTRACTS
from cspine_kit.data.reader.dicom import READER_VERSION
from cspine_kit.data.volumes.volume import read_volume

log = logging.getLogger(__name__)

READ_MB_PER_S = 60.0
"""Rough rate at which one core turns files into a volume; only for the estimate told beforehand."""


Job = tuple[Path, Path, str, FloatArray]
"""Folder of the files, the volume's path, its key, and z of the slices that the index lists."""


def volume_row(path: Path, job: Job, config: CacheConfig, threads: int) -> dict[str, Any]:
    """Read one study, write its volume to `path`, return its row of `volumes`.

    `stand_ins` in the row counts slices that could not be decoded.
    """
    folder, study_uid, z_mm = job[0], job[1].stem, job[3]
    volume, _ = read_volume(folder, config, study_uid, threads=threads)
    voxels, stand_ins = volume.voxels, len(z_mm) - len(volume.z_mm)
    if stand_ins:
        voxels = voxels[np.abs(z_mm[:, None] - volume.z_mm[None]).argmin(axis=1)]
    with path.open("wb") as handle:
        np.save(handle, voxels, allow_pickle=False)
    nz, ny, nx = voxels.shape
    return {
        "study_uid": study_uid,
        "stand_ins": stand_ins,
        "dtype": str(voxels.dtype),
        "checksum": hashlib.sha256(voxels.data).hexdigest(),
        **dict(zip(("nz", "ny", "nx"), (nz, ny, nx), strict=True)),
        **dict(zip(("spacing_z", "spacing_y", "spacing_x"), volume.spacing_mm, strict=True)),
        **dict(zip(("offset_y_px", "offset_x_px"), volume.offset_px, strict=True)),
        **dict(zip(("zoom_y", "zoom_x"), volume.zoom, strict=True)),
        "hu_low": config.hu_low,
        "hu_high": config.hu_high,
    }


def _cache_one(job: Job, config: CacheConfig, threads: int) -> dict[str, Any]:
    """Write one volume and its row; the volume's key is written last."""
    _, path, key, _ = job
    with publish(path, key) as temporary:
        row = volume_row(temporary, job, config, threads)
        write_json(_row_path(path), row, key)
    return row


def _row_path(path: Path) -> Path:
    return path.with_suffix(".json")


def check_disk(studies: pd.DataFrame, config: CacheConfig, folder: Path, jobs: int) -> None:
    """Tell the size and rough time of a cache before it is made.

    Raises:
        DataError: the disk has no room for it.
    """
    size = float(studies["n_slices"].sum()) * config.side_px**2
    source = float((studies["n_slices"] * studies["rows"] * studies["cols"]).sum()) * 2
    free = shutil.disk_usage(folder).free
    minutes = source / 1e6 / READ_MB_PER_S / max(1, jobs) / 60
    log.info(
        "cache: %d volumes, %.2f GB on disk (%.1f GB free), about %.1f minutes",
        len(studies),
        size / 1e9,
        free / 1e9,
        minutes,
    )
    if size > free:
        raise DataError(
            f"the cache needs {size / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free; "
            "make room, or raise cache.spacing_mm or lower cache.field_mm"
        )


def build_cache(
    studies: pd.DataFrame,
    slices: pd.DataFrame,
    competition: Competition,
    config: CacheConfig,
    paths: RunPaths,
    *,
    jobs: int,
    backend: Backend = "local",
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Make every volume that is missing or stale.

    Args:
        studies: rows of the `studies` table.
        slices: the `slices` table, or more of it than is needed.
        competition: where their files lie.
        config: spacing, field and window.
        paths: the run's folder; volumes go to its `cache`.
        jobs: processes, 0 = usable cores.
        backend: "ray" spreads studies over a cluster whose nodes share these folders.

    Returns:
        Rows of `volumes`, and reasons by study_uid where there is none.

    Raises:
        DataError: not enough room on the disk.
    """
    paths.cache.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    stale: dict[str, Job] = {}
    listed = dict(tuple(slices.sort_values("slice_idx").groupby("study_uid")["z_mm"]))
    for uid, split in zip(studies["study_uid"], studies["split"], strict=True):
        folder, path = competition.images(split, uid), paths.cache / f"{uid}.npy"
        key = fingerprint(READER_VERSION, listing_fingerprint(folder), config)
        if is_fresh(path, key) and is_fresh(_row_path(path), key):
            rows[uid] = read_json(_row_path(path))
        else:
            stale[uid] = (folder, path, key, listed[uid].to_numpy(np.float64))
    failures: dict[str, str] = {}
    if stale:
        # Processes share the cores; threads take what they leave.
        threads = max(1, usable_cores() // min(jobs or usable_cores(), len(stale)))
        check_disk(studies[studies["study_uid"].isin(list(stale))], config, paths.cache, jobs)
        outcome = map_studies(
            partial(_cache_one, config=config, threads=threads),
            stale,
            jobs=jobs,
            title="cache",
            backend=backend,
        )
        rows.update(outcome.results)
        failures = outcome.failures
    for uid, row in rows.items():
        if row["stand_ins"]:
            count = row["stand_ins"]
            log.warning("study %s: %d slices show a neighbor, see cspine inspect", uid, count)
    table = [{**row, "path": str(paths.cache / f"{uid}.npy")} for uid, row in rows.items()]
    return pd.DataFrame(table, columns=list(CONTRACTS["volumes"].columns)), failures

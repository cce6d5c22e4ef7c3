"""The data room's stages for a config: index, folds, cache; each skipped where it is fresh.

In: a config and its run folder. Out: tables `studies`, `slices`, `volumes` and `folds.csv`.
Example: `prepare(config, paths)`.
"""

import logging
from pathlib import Path

import pandas as pd

from cspine_kit.core.config import Config
from cspine_kit.core.errors import DataError
from cspine_kit.core.execution import Outcome, require_some
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.runs import (
    file_hash,
    fingerprint,
    is_fresh,
    listing_fingerprint,
    publish,
    read_json,
    run_record,
    stored_key,
    write_json,
)
from cspine_kit.core.tables import read_table, write_table
from cspine_kit.data.folds import settle_folds
from cspine_kit.data.index import build_index
from cspine_kit.data.masks import MASKS_VERSION
from cspine_kit.data.reader.dicom import READER_VERSION
from cspine_kit.data.volumes.cache import build_cache
from cspine_kit.data.volumes.mapped import MappedVoxels

log = logging.getLogger(__name__)

SHOWN = 3
INDEX_VERSION = 3
"""Raised when the same files give another index: labels, boxes and groups are read in its code."""


def require_competition(config: Config) -> Competition:
    """The competition folder.

    Raises:
        DataError: it is absent or incomplete; names what to download and how.
    """
    competition = Competition(config.competition.dir)
    needed = [
        competition.train_csv,
        competition.root / "train_images",
        competition.root / "segmentations",
        competition.boxes_csv,
    ]
    missing = [path for path in needed if not path.exists()]
    if missing:
        raise DataError(
            f"competition data not found in {competition.root}: missing "
            f"{', '.join(path.name for path in missing)}. {_remedy(config, competition, missing)}"
        )
    return competition


def _remedy(config: Config, competition: Competition, missing: list[Path]) -> str:
    """What to do about files that a competition folder lacks."""
    root, slug = competition.root, config.competition.slug
    packed = [name for path in missing if (name := path.with_name(f"{path.name}.zip")).exists()]
    if packed:
        return f"Unzip {', '.join(map(str, packed))} there"
    if (root / slug / "train.csv").exists():
        return f"They lie one folder deeper: set competition.dir to {root / slug}"
    if (whole := root / f"{slug}.zip").exists():
        return f"Unzip {whole} there (about 300 GB)"
    return (
        f"Accept the rules at kaggle.com/c/{slug}, then run "
        f"`kaggle competitions download -c {slug} -p {root}` and unzip it there "
        "(about 300 GB), or set competition.dir to where it lies"
    )


def index_key(config: Config, competition: Competition) -> str:
    """Fingerprint of everything the index reads, from listings alone."""
    tables = [
        file_hash(path) if path.exists() else None
        for path in (competition.train_csv, competition.boxes_csv, competition.test_csv)
    ]
    folders = sorted(
        f"{images.name}/{folder.name}" + listing_fingerprint(folder)
        for images in (competition.train_images, competition.test_images)
        for folder in images.glob("*")
    )
    masks = listing_fingerprint(competition.segmentations)
    versions = (READER_VERSION, INDEX_VERSION, MASKS_VERSION)
    return fingerprint(versions, config.exclude, tables, folders, masks)


def run_index(config: Config, paths: RunPaths) -> None:
    """Write `studies`, `slices` and `index/groups.csv`.

    `index/failures.json` says which studies are left out, `index/remarks.json` what is wrong with
    masks and boxes of those that are kept.
    """
    competition = require_competition(config)
    key = index_key(config, competition)
    made = (paths.table("studies"), paths.table("slices"), _groups_path(paths))
    if all(is_fresh(path, key) for path in made):
        return
    with run_record(paths.root / "index", "index", inputs={"key": key}) as results:
        studies, slices, groups, failures, remarks = build_index(
            competition,
            config.exclude,
            jobs=config.execution.jobs,
            scratch=paths.root / "index" / "studies",
            backend=config.execution.backend,
        )
        write_json(_failures_path(paths), failures)
        write_json(paths.root / "index" / "remarks.json", remarks)
        together = groups[groups["reason"] != ""]
        results.update(studies=len(studies), slices=len(slices), failures=len(failures))
        results["remarks"] = sum(map(len, remarks.values()))
        results["grouped"] = len(together)
        with publish(_groups_path(paths), key) as temporary:
            groups.to_csv(temporary, index=False)
        write_table(slices, paths.table("slices"), "slices", key)
        write_table(studies, paths.table("studies"), "studies", key)
    if failures:
        log.warning("index: %d studies left out, see index/failures.json", len(failures))
    for uid, lines in remarks.items():
        log.warning("index: study %s: %s", uid or "(none)", "; ".join(lines[:SHOWN]))
    for uid, reason in together[["study_uid", "reason"]].itertuples(index=False):
        log.warning("index: study %s shares its fold with others: %s", uid, reason)


def _failures_path(paths: RunPaths) -> Path:
    """JSON: why studies are left out of the index, by study_uid."""
    return paths.root / "index" / "failures.json"


def _groups_path(paths: RunPaths) -> Path:
    """CSV study_uid, group, reason: which training studies may not be parted."""
    return paths.root / "index" / "groups.csv"


def run_folds(config: Config, paths: RunPaths) -> None:
    """Write or check the folds; an existing CSV wins over the generator."""
    studies = read_table(paths.table("studies"), "studies")
    groups = pd.read_csv(_groups_path(paths), dtype=str)[["study_uid", "group"]]
    training = studies[studies["split"] == "train"].merge(groups, on="study_uid", how="left")
    lost = read_json(_failures_path(paths))
    settle_folds(training, config.folds, paths.folds, config.seed, lost)


def run_cache(config: Config, paths: RunPaths) -> None:
    """Write one compact volume per training study and the table `volumes`.

    Raises:
        DataError: not one study can be read; carries the first reason.
    """
    competition = require_competition(config)
    studies = read_table(paths.table("studies"), "studies")
    key = fingerprint(READER_VERSION, stored_key(paths.table("studies")), config.cache)
    if is_fresh(paths.table("volumes"), key) and not _forget_damaged(paths):
        return
    with run_record(paths.cache, "cache", inputs={"key": key}) as results:
        volumes, failures = build_cache(
            studies[studies["split"] == "train"],
            read_table(paths.table("slices"), "slices"),
            competition,
            config.cache,
            paths,
            jobs=config.execution.jobs,
            backend=config.execution.backend,
        )
        write_json(paths.cache / "failures.json", failures)
        require_some(Outcome(volumes.to_dict("index"), failures), "cache")
        results.update(volumes=len(volumes), failures=len(failures))
        write_table(volumes, paths.table("volumes"), "volumes", key)
    if failures:
        log.warning("cache: %d studies left out, see cache/failures.json", len(failures))


def _forget_damaged(paths: RunPaths) -> list[Path]:
    """Volumes of the table whose files are gone or cut; without their keys they are made again."""
    damaged = []
    for path in map(Path, read_table(paths.table("volumes"), "volumes")["path"]):
        try:
            MappedVoxels.of(path)
        except (OSError, ValueError) as error:
            log.warning("cache: %s is made again: %s", path, error)
            path.unlink(missing_ok=True)
            damaged.append(path)
    return damaged


def prepare(config: Config, paths: RunPaths) -> None:
    """Index, folds and cache, in that order."""
    run_index(config, paths)
    run_folds(config, paths)
    run_cache(config, paths)

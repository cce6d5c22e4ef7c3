"""The data room's stages for a config: index, folds, volumes; each skipped where it is fresh.

In: a config and its run folder. Out: tables `studies`, `slices`, `coarse`, `fine` and `folds.csv`.
Example: `prepare(config, paths)`.

Fine volumes are cut along the levels of the vertebra stage: the out-of-fold run calls `run_fine`
after it.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from cspine_kit.core.config import Config
from cspine_kit.core.errors import ArtifactError, DataError
from cspine_kit.core.execution import Outcome, require_some, with_bar
from cspine_kit.core.numbers import FloatArray
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
from cspine_kit.data.pseudo import run_pseudo
from cspine_kit.data.reader.dicom import READER_VERSION
from cspine_kit.data.sources import check_extra
from cspine_kit.data.volumes.cache import Cache
from cspine_kit.data.volumes.cut import Cut, Sight, generous_cut, needed_cut
from cspine_kit.data.volumes.shards import finished, lay_in_shards
from cspine_kit.data.volumes.store import open_volume

log = logging.getLogger(__name__)

Cuts = dict[str, tuple[Cut, Cut]]
"""What a fine volume must hold, and what is cut where it has to be made, by study_uid."""

SHOWN = 3
INDEX_VERSION = 3
"""Raised when the same files give another index: labels, boxes and groups are read in its code."""


def require_competition(config: Config) -> Competition:
    """The competition folder.

    Raises:
        DataError: it is absent or incomplete; names what to download and how.
    """
    competition = Competition(config.competition.dir, config.competition.extra)
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
    check_extra(competition)
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
        for source in competition.sources.values()
        for path in (source.train_csv, source.boxes_csv)
    ]
    test = file_hash(competition.test_csv) if competition.test_csv.exists() else None
    images = [source.train_images for source in competition.sources.values()]
    found = [folder for place in (*images, competition.test_images) for folder in place.glob("*")]
    folders = sorted(
        f"{folder.parent.name}/{folder.name}" + listing_fingerprint(folder)
        for folder in with_bar(found, "listings")
    )
    masks = [listing_fingerprint(s.segmentations) for s in competition.sources.values()]
    versions = (READER_VERSION, INDEX_VERSION, MASKS_VERSION)
    names = list(competition.sources)
    return fingerprint(versions, config.exclude, names, tables, test, folders, masks)


def run_index(config: Config, paths: RunPaths) -> None:
    """Write `studies`, `slices` and `index/groups.csv`.

    `index/failures.json` says which studies are left out, `index/remarks.json` what is wrong with
    masks and boxes of those that are kept.
    """
    made = (paths.table("studies"), paths.table("slices"), _groups_path(paths))
    if _without_images(config) and all(map(stored_key, made)):
        log.warning("index: there are no train_images; tables and volumes are used as they are")
        return
    competition = require_competition(config)
    key = index_key(config, competition)
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
    for uid, lines in list(remarks.items())[:SHOWN]:
        log.warning("index: study %s: %s", uid or "(none)", "; ".join(lines[:SHOWN]))
    if len(remarks) > SHOWN:
        log.warning("index: remarks on %d more, see index/remarks.json", len(remarks) - SHOWN)
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


def _without_images(config: Config) -> bool:
    """True on a machine that got a run's tables and volumes, but not the scans."""
    return not Competition(config.competition.dir).train_images.is_dir()


def run_coarse(config: Config, paths: RunPaths, *, most_gb: float | None = None) -> None:
    """Make one coarse volume per training study and the table `coarse`.

    Args:
        config: of the run.
        paths: its folder.
        most_gb: make no more than this at a time, in 10^9 bytes.

    Raises:
        DataError: not one study can be read; carries the first reason.
        Unfinished: `most_gb` left some for another time.
    """
    cache = Cache.coarse(config, paths)
    key = fingerprint(cache.recipe, stored_key(paths.table("studies")))
    _run_volumes(cache, paths, key, lambda _: None, most_gb)


def run_fine(config: Config, paths: RunPaths, *, most_gb: float | None = None) -> None:
    """Make one fine volume per training study that shows a level, and the table `fine`.

    A file that holds what all folds look at is kept, though their levels may have moved.

    Args:
        config: of the run.
        paths: its folder.
        most_gb: make no more than this at a time, in 10^9 bytes.

    Raises:
        DataError: not one study can be read; carries the first reason.
        Unfinished: `most_gb` left some for another time.
    """
    cache, sight = Cache.fine(config, paths), Sight.of(config)
    fine = config.volumes.fine
    table = paths.table("levels")
    key = fingerprint(
        cache.recipe, fine, asdict(sight), stored_key(table), stored_key(paths.table("coarse"))
    )

    def cuts(slices: dict[str, FloatArray]) -> Cuts:
        coarse = read_table(paths.table("coarse"), "coarse").set_index("study_uid")["path"]
        found: Cuts = {}
        for uid, levels in read_table(table, "levels").groupby("study_uid", sort=True):
            if uid in coarse.index and levels["present"].any():
                volume, _ = open_volume(Path(coarse[uid]))
                needs = (levels, volume, slices[str(uid)], fine, sight)
                found[str(uid)] = needed_cut(*needs), generous_cut(*needs)
        return found

    _run_volumes(cache, paths, key, cuts, most_gb)


def _run_volumes(
    cache: Cache,
    paths: RunPaths,
    key: str,
    cuts_of: Callable[[dict[str, FloatArray]], Cuts | None],
    most_gb: float | None,
) -> None:
    """Make the files of one kind of volumes and their table, unless all is there; studies that
    failed are tried again when their files change."""
    table, folder = paths.table(cache.name), cache.folder
    alone = _without_images(cache.config) and stored_key(table) is not None
    if alone and not finished(cache.name, folder, *cache.shipped):
        log.warning("cache: neither scans nor %s volumes are here; their table is", cache.name)
        return
    competition = Competition(cache.config.competition.dir, cache.config.competition.extra)
    ledger = folder / "failures.json"

    def whole_key(failures: Iterable[str]) -> str:
        states = cache.states(failures, competition)
        return fingerprint(key, states) if states else key

    failed = read_json(ledger) if ledger.exists() else {}
    if is_fresh(table, whole_key(failed)) and not _damaged(table, cache.name):
        return
    studies = read_table(paths.table("studies"), "studies")
    slices = read_table(paths.table("slices"), "slices")
    studies = studies[studies["split"] == "train"]
    z_mm = {str(uid): own.to_numpy() for uid, own in slices.groupby("study_uid")["z_mm"]}
    cuts = cuts_of(z_mm)
    if cuts is not None:
        studies = studies[studies["study_uid"].isin(list(cuts))]
    with run_record(folder, f"{cache.name} volumes", inputs={"key": key}) as results:
        volumes, failures = cache.build(
            studies, slices, competition, cuts, failed=failed, most_gb=most_gb
        )
        write_json(ledger, failures)
        require_some(Outcome(volumes.to_dict("index"), failures), f"{cache.name} volumes")
        results.update(volumes=len(volumes), failures=len(failures))
        write_table(volumes, table, cache.name, whole_key(failures))
    if failures:
        count = len(failures)
        log.warning("cache: %d studies left out, see %s", count, ledger)


def _damaged(table: Path, name: str) -> bool:
    """True where a file of the table is gone or cut: it is made again."""
    for path in with_bar(read_table(table, name)["path"].map(Path), f"{name} volumes"):
        try:
            open_volume(path)
        except ArtifactError as error:
            log.warning("cache: %s", error)
            return True
    return False


def run_shards(config: Config, paths: RunPaths, most_gb: float) -> None:
    """Lay finished volumes into folders of at most `most_gb` GB; tables follow.

    Raises:
        DataError: a single volume is larger.
    """
    for cache in (Cache.coarse(config, paths), Cache.fine(config, paths)):
        table = paths.table(cache.name)
        if not table.exists():
            continue
        moved = lay_in_shards(cache.name, cache.folder, most_gb)
        rows = read_table(table, cache.name)
        here = {uid: str(path) for uid, path in moved.items()}
        rows["path"] = rows["study_uid"].map(here).fillna(rows["path"])
        write_table(rows, table, cache.name, stored_key(table))


def prepare(config: Config, paths: RunPaths) -> None:
    """Index, folds, other tools' masks and coarse volumes, in that order."""
    run_index(config, paths)
    run_folds(config, paths)
    run_pseudo(config, paths)
    run_coarse(config, paths)

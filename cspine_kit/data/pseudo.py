"""Masks that other tools made: where each level is said to be, in a table of its own.

In: `competition.pseudo_masks`, a folder of `<study_uid>.nii` or `.nii.gz`. Out: table
`pseudo_slices` of training studies that have no mask. Example::

    run_pseudo(config, paths)                      # nothing where the config names no folder
    paths.table("pseudo_slices").exists()          # False

They are read and checked like the competition's own (labels 1 to 7, on bone, in order), and teach
the vertebra stage with a weight. They are no truth: nothing is scored or calibrated on them, and
members of the fracture stage do not know of them.
"""

from pathlib import Path

import pandas as pd

from cspine_kit.core.config import Config
from cspine_kit.core.errors import DataError
from cspine_kit.core.execution import map_studies, require_some
from cspine_kit.core.paths import Competition, RunPaths, mask_in
from cspine_kit.core.runs import fingerprint, is_fresh, listing_fingerprint, stored_key
from cspine_kit.core.tables import read_table, write_table
from cspine_kit.data.index import mask_columns
from cspine_kit.data.masks import MASKS_VERSION, check_mask
from cspine_kit.data.reader.dicom import READER_VERSION, read_study

TABLE = "pseudo_slices"


def run_pseudo(config: Config, paths: RunPaths) -> None:
    """Write table `pseudo_slices`, or remove it where the config names no folder; a mask that
    cannot be used costs itself.

    Raises:
        DataError: the folder is not there, or holds no mask of a training study without one.
    """
    table, pseudo = paths.table(TABLE), config.competition.pseudo_masks
    if pseudo is None:
        table.unlink(missing_ok=True)
        return
    if not pseudo.dir.is_dir():
        raise DataError(f"competition.pseudo_masks.dir: there is no folder {pseudo.dir}")
    indexed = stored_key(paths.table("studies"))
    listing = listing_fingerprint(pseudo.dir)
    key = fingerprint(READER_VERSION, MASKS_VERSION, indexed, listing)
    if is_fresh(table, key):
        return
    studies = read_table(paths.table("studies"), "studies")
    bare = studies[(studies["split"] == "train") & ~studies["has_mask"]]["study_uid"]
    found = {str(uid): mask_in(pseudo.dir, str(uid)) for uid in bare}
    competition = Competition(config.competition.dir, config.competition.extra)
    items = {
        u: (competition.images("train", u), mask) for u, mask in found.items() if mask.exists()
    }
    if not items:
        raise DataError(
            f"competition.pseudo_masks.dir: {pseudo.dir} holds no <study_uid>.nii or .nii.gz of a "
            "training study without a mask"
        )
    outcome = map_studies(
        _rows_of, items, jobs=config.execution.jobs, title="pseudo-masks", backend="local"
    )
    require_some(outcome, f"pseudo-masks of {pseudo.dir}")
    rows = pd.concat(list(outcome.results.values()), ignore_index=True)
    write_table(rows, table, TABLE, key)


def _rows_of(item: tuple[Path, Path]) -> pd.DataFrame:
    """A study's rows, from its images and its mask."""
    folder, file = item
    study = read_study(folder, folder.name)
    rows = pd.DataFrame(mask_columns(check_mask(file, study).labels, study.spacing_mm))
    rows.insert(0, "study_uid", folder.name)
    rows.insert(1, "slice_idx", range(len(rows)))
    return rows

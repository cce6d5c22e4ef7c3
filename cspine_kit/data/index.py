"""The geometry-true study and slice tables of a competition folder.

In: a `Competition`. Out: rows of `studies` and `slices`, which studies belong together, and why
studies are missing. Example::

    kept = paths.root / "index" / "studies"
    index = build_index(competition, config.exclude, jobs=2, scratch=kept)
    index.studies, index.failures

All headers are read; of the pixels, every 5 mm for a thumbnail, and all of the few studies with a
mask, to check that it sits on bone. With `scratch` every finished study is kept there, so that an
interrupted run resumes.
"""

import json
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL
from cspine_kit.core.errors import StudyError
from cspine_kit.core.execution import Backend, Outcome, map_studies, require_some, with_bar
from cspine_kit.core.paths import COMPETITION, Competition, is_safe_uid
from cspine_kit.core.runs import (
    file_state,
    fingerprint,
    is_fresh,
    listing_fingerprint,
    publish,
)
from cspine_kit.core.sheets import read_sheet
from cspine_kit.core.tables import CONTRACTS, MASK_COLUMNS, SPINE_BOX_COLUMNS
from cspine_kit.data.boxes import BAD_BOXES, Remarks, join_boxes
from cspine_kit.data.masks import BAD_MASK, MASKS_VERSION, MaskArray, check_mask
from cspine_kit.data.reader.dicom import (
    READER_VERSION,
    Study,
    opened_frames,
    read_geometry,
    read_study,
)
from cspine_kit.data.reader.pixels.frames import LostFiles
from cspine_kit.data.reader.problems import PROBLEMS
from cspine_kit.data.reader.scans.geometry import Geometry
from cspine_kit.data.sources import read_sources
from cspine_kit.data.twins import Thumbnail, group_studies, make_thumbnail, pack, unpack

Job = tuple[Path, Path | None, str]
"""Folder of the files, the mask where there is one, and the key of both."""
Record = dict[str, Any]


class Index(NamedTuple):
    """What `build_index` found: tables `studies` and `slices`; study_uid, group and reason of every
    training study (`twins.group_studies`); the reason for each study that is in none; and what is
    wrong with masks and boxes, by study_uid."""

    studies: pd.DataFrame
    slices: pd.DataFrame
    groups: pd.DataFrame
    failures: dict[str, str]
    remarks: Remarks


def listed_test_studies(competition: Competition) -> list[str]:
    """Unique StudyInstanceUIDs of test.csv, in its order; none without a file."""
    if not competition.test_csv.exists():
        return []
    sheet = read_sheet(competition.test_csv, ("StudyInstanceUID",))
    return [uid for uid in dict.fromkeys(sheet.rows["StudyInstanceUID"]) if uid]


def mask_columns(mask: MaskArray, spacing_mm: tuple[float, float, float]) -> dict[str, list[float]]:
    """Per slice: share of each level's largest area, and the box around C1..C7 (NaN where none)."""
    columns: dict[str, list[float]] = {}
    for level, column in enumerate(MASK_COLUMNS, start=1):
        area = (mask == level).sum(axis=(1, 2)).astype(np.float64)
        columns[column] = (area / max(area.max(), 1.0)).tolist()
    spine = (mask >= 1) & (mask <= len(LEVELS))
    boxes = np.full((len(mask), 4), np.nan)
    for z, plane in enumerate(spine):
        rows, cols = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
        if len(rows):
            boxes[z] = rows[0], cols[0], rows[-1], cols[-1]
    boxes *= np.tile(spacing_mm[1:], 2)
    columns.update({name: boxes[:, i].tolist() for i, name in enumerate(SPINE_BOX_COLUMNS)})
    return columns


def slice_columns(geometry: Geometry) -> dict[str, list[Any]]:
    """Columns of `slices` that geometry gives; gap_mm is the distance to the slice above."""
    gap = np.full(len(geometry.z_mm), np.nan)
    gap[1:] = -np.diff(geometry.z_mm)
    return {
        "slice_idx": list(range(len(geometry.z_mm))),
        "file": list(geometry.files),
        "slice_number": geometry.slice_numbers.tolist(),
        "instance_number": geometry.instance_numbers.tolist(),
        "z_mm": geometry.z_mm.tolist(),
        "gap_mm": gap.tolist(),
    }


def _thumbnail(folder: Path, geometry: Geometry) -> tuple[Thumbnail | None, set[str]]:
    """The study's thumbnail from a few of its files, None where they cannot be decoded; and what
    their grey values show."""
    try:
        with opened_frames(folder, geometry) as frames:
            return make_thumbnail(geometry, frames.hu), frames.codes
    except LostFiles:
        return None, set()


def _masked(
    mask_path: Path, study: Study
) -> tuple[dict[str, list[float]] | None, tuple[str, ...], tuple[str, ...]]:
    """Mask columns of a study, None where its mask is not used; codes and remarks on it."""
    try:
        mask = check_mask(mask_path, study)
    except StudyError as error:
        return None, (BAD_MASK,), (error.problem,)
    return mask_columns(mask.labels, study.spacing_mm), mask.codes, mask.remarks


def index_study(job: Job, study_uid: str) -> Record:
    """One study: `study` (a row without labels and boxes), `slices` (columns), patient, thumbnail,
    and `remarks`: a mask that cannot be used costs the mask, not the study.

    Raises:
        StudyError: nothing to read.
    """
    folder, mask_path, _ = job
    geometry: Geometry
    columns: dict[str, list[float]] | None = None
    told: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    if mask_path is None:
        geometry = read_geometry(folder, study_uid)
        thumbnail, seen = _thumbnail(folder, geometry)
    else:
        study = read_study(folder, study_uid)
        geometry, (columns, told, remarks) = study, _masked(mask_path, study)
        thumbnail, seen = make_thumbnail(study, lambda z: study.hu[z]), set[str]()
    unknown = [np.nan] * len(geometry.z_mm)
    masks = columns or dict.fromkeys((*MASK_COLUMNS, *SPINE_BOX_COLUMNS), unknown)
    codes = [code for code in PROBLEMS if code in seen.union(geometry.problems)]
    row = {
        "study_uid": study_uid,
        "n_slices": len(geometry.z_mm),
        **dict(zip(("rows", "cols"), geometry.shape, strict=True)),
        **dict(zip(("spacing_z", "spacing_y", "spacing_x"), geometry.spacing_mm, strict=True)),
        "reversed": geometry.reversed,
        "irregular": geometry.irregular,
        "transfer_syntax": geometry.transfer_syntax,
        "has_mask": columns is not None,
        "problems": " ".join([*codes, *told]),
    }
    return {
        "study": row,
        "slices": {**slice_columns(geometry), **masks},
        "patient": geometry.headers[0].patient_id,
        "thumbnail": pack(thumbnail),
        "remarks": list(remarks),
        # Where every frame lies as it is stored and has the grid's size, boxes lie right.
        "to_stored": None if geometry.as_stored else geometry.to_stored.tolist(),
    }


def _index_one(item: tuple[str, Job], scratch: Path | None) -> Record:
    uid, job = item
    record = index_study(job, uid)
    if scratch is not None:
        with publish(scratch / f"{uid}.json", job[2]) as temporary:
            temporary.write_text(json.dumps(record))
    return record


def _mask_of(competition: Competition, uid: str) -> tuple[Path | None, tuple[int, int] | None]:
    """A study's mask and its state; a dead link counts as a mask, which then cannot be read."""
    mask = competition.segmentation(uid)
    if mask.exists() or mask.is_symlink():
        return mask, file_state(mask)
    return None, None


def _absent(folder: Path, uid: str) -> str:
    """Why a study has no folder, and what to do about it."""
    packed = folder.with_name(f"{folder.name}.zip")
    if packed.exists():
        return f"study {uid}: {packed} is still packed; unzip it to {folder}"
    if folder.is_symlink():
        return f"study {uid}: {folder} is a link to nowhere; there is no folder"
    return f"study {uid}: there is no folder {folder}"


def _jobs(
    competition: Competition, exclude: Mapping[str, str], train: list[str]
) -> tuple[dict[str, dict[str, Job]], dict[str, str]]:
    """What to read by split and study_uid, and why other studies are not read."""
    wanted: dict[str, dict[str, Job]] = {"train": {}, "test": {}}
    failures: dict[str, str] = {}
    for split, uids in (("train", train), ("test", listed_test_studies(competition))):
        for uid in with_bar(uids, f"files of {split}"):
            if uid in exclude:
                failures[uid] = f"study {uid}: excluded: {exclude[uid]}"
            elif not is_safe_uid(uid):
                failures[uid] = f"study {uid!r}: not a UID of digits and dots, refused as a path"
            elif uid in wanted["train"]:
                failures[uid] = f"study {uid}: in both {split}.csv and train.csv; kept for training"
            else:
                folder = competition.images("train" if split == "train" else "test", uid)
                used, state = _mask_of(competition, uid) if split == "train" else (None, None)
                if folder.is_dir():
                    listing = listing_fingerprint(folder)
                    version = MASKS_VERSION if used else None
                    key = fingerprint(READER_VERSION, listing, state, version)
                    wanted[split][uid] = (folder, used, key)
                else:
                    failures[uid] = _absent(folder, uid)
    return wanted, failures


def _tables(
    records: Mapping[str, Record],
    labels: pd.DataFrame,
    boxes: Mapping[str, pd.DataFrame],
    training: Collection[str],
    remarks: Remarks,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables `studies` and `slices`; what is wrong with masks and boxes goes to `remarks`."""
    rows, slices = [], []
    unlabelled = {"source": COMPETITION, **dict.fromkeys((OVERALL, *LEVELS), np.nan)}
    for uid, record in with_bar(records.items(), "tables"):
        row, own = record["study"], pd.DataFrame(record["slices"])
        own.insert(0, "study_uid", uid)
        given = boxes.get(uid) if uid in training else None
        own, bad = join_boxes(own, given, (row["rows"], row["cols"]), record["to_stored"])
        slices.append(own)
        problems = [row["problems"], BAD_BOXES if bad or uid in remarks else ""]
        if told := [*record["remarks"], *bad]:
            remarks.setdefault(uid, []).extend(told)
        rows.append(
            {
                **row,
                "problems": " ".join(filter(None, problems)),
                "split": "train" if uid in training else "test",
                "has_boxes": bool(own["box_x"].notna().any()),
                **(labels.loc[uid].to_dict() if uid in training else unlabelled),
            }
        )
    studies = pd.DataFrame(rows, columns=list(CONTRACTS["studies"].columns))
    table = pd.concat(slices, ignore_index=True)[list(CONTRACTS["slices"].columns)]
    return studies, table


def build_index(
    competition: Competition,
    exclude: Mapping[str, str],
    *,
    jobs: int,
    scratch: Path | None = None,
    backend: Backend = "local",
) -> Index:
    """Index every training and test study.

    Args:
        competition: the folder, and others whose studies join the training data.
        exclude: study_uid to the reason it is left out.
        jobs: processes, 0 = usable cores.
        scratch: folder where finished studies are kept for the next run.
        backend: "ray" spreads studies over a cluster whose nodes share these folders.

    Raises:
        DataError: train.csv cannot be used, or not one training study can be read.
    """
    labels, boxes, failures, remarks = read_sources(competition)
    wanted, skipped = _jobs(competition, exclude, list(map(str, labels.index)))
    failures.update(skipped)
    records: dict[str, Record] = {}
    stale: dict[str, tuple[str, Job]] = {}
    jobs_of = {**wanted["train"], **wanted["test"]}
    for uid, job in with_bar(jobs_of.items(), "kept studies"):
        kept = scratch / f"{uid}.json" if scratch is not None else None
        if kept is not None and is_fresh(kept, job[2]):
            records[uid] = json.loads(kept.read_text())
        else:
            stale[uid] = (uid, job)
    if stale:
        outcome = map_studies(
            partial(_index_one, scratch=scratch), stale, jobs=jobs, title="index", backend=backend
        )
        records.update(outcome.results)
        failures.update(outcome.failures)
    training_records = {uid: record for uid, record in records.items() if uid in wanted["train"]}
    require_some(Outcome(training_records, failures), f"index of {competition.root}")
    studies, table = _tables(records, labels, boxes, wanted["train"], remarks)
    groups = group_studies(
        {uid: record["patient"] for uid, record in training_records.items()},
        {uid: unpack(record["thumbnail"]) for uid, record in training_records.items()},
    )
    return Index(studies, table, groups, failures, remarks)

"""The geometry-true study and slice tables of a competition folder.

In: a `Competition`. Out: rows of `studies` and `slices`, which studies belong together, and why
studies are missing. Example::

    index = build_index(competition, config.exclude, jobs=2)
    index.studies, index.failures

All headers are read; of the pixels, every 5 mm for a thumbnail, and all of the few studies with a
mask, to prove that it sits on bone. With `scratch` every finished study is kept there, so that an
interrupted run resumes.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL
from cspine_kit.core.execution import Backend, Outcome, map_studies, require_some
from cspine_kit.core.paths import BOXES_CSV_COLUMNS, Competition, is_safe_uid
from cspine_kit.core.runs import fingerprint, is_fresh, listing_fingerprint, publish
from cspine_kit.core.tables import BOX_COLUMNS, CONTRACTS, MASK_COLUMNS, SPINE_BOX_COLUMNS
from cspine_kit.data.labels import parse_labels, read_ids
from cspine_kit.data.masks import MaskArray, read_mask
from cspine_kit.data.reader.dicom import READER_VERSION, read_geometry, read_study
from cspine_kit.data.reader.files import opened
from cspine_kit.data.reader.frames import Frames, LostFiles
from cspine_kit.data.reader.geometry import Geometry
from cspine_kit.data.reader.placing import to_grid
from cspine_kit.data.reader.problems import PROBLEMS
from cspine_kit.data.twins import Thumbnail, group_studies, make_thumbnail, pack, unpack

Job = tuple[Path, Path | None, str]
"""Folder of the files, the mask where there is one, and the key of both."""
Record = dict[str, Any]


class Index(NamedTuple):
    """What `build_index` found: tables `studies` and `slices`; study_uid, group and reason of every
    training study (`twins.group_studies`); and the reason for each study that is in none."""

    studies: pd.DataFrame
    slices: pd.DataFrame
    groups: pd.DataFrame
    failures: dict[str, str]


def read_boxes(competition: Competition) -> dict[str, pd.DataFrame]:
    """Boxes of each study: slice_number, box_x, box_y, box_w, box_h; empty without a file."""
    if not competition.boxes_csv.exists():
        return {}
    frame = read_ids(competition.boxes_csv, BOXES_CSV_COLUMNS)[list(BOXES_CSV_COLUMNS)]
    frame = frame.rename(columns=dict(zip(BOXES_CSV_COLUMNS[1:5], BOX_COLUMNS, strict=True)))
    frame["slice_number"] = frame["slice_number"].astype(float)
    # The real table never has two boxes on one slice; of another one's, the first counts.
    frame = frame.drop_duplicates(["StudyInstanceUID", "slice_number"])
    return {str(uid): rows for uid, rows in frame.groupby("StudyInstanceUID")}


def listed_test_studies(competition: Competition) -> list[str]:
    """Unique StudyInstanceUIDs of test.csv, in its order; none without a file."""
    if not competition.test_csv.exists():
        return []
    frame = read_ids(competition.test_csv, ("StudyInstanceUID",))
    return [str(uid) for uid in frame["StudyInstanceUID"].unique()]


def mask_columns(mask: MaskArray) -> dict[str, list[float]]:
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
    with opened(folder) as place:
        try:
            frames = Frames(place, geometry)
            return make_thumbnail(geometry, frames.hu), frames.codes
        except LostFiles:
            return None, set()


def box_in_frame(slices: pd.DataFrame, to_stored: list[Any]) -> pd.DataFrame:
    """Slices whose fracture boxes, drawn on the files as they are, lie in the kit's own frame.

    Args:
        slices: rows of one study in slice order, with `BOX_COLUMNS` in pixels of the files.
        to_stored: `Geometry.to_stored` as lists.
    """
    moved = slices.copy()
    for k in np.flatnonzero(slices["box_x"].notna()):
        x, y, w, h = slices[list(BOX_COLUMNS)].iloc[k]
        # Edges of a box lie between pixels, half a pixel before the center of the first one.
        rows, cols = np.array([[y, y + h], [x, x + w]]) - 0.5
        ends = np.array([(r, c, 1.0) for r in rows for c in cols])
        placed = ends @ to_grid(np.array(to_stored[k])).T
        (y0, x0), (y1, x1) = placed.min(axis=0) + 0.5, placed.max(axis=0) + 0.5
        moved.iloc[k, [moved.columns.get_loc(c) for c in BOX_COLUMNS]] = x0, y0, x1 - x0, y1 - y0
    return moved


def index_study(job: Job, study_uid: str) -> Record:
    """One study: `study` (a row without labels and boxes), `slices` (columns), patient, thumbnail.

    Raises:
        StudyError: nothing to read, or a mask that sits on no bone.
    """
    folder, mask_path, _ = job
    geometry: Geometry
    if mask_path is None:
        geometry = read_geometry(folder, study_uid)
        thumbnail, seen = _thumbnail(folder, geometry)
        masks = dict.fromkeys((*MASK_COLUMNS, *SPINE_BOX_COLUMNS), [np.nan] * len(geometry.z_mm))
    else:
        study = read_study(folder, study_uid)
        geometry, masks = study, mask_columns(read_mask(mask_path, study))
        thumbnail, seen = make_thumbnail(study, lambda z: study.hu[z]), set[str]()
    row = {
        "study_uid": study_uid,
        "n_slices": len(geometry.z_mm),
        **dict(zip(("rows", "cols"), geometry.shape, strict=True)),
        **dict(zip(("spacing_z", "spacing_y", "spacing_x"), geometry.spacing_mm, strict=True)),
        "reversed": geometry.reversed,
        "irregular": geometry.irregular,
        "transfer_syntax": geometry.transfer_syntax,
        "has_mask": mask_path is not None,
        "problems": " ".join(code for code in PROBLEMS if code in seen.union(geometry.problems)),
    }
    return {
        "study": row,
        "slices": {**slice_columns(geometry), **masks},
        "patient": geometry.headers[0].patient_id,
        "thumbnail": pack(thumbnail),
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


def _jobs(
    competition: Competition, exclude: Mapping[str, str], train: list[str]
) -> tuple[dict[str, dict[str, Job]], dict[str, str]]:
    """What to read by split and study_uid, and why other studies are not read."""
    wanted: dict[str, dict[str, Job]] = {"train": {}, "test": {}}
    failures: dict[str, str] = {}
    for split, uids in (("train", train), ("test", listed_test_studies(competition))):
        for uid in uids:
            if uid in exclude:
                failures[uid] = f"study {uid}: excluded: {exclude[uid]}"
            elif not is_safe_uid(uid):
                failures[uid] = f"study {uid!r}: not a UID of digits and dots, refused as a path"
            elif uid in wanted["train"]:
                failures[uid] = f"study {uid}: in both {split}.csv and train.csv; kept for training"
            else:
                folder = competition.images("train" if split == "train" else "test", uid)
                mask = competition.segmentation(uid)
                used = mask if split == "train" and mask.exists() else None
                if folder.is_dir():
                    stat = used.stat() if used else None
                    state = [stat.st_size, stat.st_mtime_ns] if stat else None
                    key = fingerprint(READER_VERSION, listing_fingerprint(folder), state)
                    wanted[split][uid] = (folder, used, key)
                else:
                    failures[uid] = f"study {uid}: there is no folder {folder}"
    return wanted, failures


def _with_boxes(record: Record, boxes: pd.DataFrame | None) -> pd.DataFrame:
    """Slices of one study, its boxes joined on the file number."""
    slices = pd.DataFrame(record["slices"])
    slices.insert(0, "study_uid", record["study"]["study_uid"])
    if boxes is None:
        return slices.assign(**dict.fromkeys(BOX_COLUMNS, np.nan))
    slices = slices.merge(boxes[["slice_number", *BOX_COLUMNS]], on="slice_number", how="left")
    return slices if record["to_stored"] is None else box_in_frame(slices, record["to_stored"])


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
        competition: the folder.
        exclude: study_uid to the reason it is left out.
        jobs: processes, 0 = usable cores.
        scratch: folder where finished studies are kept for the next run.
        backend: "ray" spreads studies over a cluster whose nodes share these folders.

    Raises:
        DataError: train.csv cannot be used, or not one study can be read.
    """
    labels, failures = parse_labels(competition.train_csv)
    boxes = read_boxes(competition)
    wanted, skipped = _jobs(competition, exclude, list(map(str, labels.index)))
    failures.update(skipped)
    records: dict[str, Record] = {}
    stale: dict[str, tuple[str, Job]] = {}
    for uid, job in {**wanted["train"], **wanted["test"]}.items():
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
    require_some(Outcome(records, failures), f"index of {competition.root}")
    rows, slices = [], []
    for uid, record in records.items():
        training = uid in wanted["train"]
        own = boxes.get(uid) if training else None
        slices.append(_with_boxes(record, own))
        label = labels.loc[uid].to_dict() if training else dict.fromkeys((OVERALL, *LEVELS), np.nan)
        rows.append(
            {
                **record["study"],
                "split": "train" if training else "test",
                "has_boxes": bool(slices[-1]["box_x"].notna().any()),
                **label,
            }
        )
    studies = pd.DataFrame(rows, columns=list(CONTRACTS["studies"].columns))
    table = pd.concat(slices, ignore_index=True)[list(CONTRACTS["slices"].columns)]
    training_records = {uid: record for uid, record in records.items() if uid in wanted["train"]}
    groups = group_studies(
        {uid: record["patient"] for uid, record in training_records.items()},
        {uid: unpack(record["thumbnail"]) for uid, record in training_records.items()},
    )
    return Index(studies, table, groups, failures)

"""A complete synthetic competition in the layout of RSNA 2022, resumable study by study.

In: a folder and a `PhantomConfig`. Out: train.csv, train_images/, segmentations/,
train_bounding_boxes.csv, test.csv, test_images/, sample_submission.csv, and what only a phantom
has: solution.csv (train.csv's shape, truth of the test set), truth/<study_uid>.json, and
truth/levels.csv with seven rows a study (`levels.level_rows`). Example::

    spec = PhantomConfig(studies=1, test_studies=1, size_px=48, difficulty="easy")
    write_competition(Path("data/phantom"), spec, jobs=1)

`phantom.json` says what the folder was drawn from; a finished folder is left as it is.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.config import USUAL_VARIETIES, PhantomConfig
from cspine_kit.core.errors import DataError
from cspine_kit.core.execution import map_studies
from cspine_kit.core.paths import BOXES_CSV_COLUMNS, Competition, Split
from cspine_kit.core.runs import derive_seed, publish, read_json, write_json
from cspine_kit.phantom.anatomy.render import render
from cspine_kit.phantom.anatomy.spine import draw_neck
from cspine_kit.phantom.annotators.boxes import draw_boxes
from cspine_kit.phantom.annotators.masks import draw_mask, write_nifti
from cspine_kit.phantom.calibration import draw_labels
from cspine_kit.phantom.competition.levels import level_rows
from cspine_kit.phantom.competition.varieties import (
    HIDDEN,
    patient,
    vary_neck,
    vary_scan,
    worn_discs,
)
from cspine_kit.phantom.injuries.fractures import broken
from cspine_kit.phantom.injuries.wear import wear_out
from cspine_kit.phantom.scanner.files import write_dicom
from cspine_kit.phantom.scanner.imaging import picture
from cspine_kit.phantom.scanner.scan import Scan, draw_scan

UID_ROOT = "1.2.826.0.1.3680043"
UID_NUMBERS = 32_000
"""RenderedStudy numbers in the real competition lie below this."""

GENERATOR = 12
"""Changes whenever the same spec gives other bytes."""


@dataclass(frozen=True)
class StudyPlan:
    """One study to write: who, what is broken, and which extras come with it."""

    study_uid: str
    split: Split
    labels: tuple[int, ...]
    masked: bool
    boxed: bool
    seed: int
    variety: str = ""
    """A name of `varieties.HIDDEN`; empty for a whole, plain neck."""
    place: float = 0.5
    """Evenly spread over the studies, 0..1: what is drawn systematically follows it."""


@dataclass(frozen=True)
class RenderedStudy:
    """A rendered study; arrays are (z, y, x), z index 0 = most cranial."""

    scan: Scan
    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    damage: NDArray[np.uint8]
    truth: dict[str, Any]


def plan_studies(spec: PhantomConfig) -> list[StudyPlan]:
    """Draw ids, labels and extras of every study, training studies first."""
    rng = np.random.default_rng(derive_seed("phantom", spec.seed))
    total = spec.studies + spec.test_studies
    if total > UID_NUMBERS:
        raise DataError(f"phantom: {total} studies asked, at most {UID_NUMBERS} have an id")
    numbers = rng.choice(np.arange(1, UID_NUMBERS + 1), total, replace=False)
    labels = np.concatenate([draw_labels(rng, spec.studies), draw_labels(rng, spec.test_studies)])
    train = np.arange(spec.studies)
    broken_ones = train[labels[train].any(axis=1)]
    boxed = set(rng.permutation(broken_ones)[: round(spec.boxed * len(broken_ones))])
    masked = set(rng.permutation(train)[: round(spec.masked * len(train))])
    places = (rng.permutation(total) + 0.5) / total
    varieties = _varieties(spec, total)
    for i, variety in enumerate(varieties):
        labels[i, [LEVELS.index(level) for level in HIDDEN.get(variety, ())]] = 0
    return [
        StudyPlan(
            study_uid=f"{UID_ROOT}.{number}",
            split="train" if i < spec.studies else "test",
            labels=tuple(int(v) for v in labels[i]),
            masked=i in masked,
            boxed=i in boxed,
            seed=derive_seed("phantom", spec.seed, int(number)),
            variety=varieties[i],
            place=float(places[i]),
        )
        for i, number in enumerate(numbers)
    ]


def _varieties(spec: PhantomConfig, total: int) -> list[str]:
    """The variety of each study, empty for most; each variety in turn, from a random one on.

    Where the spec names them, training and test studies get their own share of each: a test set of
    40 may otherwise lack one.
    """
    rng = np.random.default_rng(derive_seed("variety", spec.seed))
    names = spec.varieties or USUAL_VARIETIES
    first = int(rng.integers(len(names)))
    splits = [np.arange(total)]
    if spec.varieties is not None:
        splits = np.split(splits[0], [spec.studies])
    varieties = [""] * total
    for split in splits:
        for k, i in enumerate(rng.permutation(split)[: round(spec.variety * len(split))]):
            varieties[i] = names[(first + k) % len(names)]
    return varieties


def render_study(plan: StudyPlan, *, size_px: int, difficulty: str) -> RenderedStudy:
    """Draw a patient, break what the labels say, scan it.

    Each stage has its own seed, so that a fracture changes nothing but its own vertebra.
    """

    def rng(stage: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(plan.seed, stage))

    easy = difficulty == "easy"
    worn = worn_discs(rng("discs"), plan.variety)
    stature, posture = patient(rng("patient"), plan.variety)
    neck = draw_neck(rng("neck"), variety=1.0, worn=worn, stature=stature, posture=posture)
    vary_neck(rng("variety"), plan.variety, neck)
    found = [] if easy else wear_out(rng("wear"), neck.bones, neck.spaces)
    scan = draw_scan(rng("scan"), neck, size_px=size_px, difficulty=difficulty, place=plan.place)
    if plan.variety:
        scan = vary_scan(rng("stretch"), plan.variety, neck, scan)
    injuries: dict[str, str] = {}
    for level, fractured in zip(LEVELS, plan.labels, strict=True):
        if fractured:
            neck.bones[level], injuries[level] = broken(
                neck.bones[level], rng(level), difficulty=difficulty
            )
    softness = max(scan.spacing_mm[1], 0.5 * scan.thickness_mm)
    shot = render(rng("body"), neck, scan.grid, softness_mm=softness, contrast=scan.contrast)
    turned = plan.variety == "upside_down"
    if turned:
        shot = shot.turned()
    hu = picture(rng("picture"), shot.hu, scan)
    truth = {
        "variety": plan.variety,
        "levels": level_rows(neck, scan, turned=turned),
        "reversed": scan.reversed,
        "tilt_deg": round(scan.tilt_deg, 3),
        "injuries": injuries,
        "findings": found,
    }
    return RenderedStudy(scan, hu, shot.labels, shot.damage, truth)


def boxes_of(study: RenderedStudy, seed: int) -> list[list[float]]:
    """Fracture boxes [x, y, width, height, file number], at most one per slice."""
    rng = np.random.default_rng(derive_seed(seed, "boxes"))
    pixel, way = study.scan.spacing_mm[1], study.scan.way
    damage = study.damage[:, ::way, ::way]
    return draw_boxes(rng, damage, study.scan.file_order, pixel_mm=pixel)


def _write_study(job: tuple[StudyPlan, Competition, PhantomConfig]) -> None:
    """Write one study; its image folder comes last and says that it is complete."""
    plan, competition, spec = job
    folder = competition.images(plan.split, plan.study_uid)
    if folder.exists():
        return
    study = render_study(plan, size_px=spec.size_px, difficulty=spec.difficulty)
    boxes = boxes_of(study, plan.seed) if plan.boxed else []
    write_json(_truth_path(competition, plan.study_uid), {**study.truth, "boxes": boxes})
    if plan.masked and ((study.labels > 0) & (study.labels <= len(LEVELS))).any():
        labels = study.labels
        if spec.difficulty == "real":
            rng = np.random.default_rng(derive_seed(plan.seed, "mask"))
            labels = draw_mask(rng, labels, study.scan.spacing_mm)
        with publish(competition.segmentation(plan.study_uid)) as temporary:
            write_nifti(temporary, study.scan, labels)
    with publish(folder) as temporary:
        if spec.files == "nifti":
            temporary.mkdir()
            write_nifti(temporary / "scan.nii", study.scan, study.hu)
        else:
            stored = study.scan.digitize(study.hu)
            write_dicom(temporary, plan.study_uid, study.scan, stored, syntax=study.scan.syntax)


def _truth_path(competition: Competition, study_uid: str) -> Path:
    return competition.root / "truth" / f"{study_uid}.json"


def _labels_table(plans: list[StudyPlan]) -> pd.DataFrame:
    """train.csv's shape: StudyInstanceUID, patient_overall, C1..C7."""
    rows = [(p.study_uid, max(p.labels), *p.labels) for p in plans]
    return pd.DataFrame(rows, columns=["StudyInstanceUID", OVERALL, *LEVELS])


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV atomically, with the same bytes everywhere."""
    with publish(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def _write_test_tables(competition: Competition, plans: list[StudyPlan]) -> None:
    test = [p for p in plans if p.split == "test"]
    write_csv(_labels_table(test), competition.solution_csv)
    rows = [(f"{p.study_uid}_{target}", p.study_uid, target) for target in TARGETS for p in test]
    listing = pd.DataFrame(rows, columns=["row_id", "StudyInstanceUID", "prediction_type"])
    write_csv(listing, competition.test_csv)
    write_csv(listing[["row_id"]].assign(fractured=0.5), competition.sample_submission_csv)


def _write_levels(competition: Competition, plans: list[StudyPlan]) -> None:
    """truth/levels.csv: study_uid, split, variety and the rows of `level_rows`."""
    rows = [
        {"study_uid": plan.study_uid, "split": plan.split, "variety": plan.variety, **row}
        for plan in plans
        for row in read_json(_truth_path(competition, plan.study_uid))["levels"]
    ]
    write_csv(pd.DataFrame(rows), competition.levels_truth)


def marker(spec: dict[str, Any], *, complete: bool) -> dict[str, Any]:
    """What `phantom.json` says."""
    return {"generator": GENERATOR, "spec": spec, "complete": complete}


def claim_folder(out: Path, spec: dict[str, Any]) -> bool:
    """Make `out` this phantom's folder; True where it is already finished.

    Raises:
        DataError: the folder holds something else, which is left untouched.
    """
    path = out / "phantom.json"
    claim = marker(spec, complete=False)
    if out.exists() and not out.is_dir():
        raise DataError(f"phantom: {out} is a file; name a folder that is new or empty")
    if not path.exists():
        held = sorted(p.name for p in out.iterdir())[:3] if out.is_dir() else []
        if held:
            raise DataError(
                f"phantom: {out} already holds {held}; nothing was written, "
                "name a folder that is new or empty"
            )
        write_json(path, claim)
        return False
    try:
        held_claim = read_json(path)
    except json.JSONDecodeError as error:
        raise DataError(f"phantom: {path} cannot be read ({error}); delete {out}") from error
    complete = bool(held_claim.get("complete", False))
    if held_claim != {**claim, "complete": complete}:
        raise DataError(
            f"phantom: {out} holds another phantom ({held_claim}), not {claim}; "
            "nothing was written, name another folder or delete this one"
        )
    return complete


def write_competition(out: Path, spec: PhantomConfig, *, jobs: int = 0) -> Competition:
    """Write a phantom competition, or return at once where it is already there.

    Args:
        out: a new or empty folder, or one that this very spec was written to (it is resumed).
        spec: size, difficulty, shares and seed.
        jobs: processes; 0 means the usable cores. The bytes do not depend on it.

    Raises:
        DataError: `out` holds something else, or a study could not be written.
    """
    competition = Competition(out)
    values = spec.model_dump(mode="json")
    if claim_folder(out, values):
        return competition
    plans = plan_studies(spec)
    write_studies(competition, spec, plans, jobs=jobs)
    _write_test_tables(competition, plans)
    _write_levels(competition, plans)
    write_json(out / "phantom.json", marker(values, complete=True))
    return competition


def write_studies(
    competition: Competition, spec: PhantomConfig, plans: list[StudyPlan], *, jobs: int
) -> None:
    """Write every study that is not there yet, and train.csv and the boxes.

    Raises:
        DataError: a study could not be written; what was written stays and is resumed.
    """
    for stale in competition.root.glob("*_images/.*.tmp"):
        shutil.rmtree(stale)
    items = {plan.study_uid: (plan, competition, spec) for plan in plans}
    outcome = map_studies(_write_study, items, jobs=jobs, title="phantom")
    if outcome.failures:
        first = next(iter(outcome.failures.values()))
        raise DataError(f"phantom: {len(outcome.failures)} studies failed; the first: {first}")
    train = [p for p in plans if p.split == "train"]
    boxes = [
        (p.study_uid, *box)
        for p in train
        for box in read_json(_truth_path(competition, p.study_uid))["boxes"]
    ]
    write_csv(_labels_table(train), competition.train_csv)
    write_csv(pd.DataFrame(boxes, columns=list(BOXES_CSV_COLUMNS)), competition.boxes_csv)

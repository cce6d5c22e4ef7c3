"""Hostile studies: one per defect that the real data has or may have, and what must come of it.

In: a folder and a seed. Out: a small competition whose test set holds one study per defect, and
`manifest.csv`. Example: `write_hostile(Path("data/hostile"), seed=0, size_px=32)`.

All hostile studies show one patient, so that a reader's output can be compared with the study
`clean`: `same_as_clean` says where the HU volume, head to foot, must be equal to the last bit.
Outcomes: `predicted` (from the models), `fallback` (from headers or priors, with a logged reason).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.config import PhantomConfig
from cspine_kit.core.paths import Competition
from cspine_kit.core.runs import derive_seed, publish, write_json
from cspine_kit.phantom.anatomy.shapes import Grid
from cspine_kit.phantom.competition import write as plain
from cspine_kit.phantom.competition.misfits import ALL_DEFECTS
from cspine_kit.phantom.scanner.files import slice_files

if TYPE_CHECKING:
    from cspine_kit.phantom.competition.defects import Files

SLICE_MM = 3.0
FIRST_NUMBER = plain.UID_NUMBERS + 1_000
LABELS = (0, 1, 0, 0, 1, 0, 0)
"""The patient of all hostile studies: C2 and C5 are fractured."""

HEALTHY_TRAINING = 6


NO_FOLDER = ("no_folder", "path_uid")
PATH_UID = "../../outside/1.2.3"


def _patient(seed: int, size_px: int) -> plain.RenderedStudy:
    """The one patient, with slices 3 mm apart; stored unsigned with intercept -1024."""
    plan = plain.StudyPlan("0.0", "test", LABELS, False, False, derive_seed("hostile", seed))
    study = plain.render_study(plan, size_px=size_px, difficulty="easy")
    step = max(1, round(SLICE_MM / study.scan.spacing_mm[0]))
    old = study.scan
    scan = replace(
        old,
        grid=Grid(old.grid.z[::step], old.grid.y, old.grid.x),
        spacing_mm=(old.spacing_mm[0] * step, *old.spacing_mm[1:]),
        reversed=False,
        signed=False,
        intercept=-1024,
        bits=12,
    )
    return replace(study, scan=scan, hu=study.hu[::step])


def write_hostile(out: Path, *, seed: int = 0, size_px: int = 64, jobs: int = 1) -> Competition:
    """Write the hostile competition: a few healthy training studies, one test study per defect.

    `manifest.csv` has the columns study_uid, defect, outcome, slices (usable ones; empty where
    not promised), same_as_clean, listed (stands in test.csv), what.

    Raises:
        DataError: `out` holds something else, which is left untouched.
    """
    competition = Competition(out)
    claim = {"hostile": True, "seed": seed, "size_px": size_px, "defects": len(ALL_DEFECTS)}
    if plain.claim_folder(out, claim):
        return competition
    spec = PhantomConfig(
        studies=HEALTHY_TRAINING, test_studies=1, size_px=size_px, difficulty="easy", seed=seed
    )
    plain.write_studies(competition, spec, plain.plan_studies(spec)[:HEALTHY_TRAINING], jobs=jobs)
    study = _patient(seed, size_px)
    stored = study.scan.digitize(study.hu)
    rows = []
    defects = tqdm(ALL_DEFECTS.items(), desc="hostile", unit="study")
    for order, (name, defect) in enumerate(defects):
        uid = PATH_UID if name == "path_uid" else f"{plain.UID_ROOT}.{FIRST_NUMBER + order}"
        promised = "" if defect.lost is None else len(stored) - defect.lost
        listed = name != "extra_folder"
        rows.append((uid, name, defect.outcome, promised, defect.same, listed, defect.what))
        if name not in NO_FOLDER and not competition.images("test", uid).exists():
            rng = np.random.default_rng(derive_seed("hostile", seed, name))
            _write_files(
                competition, uid, defect.change([*slice_files(uid, study.scan, stored)], rng)
            )
    _write_tables(competition, rows)
    write_json(out / "phantom.json", plain.marker(claim, complete=True))
    return competition


def _write_files(competition: Competition, uid: str, files: Files) -> None:
    with publish(competition.images("test", uid)) as folder:
        folder.mkdir()
        for name, file in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            if isinstance(file, bytes):
                path.write_bytes(file)
            else:
                file.save_as(path, enforce_file_format=True)


def _write_tables(competition: Competition, rows: Sequence[tuple[object, ...]]) -> None:
    names = ["study_uid", "defect", "outcome", "slices", "same_as_clean", "listed", "what"]
    manifest = pd.DataFrame(rows, columns=names)
    listed = manifest[manifest.listed]
    truth = [(uid, max(LABELS), *LABELS) for uid in listed.study_uid]
    asked = [(f"{uid}_{t}", uid, t) for uid in listed.study_uid for t in TARGETS]
    test = pd.DataFrame(asked, columns=["row_id", "StudyInstanceUID", "prediction_type"])
    twice = listed.study_uid[listed.defect == "listed_twice"]
    again = test[test.StudyInstanceUID.isin(twice)]
    solution = pd.DataFrame(truth, columns=["StudyInstanceUID", OVERALL, *LEVELS])
    plain.write_csv(manifest, competition.root / "manifest.csv")
    plain.write_csv(solution, competition.solution_csv)
    plain.write_csv(pd.concat([test, again]), competition.test_csv)
    plain.write_csv(test[["row_id"]].assign(fractured=0.5), competition.sample_submission_csv)

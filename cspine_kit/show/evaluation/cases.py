"""Judged scans beside their truth: what an evaluation counts.

In: folders, a label file, what `predict_folders` wrote. Out: `Cases`. Example::

    from cspine_kit.show.exports.predictions import Wanted, predict_folders

    done = predict_folders([folder], Wanted(bundle, Path("predictions")))
    cases = gather_cases({folder.name: folder}, done, competition.train_csv)
    cases.probs.shape, cases.facts.columns.tolist(), cases.left_out
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.errors import DataError
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.runs import read_json
from cspine_kit.data.labels import parse_labels
from cspine_kit.data.reader.headers.files import list_files, opened
from cspine_kit.show.exports.predictions import Done

Points = dict[str, dict[str, float]]
"""Threshold by target and operating point."""

FIELDS = ("pixel spacing", "slice distance", "contrast", "coverage")
"""What studies are grouped by."""


@dataclass(frozen=True)
class Cases:
    """Studies that were judged and whose truth is known.

    Attributes:
        names: of the n studies.
        truth, probs: (n, 8) in the order of `TARGETS`; NaN where the scan does not hold a level.
        facts: a row for each study, the groups of `FIELDS` it belongs to.
        points: the bundle's frozen thresholds by target and operating point.
        left_out: why other studies do not count, by name.
        notes: what must stand beside every output.
    """

    names: list[str]
    truth: FloatArray
    probs: FloatArray
    facts: pd.DataFrame
    points: Points
    left_out: dict[str, str]
    notes: list[str]


def gather_cases(folders: Mapping[str, Path], done: Sequence[Done], labels_csv: Path) -> Cases:
    """Put judgments beside the truth.

    Args:
        folders: by the names of `done`.
        done: what was judged.
        labels_csv: train.csv's shape; ids are the names of the folders.

    Raises:
        DataError: not one study was judged and has a label.
    """
    labels, reasons = parse_labels(labels_csv)
    left_out: dict[str, str] = {}
    names, probs, facts = [], [], []
    points: Points = {}
    notes: dict[str, None] = {}
    for one in done:
        uid = one.name if one.name in labels.index else one.name.removesuffix(".zip")
        if uid not in labels.index:
            left_out[one.name] = reasons.get(uid, f"{labels_csv.name} has no row for it")
        elif one.status != "ok":
            left_out[one.name] = f"cannot be judged: {one.reason}"
        else:
            said = read_json(one.path)
            table = said["probabilities"]
            probs.append([table[t]["prob"] if table[t]["in_scan"] else np.nan for t in TARGETS])
            points = {t: table[t]["thresholds"] for t in TARGETS}
            facts.append(_facts(said, folders[one.name]))
            notes |= dict.fromkeys(said["notes"])
            names.append(uid)
    if not names:
        first = next(iter(left_out.items()), ("nothing", "no folder was given"))
        raise DataError(f"no study can be counted; {first[0]}: {first[1]}")
    truth = labels.loc[names, list(TARGETS)].to_numpy(np.float64)
    held = np.array(probs, dtype=np.float64)
    return Cases(
        *(names, np.where(np.isnan(held), np.nan, truth), held, pd.DataFrame(facts), points),
        *(left_out, list(notes)),
    )


def _facts(said: Mapping[str, Any], folder: Path) -> dict[str, str]:
    z, y, _ = said["spacing_mm"]
    missing = sum(not row["in_scan"] for row in said["levels"])
    pixel = "up to 0.35 mm" if y <= 0.35 else "0.35 to 0.5 mm" if y <= 0.5 else "above 0.5 mm"
    step = "up to 1 mm" if z <= 1.0 else "1 to 2 mm" if z <= 2.0 else "above 2 mm"
    whole = f"all of {LEVELS[0]} to {LEVELS[-1]}"
    return dict(
        zip(FIELDS, (pixel, step, contrast_of(folder), "parts" if missing else whole), strict=True)
    )


def contrast_of(folder: Path) -> str:
    """Whether a contrast agent is named in a study's first file: "yes", "no" or "not told"."""
    import pydicom

    try:
        with opened(folder) as place:
            file = place / list_files(place)[0]
            header = pydicom.dcmread(file, specific_tags=["ContrastBolusAgent"], force=True)
    except Exception:  # noqa: BLE001 - the reader has said what is wrong with the files
        return "not told"
    if "ContrastBolusAgent" not in header:
        return "not told"
    agent = str(header.ContrastBolusAgent or "").strip().lower()
    return "no" if agent in ("", "none", "no", "without") else "yes"

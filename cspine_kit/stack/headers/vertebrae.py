"""Which vertebrae a slice shows, from geometry alone: a baseline, and a member without pixels.

In: a table of slice headers (StudyInstanceUID, slice_number, SliceThickness,
ImagePositionPatient_x/y/z) and C1..C7 visible (0/1) per slice of a few studies. Out: study_uid,
slice_number, vertebra_C1..vertebra_C7 (probabilities) for every slice, out-of-fold where a study
has presence labels. Example::

    result = run_vertebra_headers(slice_headers, presence, Path("vertebrae.csv"))
    result["accuracy"]["headers"]["mean"]

Two models, averaged. A Gaussian process predicts where each level begins and ends, in mm below the
top of the scan, from six facts of the scan; the errors it makes on the studies it leaves out turn
positions into probabilities. LightGBM then sees each slice in those coordinates. What a header does
not say is where in the scan the neck lies, so errors of about a centimeter remain.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.errors import DataError
from cspine_kit.core.numbers import FloatArray, IntArray
from cspine_kit.core.runs import publish
from cspine_kit.core.tables import VERTEBRA_COLUMNS
from cspine_kit.data.position import scan_position
from cspine_kit.stack.fallback.ends import EndsModel, Scan, one_peak
from cspine_kit.stack.headers.features import read_headers

HEADER_COLUMNS = (
    *("StudyInstanceUID", "slice_number", "SliceThickness"),
    *("ImagePositionPatient_x", "ImagePositionPatient_y", "ImagePositionPatient_z"),
)
FOREST = (0.8891, 0.8898, 0.8962, 0.8952, 0.8893, 0.8713, 0.8576)
"""Accuracy C1..C7 of the published random forest (Penn State draft, source document D)."""

FAR_TABLE_MM = -180.0
"""ImagePositionPatient_y below it: a scanner that counts y from the table's low position."""
BOOSTER = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 6,
    "min_data_in_leaf": 200,
    "extra_trees": True,
    "feature_fraction": 0.6,
    "verbose": -1,
    "deterministic": True,
    "force_row_wise": True,
}
ROUNDS = 150
MIXED_RHO = 0.8


def _facts(x: float, y: float, z: FloatArray, thickness: float) -> FloatArray:
    """What the scan's geometry says about where the neck lies in it."""
    extent = float(z[0] - z[-1])
    # Some scanners place slices on a grid of half millimeters: a maker's handwriting.
    half = abs(2 * z[0] - round(2 * z[0])) < 0.01 and abs(2 * x - round(2 * x)) < 0.01
    far = float(y < FAR_TABLE_MM)
    place = [np.clip(x, -165, -50), np.clip(y, -300, 130)]
    return np.array([extent, np.log(max(extent, 1.0)), far, thickness, *place, float(half)])


def read_table_file(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A parquet or CSV table with ids as text.

    Raises:
        DataError: absent, unreadable, without a column, empty, or with a slice listed twice.
    """
    frame = read_headers(path)
    missing = [column for column in columns if column not in frame]
    if missing or frame.empty:
        raise DataError(f"{path}: " + (f"no column {missing}" if missing else "no rows"))
    if frame.duplicated(["StudyInstanceUID", "slice_number"]).any():
        raise DataError(f"{path}: a slice (StudyInstanceUID, slice_number) is listed twice")
    return frame


def level_order(shown: FloatArray) -> float:
    """Correlation of level and position: 1 where C1 lies above C7, -1 where it runs against z."""
    seen = [level for level in range(N_LEVELS) if shown[:, level].any()]
    if len(seen) < 2:
        return 1.0
    middle = [np.median(np.flatnonzero(shown[:, level])) for level in seen]
    return float(np.corrcoef(seen, middle)[0, 1])


def read_scans(
    headers: pd.DataFrame, presence: pd.DataFrame
) -> tuple[dict[str, Scan], dict[str, IntArray], dict[str, str]]:
    """By study_uid: scans, their slices' numbers, and what was corrected in the presence rows.

    Presence rows that run against z (C1 recorded below C7) were numbered from the other end: they
    are turned round. Where even then levels lie in no clear order, the study is named as mixed.
    """
    labels = {
        uid: rows.set_index("slice_number")[list(LEVELS)]
        for uid, rows in presence.groupby("StudyInstanceUID")
    }
    scans, numbers, corrected = {}, {}, {}
    for study, rows in headers.groupby("StudyInstanceUID", sort=True):
        uid = str(study)
        ordered = rows.sort_values(
            ["ImagePositionPatient_z", "slice_number"], ascending=[False, True]
        )
        z = ordered["ImagePositionPatient_z"].to_numpy(np.float64)
        numbers[uid] = ordered["slice_number"].to_numpy(np.int64)
        x, y = (float(ordered[f"ImagePositionPatient_{axis}"].median()) for axis in "xy")
        thickness = float(ordered["SliceThickness"].iloc[0])
        shown = None
        if uid in labels:
            found = labels[uid].reindex(numbers[uid])
            if found.isna().to_numpy().any():
                raise DataError(f"study {uid}: presence rows do not cover its slices")
            shown = found.to_numpy(np.float64)
            rho = level_order(shown)
            if rho < 0:
                shown = shown[::-1]
                corrected[uid] = "ran against z, turned round"
            if abs(rho) < MIXED_RHO:
                corrected[uid] = corrected.get(uid, "kept") + f"; mixed ({rho:+.2f})"
        scans[uid] = Scan(z[0] - z, _facts(x, y, z, thickness), shown)
    strangers = sorted(set(labels) - set(scans))
    if strangers:
        raise DataError(
            f"presence rows of {len(strangers)} studies without headers: {strangers[0]}"
        )
    return scans, numbers, corrected


def slice_features(scan: Scan, ends: FloatArray) -> FloatArray:
    """Each slice in the coordinates of the expected levels, and the scan's facts."""
    below = scan.below_mm
    center = np.maximum.accumulate((ends[:N_LEVELS] + ends[N_LEVELS:]) / 2)
    grid = np.concatenate([[center[0] - 160.0], center, [center[-1] + 160.0]])
    level = np.interp(below, grid, np.arange(-10.0, N_LEVELS + 11)[[0, *range(10, 17), -1]])
    facts = np.broadcast_to(scan.facts, (len(below), len(scan.facts)))
    return np.column_stack([scan_position(below), below - center[3], level, facts])


class HeaderModel:
    """Both models, fitted on labelled scans."""

    def __init__(self, scans: list[Scan], seed: int) -> None:
        """Fit; LightGBM sees each scan where a process that left it out expects its levels."""
        import lightgbm

        self.ends_ = EndsModel(scans)
        rows = [
            slice_features(scan, ends)
            for scan, ends in zip(scans, self.ends_.left_out_, strict=True)
        ]
        features = np.concatenate(rows)
        labels = np.concatenate([scan.shown for scan in scans if scan.shown is not None])
        self.boosters_ = [
            lightgbm.train(
                {**BOOSTER, "seed": seed, "num_threads": 1},
                lightgbm.Dataset(features, labels[:, level]),
                ROUNDS,
            )
            for level in range(N_LEVELS)
        ]

    def probs(self, scan: Scan) -> FloatArray:
        """Ordered probabilities (n, 7) that each slice shows each level."""
        features = slice_features(scan, self.ends_.ends(scan))
        boosted = np.column_stack([booster.predict(features) for booster in self.boosters_])
        return one_peak((self.ends_.probs(scan) + boosted) / 2)


def predict_all(scans: dict[str, Scan], folds: int, seed: int) -> dict[str, FloatArray]:
    """Probabilities (n, 7) of every scan; out-of-fold where it has labels.

    Raises:
        DataError: fewer labelled studies than folds.
    """
    labelled = [uid for uid, scan in scans.items() if scan.shown is not None]
    if len(labelled) < 2 * folds:
        raise DataError(f"{len(labelled)} labelled studies are too few for {folds} folds")
    predicted: dict[str, FloatArray] = {}
    order = np.array(labelled)[np.random.default_rng(seed).permutation(len(labelled))]
    dealt = tqdm(np.array_split(order, folds), desc="vertebra headers", unit="fold")
    for fold, held_out in enumerate(dealt):
        model = HeaderModel([scans[u] for u in labelled if u not in set(held_out)], seed + fold)
        predicted.update({uid: model.probs(scans[uid]) for uid in held_out})
    rest = [uid for uid in scans if uid not in predicted]
    if rest:
        model = HeaderModel([scans[uid] for uid in labelled], seed + folds)
        predicted.update({uid: model.probs(scans[uid]) for uid in rest})
    return predicted


def accuracy(scans: dict[str, Scan], predicted: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Accuracy (7,) over all labelled slices of the model and of the majority class."""
    labelled = [uid for uid, scan in scans.items() if scan.shown is not None]
    truth = np.concatenate([np.asarray(scans[uid].shown) for uid in labelled]) > 0.5
    said = np.concatenate([predicted[uid] for uid in labelled]) > 0.5
    share = truth.mean(axis=0)
    return {"headers": (said == truth).mean(axis=0), "majority": np.maximum(share, 1 - share)}


def run_vertebra_headers(
    slices: Path, presence: Path, out: Path, *, folds: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Fit, cross-validate and write vertebra probabilities of every slice of a header table.

    Args:
        slices: header table, parquet or CSV.
        presence: StudyInstanceUID, slice_number, C1..C7.
        out: CSV, or parquet by its suffix.
        folds: grouped by study.
        seed: of the folds and of LightGBM.

    Returns:
        accuracy per level and mean ("headers", "majority", "forest"), corrected studies, counts.

    Raises:
        DataError: a table cannot be used.
    """
    headers = read_table_file(slices, HEADER_COLUMNS)
    labels = read_table_file(presence, ("StudyInstanceUID", "slice_number", *LEVELS))
    scans, numbers, corrected = read_scans(headers, labels)
    predicted = predict_all(scans, folds, seed)
    parts = []
    for uid, own in numbers.items():
        rows = pd.DataFrame({"study_uid": uid, "slice_number": own})
        rows[list(VERTEBRA_COLUMNS)] = predicted[uid].round(5)
        parts.append(rows.sort_values("slice_number"))
    table = pd.concat(parts, ignore_index=True)
    with publish(out) as temporary:
        if out.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False)
    scores = {**accuracy(scans, predicted), "forest": np.array(FOREST)}
    table_of = {n: dict(zip(LEVELS, v.tolist(), strict=True)) for n, v in scores.items()}
    return {
        "accuracy": {n: own | {"mean": float(scores[n].mean())} for n, own in table_of.items()},
        "corrected": corrected,
        "studies": len(scans),
        "labelled": sum(scan.shown is not None for scan in scans.values()),
        "slices": len(table),
    }


def render(result: dict[str, Any]) -> str:
    """The result as a table of accuracies per level and a line per correction."""
    names = {
        "majority": "majority class",
        "forest": "random forest (published)",
        "headers": "headers, this run",
    }
    lines = [f"{'accuracy per slice':26s}" + "".join(f"{c:>8s}" for c in (*LEVELS, "mean"))]
    for key, name in names.items():
        row = result["accuracy"][key]
        lines.append(f"{name:26s}" + "".join(f"{row[c]:8.4f}" for c in (*LEVELS, "mean")))
    lines += [f"presence of {uid}: {what}" for uid, what in result["corrected"].items()]
    counts = f"{result['slices']} slices of {result['studies']} studies"
    return "\n".join([*lines, f"{counts}, {result['labelled']} of them labelled (out-of-fold)"])

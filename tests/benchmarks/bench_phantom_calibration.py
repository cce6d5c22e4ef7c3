"""The phantom beside the real competition: prints the table of docs/phantom.md.

Run: CSPINE_REAL_DATA=DIR python tests/benchmarks/bench_phantom_calibration.py [--rendered 240]

Labels and geometry are drawn for 2,019 studies; boxes, HU histograms and the shortcut test come
from `--rendered` studies of `real` difficulty at 160 pixels, boxes scaled to 512. Two cores: about
three minutes for 240 studies.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from cspine_kit.core.anatomy import LEVELS, OVERALL
from cspine_kit.core.config import PhantomConfig
from cspine_kit.core.runs import derive_seed
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.phantom.anatomy.spine import draw_neck
from cspine_kit.phantom.competition.levels import level_rows
from cspine_kit.phantom.competition.write import StudyPlan, boxes_of, plan_studies, render_study
from cspine_kit.phantom.scanner.scan import draw_scan

ROOT = Path(__file__).resolve().parents[2]
SIZE_PX = 160
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
REAL_NECK_MM = (-126.0, -267.0)
"""z of the real CT's C1 to C7, read off by eye."""
NEAR_MM = 60.0
"""HU are compared within this distance of the slice's bone."""
BONE_HU, SOFT_HU = np.arange(200, 1601, 50), np.arange(-200, 151, 10)


def histograms(hu: NDArray[np.int16], pixel_mm: float) -> NDArray[np.float64]:
    """Counts of HU around the spine of neck slices (z, y, x): bone's bins, then soft tissue's."""
    rows, cols = np.nonzero((hu > BONE_HU[0]).mean(axis=0) > 0.15)
    y, x, reach = int(np.median(rows)), int(np.median(cols)), int(NEAR_MM / pixel_mm)
    near = hu[:, max(0, y - reach) : y + reach, max(0, x - reach) : x + reach]
    counts = [np.histogram(near, bins)[0] for bins in (BONE_HU, SOFT_HU)]
    return np.concatenate(counts).astype(float)


def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> str:
    """Common share of two histograms, for bone and for soft tissue."""
    cut = len(BONE_HU) - 1
    shares = [
        np.minimum(p / p.sum(), q / q.sum()).sum()
        for p, q in ((a[:cut], b[:cut]), (a[cut:], b[cut:]))
    ]
    return " / ".join(f"{share:.0%}" for share in shares)


def rendered(plan: StudyPlan) -> dict[str, object]:
    """What is measured on one rendered study."""
    study = render_study(plan, size_px=SIZE_PX, difficulty="real")
    scan = study.scan
    neck = np.flatnonzero(((study.labels >= 1) & (study.labels <= 7)).any(axis=(1, 2)))
    boxes = np.array(boxes_of(study, plan.seed) or np.zeros((0, 5)))
    header = [len(study.hu), *scan.spacing_mm, scan.thickness_mm, scan.intercept, scan.bits]
    header += [scan.signed, scan.reversed, scan.syntax == "plain", scan.tilt_deg, *scan.origin_mm]
    sample = study.hu[::4]
    global_hu = [*np.quantile(sample, (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999))]
    global_hu += [sample.mean(), sample.std(), (sample > 300).mean(), (sample > 1000).mean()]
    return {
        "overall": max(plan.labels),
        "features": [float(v) for v in (*header, *global_hu)],
        "boxes": boxes[:, 2:4] * 512 / study.hu.shape[1],
        "histogram": histograms(study.hu[neck[0] : neck[-1] + 1], scan.spacing_mm[1]),
    }


def shortcut_auc(features: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Out-of-fold AUC of LightGBM, mean over three splits."""
    scores = []
    for seed in range(3):
        prob = np.zeros(len(labels))
        for fit, held in StratifiedKFold(5, shuffle=True, random_state=seed).split(
            features, labels
        ):
            model = lightgbm.LGBMClassifier(
                n_estimators=60, num_leaves=7, min_child_samples=10, learning_rate=0.05, verbose=-1
            )
            model.fit(features[fit], labels[fit])
            prob[held] = model.predict_proba(features[held])[:, 1]
        scores.append(roc_auc_score(labels, prob))
    return float(np.mean(scores))


def row(name: str, here: object, there: object = "") -> None:
    sys.stdout.write(f"| {name} | {here} | {there} |\n")


def joined(values: object, digits: int = 0) -> str:
    return " / ".join(f"{v:.{digits}f}" for v in np.quantile(np.asarray(values, float), QUANTILES))


def training_plans(count: int, size_px: int) -> list[StudyPlan]:
    """Plans of `count` training studies of `real` difficulty, none of them masked."""
    spec = PhantomConfig(studies=count, test_studies=1, size_px=size_px, masked=0.0, seed=1)
    return plan_studies(spec)[:count]


def print_geometry(real: Path) -> None:
    """Labels, slice counts, lengths and spacings of 2,019 drawn studies."""
    plans = training_plans(2019, 512)
    truth = pd.read_csv(real / "train.csv")
    labels = np.array([p.labels for p in plans])
    row(
        "prevalence C1..C7 (%)",
        *(
            " ".join(f"{100 * v:.1f}" for v in m.mean(axis=0))
            for m in (labels, truth[list(LEVELS)].to_numpy())
        ),
    )
    row(
        "fractured levels per study 0..6",
        *(
            " ".join(str(int(n)) for n in np.bincount(m.sum(axis=1), minlength=7))
            for m in (labels, truth[list(LEVELS)].to_numpy())
        ),
    )
    row(
        "correlation of neighbors C1-C2 .. C6-C7",
        *(
            " ".join(f"{v:.2f}" for v in np.diag(np.corrcoef(m.T), 1))
            for m in (labels, truth[list(LEVELS)].to_numpy())
        ),
    )
    scans = [
        draw_scan(
            np.random.default_rng(derive_seed(p.seed, "scan")),
            draw_neck(np.random.default_rng(derive_seed(p.seed, "neck"))),
            size_px=512,
            difficulty="real",
            place=p.place,
        )
        for p in plans
    ]
    headers = pd.read_parquet(real / "slice_headers.parquet")
    z = headers.groupby("StudyInstanceUID").ImagePositionPatient_z
    count, length = z.size(), z.max() - z.min()
    mine = np.array([len(s.grid.z) for s in scans]), np.array([s.spacing_mm[0] for s in scans])
    row("slices per study, 10 / 25 / 50 / 75 / 90 %", joined(mine[0]), joined(count))
    row("first to last slice (mm), same", joined((mine[0] - 1) * mine[1]), joined(length))
    row("slice spacing (mm), same", joined(mine[1], 3), joined(length / (count - 1), 3))
    ascending = (
        headers.sort_values("slice_number").groupby("StudyInstanceUID").ImagePositionPatient_z
    )
    row(
        "reversed (%)",
        f"{100 * np.mean([s.reversed for s in scans]):.1f}",
        f"{100 * (ascending.last() > ascending.first()).mean():.1f}",
    )
    row("oblique (studies of 2,019)", sum(s.tilt_deg > 0 for s in scans), 6)
    row("contrast (%)", f"{100 * np.mean([s.contrast for s in scans]):.1f}", "not in the headers")


def print_levels(real: Path, count: int) -> None:
    """Heights of C1..C7, distances of their middles, and how far scans go on beyond them."""
    mine = []
    for plan in training_plans(count, SIZE_PX):
        neck = draw_neck(np.random.default_rng(derive_seed(plan.seed, "neck")))
        rng = np.random.default_rng(derive_seed(plan.seed, "scan"))
        scan = draw_scan(rng, neck, size_px=SIZE_PX, difficulty="real", place=plan.place)
        frame = float(scan.axes[2] @ np.array(scan.origin_mm))
        ends = {"first": float(scan.grid.z[0]) + frame, "last": float(scan.grid.z[-1]) + frame}
        mine += [
            {"study_uid": plan.study_uid, **ends, **r} for r in level_rows(neck, scan, turned=False)
        ]
    placed = pd.read_csv(real / "level_positions.csv")
    headers = pd.read_parquet(real / "slice_headers.parquet")
    z = headers.groupby("StudyInstanceUID").ImagePositionPatient_z
    placed["first"] = placed["StudyInstanceUID"].map(z.max())
    placed["last"] = placed["StudyInstanceUID"].map(z.min())
    columns = {"StudyInstanceUID": "study_uid", "z_high": "z_top_mm", "z_low": "z_bottom_mm"}
    tables = [pd.DataFrame(mine), placed.rename(columns=columns)]
    shown = [level_figures(table) for table in tables]
    for name in shown[0]:
        row(name, *(figures[name] for figures in shown))


def level_figures(table: pd.DataFrame) -> dict[str, str]:
    """Medians over studies of z extents, distances and what is scanned beyond the neck."""
    wide = table.pivot_table(index="study_uid", columns="level", values=["z_top_mm", "z_bottom_mm"])
    tall = wide["z_top_mm"] - wide["z_bottom_mm"]
    middle = (wide["z_top_mm"] + wide["z_bottom_mm"]) / 2
    ends = table.groupby("study_uid")[["first", "last"]].first()
    beyond = {
        "above C1's middle": ends["first"] - middle["C1"],
        "below C7's": middle["C7"] - ends["last"],
    }
    return {
        "z extent of C1..C7 (mm), median": " ".join(f"{v:.1f}" for v in tall.median()),
        "distance of middles C1-C2 .. C6-C7 (mm), median": " ".join(
            f"{-v:.1f}" for v in middle.diff(axis=1).median().iloc[1:]
        ),
        **{
            f"scanned {name} (mm), 10 / 50 / 90 %": " / ".join(
                f"{v:.0f}" for v in values.dropna().quantile([0.1, 0.5, 0.9])
            )
            for name, values in beyond.items()
        },
    }


def print_rendered(real: Path, count: int, jobs: int) -> None:
    """Boxes, histograms and the shortcut test."""
    plans = training_plans(count, SIZE_PX)
    with ProcessPoolExecutor(jobs) as pool:
        found = list(pool.map(rendered, plans, chunksize=4))
    boxes = pd.read_csv(real / "train_bounding_boxes.csv")
    mine = np.concatenate([f["boxes"] for f in found])
    row(
        "box width, height (px of 512), median",
        joined_pair(mine),
        joined_pair(boxes[["width", "height"]]),
    )
    per_study = [len(f["boxes"]) for f in found if len(f["boxes"])]
    row(
        "boxes per study, median",
        f"{np.median(per_study):.0f} ({len(per_study)} studies)",
        f"{boxes.groupby('StudyInstanceUID').size().median():.0f}",
    )
    study = read_study(real / "head_neck_ct")
    top, bottom = REAL_NECK_MM
    neck = study.hu[(study.z_mm <= top) & (study.z_mm >= bottom)]
    mean = np.mean([f["histogram"] / f["histogram"].sum() for f in found], axis=0)
    row(
        "HU overlap with one real CT: bone / soft tissue",
        overlap(mean, histograms(neck, study.spacing_mm[1])),
    )
    features, labels = (
        np.array([f["features"] for f in found]),
        np.array([f["overall"] for f in found]),
    )
    shuffled = np.mean(
        [shortcut_auc(features, np.random.default_rng(s).permutation(labels)) for s in range(3)]
    )
    row(
        f"shortcut AUC {OVERALL}; labels shuffled",
        f"{shortcut_auc(features, labels):.2f}; {shuffled:.2f} ({count} studies)",
    )


def joined_pair(values: object) -> str:
    return ", ".join(f"{v:.0f}" for v in np.median(np.asarray(values, float), axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rendered", type=int, default=240)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    real = Path(os.environ.get("CSPINE_REAL_DATA", ROOT.parent / "shared" / "real"))
    sys.stdout.write("| measurement (`real`) | phantom | competition |\n|---|---|---|\n")
    print_geometry(real)
    print_levels(real, args.rendered)
    print_rendered(real, args.rendered, args.jobs)


if __name__ == "__main__":
    main()

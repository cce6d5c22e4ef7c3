"""docs/phantom.png: plain phantoms in three planes, and every variety with its levels.

Run: python tests/benchmarks/phantom_picture.py [--out docs/phantom.png] [--size 192]

The levels of the lower rows are those of the truth: colored voxels, and a dash at the middle of
each level's z extent, dotted where the level counts as absent.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

mpl.use("Agg")
import matplotlib.pyplot as plt

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.phantom.competition.varieties import HIDDEN
from cspine_kit.phantom.competition.write import RenderedStudy, StudyPlan, render_study

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"real": (0, 0, 0, 0, 1, 0, 1), "easy": (0, 0, 0, 1, 0, 0, 0)}
SEEDS = {"real": 3, "easy": 11}
HU_RANGE = {"cmap": "gray", "vmin": -300, "vmax": 1100}
COLUMNS = 8


def study(variety: str, difficulty: str, labels: tuple[int, ...], seed: int, size_px: int):
    plan = StudyPlan("1.2.3", "train", labels, False, False, seed, variety, 0.5)
    return render_study(plan, size_px=size_px, difficulty=difficulty)


def middle_column(found: RenderedStudy) -> int:
    """Column through the middle of the vertebrae; of the frame where it shows none."""
    columns = np.flatnonzero((found.labels > 0).any(axis=(0, 1)))
    return int(np.median(columns)) if len(columns) else found.hu.shape[2] // 2


def plain_row(axes: list[Axes], found: RenderedStudy, title: str) -> None:
    """Sagittal, coronal and six axial planes of a study."""
    tall, pixel, _ = found.scan.spacing_mm
    column, row = middle_column(found), int(np.median(np.nonzero(found.labels == 4)[1]))
    axes[0].imshow(found.hu[:, :, column], aspect=tall / pixel, **HU_RANGE)
    axes[1].imshow(found.hu[:, row], aspect=tall / pixel, **HU_RANGE)
    shown = np.flatnonzero(((found.labels > 0) & (found.labels <= 8)).any(axis=(1, 2)))
    for axis, z in zip(axes[2:], np.linspace(shown[0], shown[-1], COLUMNS - 2), strict=True):
        axis.imshow(found.hu[int(z)], **HU_RANGE)
    axes[0].set_title(title, fontsize=8, loc="left")


def variety_panel(axis: Axes, found: RenderedStudy, title: str) -> None:
    """One sagittal plane in millimeters, with the labels and where the truth puts each level."""
    scan, column = found.scan, middle_column(found)
    z = scan.grid.z + float(scan.axes[2] @ np.array(scan.origin_mm))
    step, pixel, _ = scan.spacing_mm
    depth = found.hu.shape[1] * pixel
    extent = (0.0, depth, float(z[-1]) - step / 2, float(z[0]) + step / 2)
    axis.imshow(found.hu[:, :, column], extent=extent, aspect="equal", **HU_RANGE)
    labels = np.ma.masked_equal(found.labels[:, :, column], 0)
    axis.imshow(labels, extent=extent, aspect="equal", cmap="tab20", vmin=0, vmax=19, alpha=0.55)
    for row in found.truth["levels"]:
        at = row["center_z_mm"]
        if extent[2] - 60 < at < extent[3] + 60:
            style = "-" if row["present"] else ":"
            x = row["center_y_mm"] + 38
            axis.plot((x, x + 10), (at, at), style, color="yellow", lw=1)
            axis.text(x + 12, at, row["level"], color="yellow", fontsize=5, va="center")
    axis.set_xlim(0, depth)
    axis.set_ylim(extent[2] - 30, extent[3] + 30)
    axis.set_title(title, fontsize=8, loc="left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "phantom.png")
    parser.add_argument("--size", type=int, default=160)
    args = parser.parse_args()
    figure, axes = plt.subplots(
        3, COLUMNS, figsize=(15, 7.2), height_ratios=(1, 1, 1.6), layout="constrained"
    )
    for row, (difficulty, labels) in zip(axes, PLAIN.items(), strict=False):
        found = study("", difficulty, labels, SEEDS[difficulty], args.size)
        said = ", ".join(f"{level} {kind}" for level, kind in found.truth["injuries"].items())
        plain_row(list(row), found, f"{difficulty}: {said}")
    for axis, variety in zip(axes[2], HIDDEN, strict=True):
        found = study(variety, "easy", (0,) * len(LEVELS), SEEDS["easy"], args.size)
        variety_panel(axis, found, variety)
    for axis in axes.flat:
        axis.set_facecolor("black")
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(args.out, dpi=84)


if __name__ == "__main__":
    main()

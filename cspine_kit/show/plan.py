"""What a run will cost before it starts: studies, disk and GPU hours.

In: a config. Out: text. Example: `print(describe_plan(config))`.

Counts come from the competition folder where it exists, otherwise from the real training set. GPU
hours rest on the two assumed speeds below, which `oof/<name>/models/*/*/run.json` replaces with
measured seconds once a fold has run.
"""

import csv
import shutil
from pathlib import Path

from cspine_kit.core.anatomy import REAL_MASKED, REAL_SLICES, REAL_STUDIES
from cspine_kit.core.config import Config, GridConfig, ModelConfig
from cspine_kit.core.paths import MASK_ENDINGS, Competition
from cspine_kit.data.volumes.cache import COMPRESSED

REAL_COVERAGE_MM, SPINE_MM = 250.0, 140.0
"""Assumed length of a scan and of C1..C7, mm; with a step they give the slices a network sees."""

TRAIN_PER_S, PREDICT_PER_S = 150.0, 500.0
"""Assumed stacks per second of a 20-30 M parameter network on one T4 at 256 px, fp16. Not measured
on this machine; networks of other sizes scale it."""

BASE_PX = 256


def _counts(config: Config) -> tuple[int, int, int, bool]:
    """Training studies, their slices, masked studies, and whether they were counted on disk."""
    phantom = config.competition.phantom
    if phantom is not None:
        studies = phantom.studies
        return studies, studies * 120, round(studies * phantom.masked), False
    competition = Competition(config.competition.dir)
    if not competition.train_csv.exists():
        return REAL_STUDIES, REAL_SLICES, REAL_MASKED, False
    with competition.train_csv.open(newline="") as handle:
        studies = sum(1 for _ in csv.DictReader(handle))
    masks = sum(path.name.endswith(MASK_ENDINGS) for path in competition.segmentations.glob("*"))
    return studies, round(REAL_SLICES / REAL_STUDIES * studies), masks, True


def _hours(model: ModelConfig, studies: int, coverage_mm: float, predicted: int) -> float:
    area = (model.size_px / BASE_PX) ** 2
    trained = studies * model.drawn * model.epochs
    seen = predicted * model.shown(coverage_mm)
    return area * (trained / TRAIN_PER_S + seen / PREDICT_PER_S) / 3600.0


def _grid(grid: GridConfig) -> str:
    return f"{grid.side_px} px at {grid.spacing_mm} mm"


def describe_plan(config: Config) -> str:
    """A few lines: what is trained on what, the volumes' size against free disk, GPU hours."""
    studies, slices, masked, counted = _counts(config)
    n = config.folds.n
    volumes = config.volumes
    length_mm = SPINE_MM + 2 * volumes.fine.margin_mm
    coarse_gb = studies * REAL_COVERAGE_MM / volumes.coarse.spacing_mm * volumes.coarse.side_px**2
    fine_gb = slices * min(1.0, length_mm / REAL_COVERAGE_MM) * volumes.fine.side_px**2
    share = (n - 1) / n
    hours: dict[str, float] = {}
    for name, model in config.trained.items():
        learned = studies if name in config.teachers else masked
        hours[name] = n * _hours(model, round(learned * share), REAL_COVERAGE_MM, studies)
    for name, model in config.members.items():
        hours[name] = n * _hours(model, round(studies * share), SPINE_MM, round(studies / n))
    place = config.competition.dir
    while not place.exists():
        place = place.parent
    free_gb = shutil.disk_usage(place if place.exists() else Path()).free / 1e9
    lines = [
        f"plan of {config.name}: {studies} training studies, {masked} with masks, "
        f"about {slices:,} slices ({'counted' if counted else 'expected'}), {n} folds",
        f"  volumes: coarse {_grid(volumes.coarse)}, about {coarse_gb / 1e9:.1f} GB; "
        f"fine {_grid(volumes.fine)}, about {fine_gb / 1e9:.1f} GB; about {COMPRESSED:.0%} of that "
        f"on disk ({free_gb:.0f} GB free)",
    ]
    for name, network in config.trained.items():
        pretrained = "pretrained" if network.pretrained else "from scratch"
        lines.append(
            f"  {name}: {network.backbone} ({pretrained}), "
            f"{network.channels} x {network.size_px} px, {network.epochs} epochs x {n} folds, "
            f"about {hours[name]:.1f} GPU h"
        )
    lines.append(
        f"  total about {sum(hours.values()):.1f} GPU h, assuming {TRAIN_PER_S:.0f} training and "
        f"{PREDICT_PER_S:.0f} inference stacks per second and GPU at {BASE_PX} px"
    )
    return "\n".join(lines)

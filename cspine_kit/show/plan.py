"""What a run will cost before it starts: studies, disk, GPU hours, and seconds in the kernel.

In: a config. Out: text. Example: `print(describe_plan(config))`.

Counts come from the competition folder where it exists, otherwise from the real training set. Hours
and seconds rest on the two assumed speeds below, or on this machine's own (`vision.measure`).
"""

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path

from cspine_kit.core.anatomy import REAL_MASKED, REAL_SLICES, REAL_STUDIES
from cspine_kit.core.config import Config, GridConfig, ModelConfig
from cspine_kit.core.paths import MASK_ENDINGS, Competition
from cspine_kit.data.volumes.cache import COMPRESSED
from cspine_kit.vision.compare.measure import Speed

REAL_COVERAGE_MM, SPINE_MM = 250.0, 140.0
"""Assumed length of a scan and of C1..C7, mm; with a step they give the slices a network sees."""

TRAIN_PER_S, PREDICT_PER_S = 150.0, 500.0
"""Assumed stacks per second of a 20-30 M parameter network on one T4 at 256 px, fp16. Not measured
on this machine; networks of other sizes scale it."""

BASE_PX = 256

WEEKLY_GPU_HOURS = 30.0
"""What Kaggle gives a user in a week, of a T4 or of two at once."""

SESSION_GPUS = 2
"""Kaggle's GPU T4 x2."""

KERNEL_HOURS, HIDDEN_STUDIES = 9.0, 1_500
"""The competition's limit for a kernel and about the size of its hidden test: 21.6 s per study."""


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


def _speed(model: ModelConfig, measured: Speed | None) -> Speed:
    """Patches per second: measured, or assumed at the network's size."""
    area = (model.size_px / BASE_PX) ** 2
    return measured or Speed(TRAIN_PER_S / area, PREDICT_PER_S / area)


def _costs(
    config: Config, measured: Mapping[str, Speed] | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Hours of one GPU for all folds of each network, and its seconds per study in the kernel."""
    studies, _, masked, _ = _counts(config)
    n = config.folds.n
    share = (n - 1) / n
    hours, seconds = {}, {}
    for name, model in config.trained.items():
        member, half = name in config.fracture, name in config.halves
        speed = _speed(model, measured[name] if measured else None)
        shown = model.shown(SPINE_MM if member else REAL_COVERAGE_MM)
        learned = studies if member or name in config.teachers else masked
        trained = learned * share * model.drawn * model.epochs * (0.5 if half else 1.0)
        # The vertebra stage looks at all, half a round at the half that it has not learned from.
        predicted = (share * n / 2 if half else 1 if member else n) * studies * shown
        hours[name] = (n * trained / speed.train_per_s + predicted / speed.predict_per_s) / 3600
        speaks = name in config.members or name in config.stage
        seconds[name] = (
            n * config.kernel.most_views * shown / speed.predict_per_s if speaks else 0.0
        )
    return hours, seconds


def describe_sessions(config: Config) -> str:
    """What a training on Kaggle will take of the week's GPU hours."""
    hours = sum(_costs(config, None)[0].values()) / SESSION_GPUS
    return (
        f"on Kaggle: about {hours:.1f} h of sessions with {SESSION_GPUS} T4s, of "
        f"{WEEKLY_GPU_HOURS:.0f} h a week; one fold model on each, volumes without a GPU"
    )


def _grid(grid: GridConfig) -> str:
    return f"{grid.side_px} px at {grid.spacing_mm} mm"


def describe_plan(config: Config, measured: Mapping[str, Speed] | None = None) -> str:
    """A few lines: what is trained on what, the volumes' size against free disk, GPU hours against
    Kaggle's week, and the networks' seconds per study in the kernel against its limit.

    Args:
        config: of the run.
        measured: speeds by network; assumed ones where there are none.
    """
    studies, slices, masked, counted = _counts(config)
    n = config.folds.n
    volumes = config.volumes
    length_mm = SPINE_MM + 2 * volumes.fine.margin_mm
    coarse_gb = studies * REAL_COVERAGE_MM / volumes.coarse.spacing_mm * volumes.coarse.side_px**2
    fine_gb = slices * min(1.0, length_mm / REAL_COVERAGE_MM) * volumes.fine.side_px**2
    hours, seconds = _costs(config, measured)
    unit = "h here" if measured else "GPU h"
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
            f"about {hours[name]:.3g} {unit}; {seconds[name]:.1f} s per study in the kernel"
        )
    total, each = sum(hours.values()), sum(seconds.values())
    told = (
        "measured on this machine"
        if measured
        else f"assuming {TRAIN_PER_S:.0f} training and {PREDICT_PER_S:.0f} inference stacks per "
        f"second and GPU at {BASE_PX} px (cspine oof --plan --measure times this machine)"
    )
    limit = KERNEL_HOURS * 3600 / HIDDEN_STUDIES
    lines += [
        f"  total about {total:.3g} {unit}, {told}; "
        f"Kaggle gives {WEEKLY_GPU_HOURS:.0f} GPU h a week",
        f"  {each:.1f} s of networks per study in the kernel, of {limit:.1f} s that "
        f"{HIDDEN_STUDIES:,} studies in {KERNEL_HOURS:.0f} h leave for everything",
    ]
    return "\n".join(lines)

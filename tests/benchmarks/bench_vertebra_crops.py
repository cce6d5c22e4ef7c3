"""How much of the phantoms' broken bone lies inside what the members look at.

Run: python tests/benchmarks/bench_vertebra_crops.py [--run oof/demo]

Every fractured training study is drawn anew, which gives its broken faces voxel by voxel. A voxel
counts as seen by a member where a patch that speaks of its level, laid by the out-of-fold levels of
the study, covers it, and the fine volume holds it. A plane stands for half the way to the next.
Voxels of levels that the decode takes for absent count as not seen.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from goals import record

ROOT = Path(__file__).resolve().parents[2]

from cspine_kit.core.anatomy import LEVELS  # noqa: E402
from cspine_kit.core.config import ModelConfig, load_config  # noqa: E402
from cspine_kit.core.numbers import BoolArray, FloatArray  # noqa: E402
from cspine_kit.core.paths import RunPaths  # noqa: E402
from cspine_kit.core.tables import read_table  # noqa: E402
from cspine_kit.data.volumes.patch import Patch  # noqa: E402
from cspine_kit.data.volumes.volume import Volume  # noqa: E402
from cspine_kit.phantom.competition.write import (  # noqa: E402
    StudyPlan,
    plan_studies,
    render_study,
)
from cspine_kit.vision.inputs.tables import open_inputs  # noqa: E402
from cspine_kit.vision.tasks.kinds import task_of  # noqa: E402
from cspine_kit.vision.tasks.levels import LevelsTask  # noqa: E402

AXES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
"""Of z, y, x: the normal of a plane, its rows, its columns."""

KEPT = "fine volume"


def broken_voxels(plan: StudyPlan, size_px: int, difficulty: str) -> tuple[FloatArray, FloatArray]:
    """(n, 3) z, y, x in mm of the study's own frame, and (n,) the level of each, 0 to 6."""
    study = render_study(plan, size_px=size_px, difficulty=difficulty)
    grid, scan = study.scan.grid, study.scan
    at = np.argwhere(study.damage > 0)
    z_mm = grid.z[at[:, 0]] + float(scan.axes[2] @ np.array(scan.origin_mm))
    y_mm, x_mm = grid.y[at[:, 1]] - grid.y[0], grid.x[at[:, 2]] - grid.x[0]
    return np.column_stack([z_mm, y_mm, x_mm]), study.damage[tuple(at.T)].astype(float) - 1


def held(volume: Volume, mm: FloatArray) -> BoolArray:
    """Which places a volume keeps."""
    px, half = volume.to_px(mm[:, 1:]), 0.5 * float(np.abs(np.diff(volume.z_mm)).max())
    inside = (px >= -0.5) & (px <= np.array(volume.voxels.shape[1:]) - 0.5)
    along = (mm[:, 0] >= volume.z_mm.min() - half) & (mm[:, 0] <= volume.z_mm.max() + half)
    both: BoolArray = inside.all(axis=1) & along
    return both


def covered(patches: list[Patch], mm: FloatArray, half_mm: float) -> BoolArray:
    """Which places any of some patches covers."""
    found = np.zeros(len(mm), np.bool_)
    for patch in patches:
        normal, *sides = AXES[patch.plane]
        away = mm - np.array(patch.center_mm)
        shown = np.abs(away[:, sides]) <= np.array(patch.field_mm) / 2
        low, high = min(patch.offsets_mm) - half_mm, max(patch.offsets_mm) + half_mm
        found |= shown.all(axis=1) & (away[:, normal] >= low) & (away[:, normal] <= high)
    return found


def seen(
    member: ModelConfig, volume: Volume, levels: pd.DataFrame, mm: FloatArray, level: FloatArray
) -> BoolArray:
    """Which broken voxels of a study a member looks at when it speaks of their level."""
    task = task_of(member)
    view = task.view(volume, levels)
    apart = member.stack_step_mm if member.in_chans > 1 else member.slice_step_mm
    found = np.zeros(len(mm), np.bool_)
    for k in np.unique(level):
        own, patches = level == k, view.patches
        if isinstance(task, LevelsTask):
            unit = np.arange(len(patches)) * len(LEVELS) // len(patches)
            patches = [patch for patch, at in zip(patches, unit, strict=True) if at == k]
        found[own] = covered(patches, mm[own], apart / 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "oof" / "demo")
    paths = RunPaths(parser.parse_args().run)
    config, inputs = load_config(paths.root / "config.yaml"), open_inputs(paths)
    spec, levels = config.competition.phantom, read_table(paths.table("levels"), "levels")
    if spec is None:
        raise SystemExit(f"{paths.root} is no run on a phantom: nobody knows its broken voxels")
    found = []
    for plan in plan_studies(spec):
        uid = plan.study_uid
        if plan.split != "train" or not any(plan.labels) or uid not in inputs.fold_of:
            continue
        mm, level = broken_voxels(plan, spec.size_px, spec.difficulty)
        own = levels[(levels["study_uid"] == uid) & (levels["model_fold"] == inputs.fold_of[uid])]
        said = own.set_index("level")["present"].reindex(LEVELS).to_numpy()[level.astype(int)]
        rows = dict.fromkeys((KEPT, *config.members), np.zeros(len(mm), np.bool_))
        if own["present"].any():
            volume = inputs.volume(uid, "fine")
            kept = held(volume, mm) & said
            rows = {KEPT: kept} | {
                name: kept & seen(member, volume, own.reset_index(drop=True), mm, level)
                for name, member in config.members.items()
            }
        found.append(pd.DataFrame({"study_uid": uid, "level": level, "said": said, **rows}))
    table = pd.concat(found, ignore_index=True)
    vertebrae = table.groupby(["study_uid", "level"])
    sys.stdout.write(
        f"{len(table)} fractured voxels of {vertebrae.ngroups} vertebrae in {len(found)} studies; "
        f"{(~table['said']).sum()} of {(vertebrae['said'].min() == 0).sum()} vertebrae that the "
        "decode takes for absent\n"
    )
    for name in (KEPT, *config.members):
        whole, rest = table[name].mean(), table.loc[table["said"], name].mean()
        full = int((vertebrae[name].mean() >= 0.99).sum())
        sys.stdout.write(
            f"{name:12s} {whole:.4f} of the voxels inside, {rest:.4f} of those of levels that are "
            f"there; 99 % of {full} of {vertebrae.ngroups} vertebrae\n"
        )
        record(f"fractured voxels inside, {name}", whole, 0.99)


if __name__ == "__main__":
    main()

"""A run folder as the data room leaves it: tables, folds and tiny cached volumes.

In: a folder and a number of studies. Out: its paths, and a config that runs in seconds. Example::

    paths = write_run(tmp_path, 8)
    run_oof(tiny_config(), paths)
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL
from cspine_kit.core.config import Config, load_config
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.tables import (
    BOX_COLUMNS,
    CONTRACTS,
    MASK_COLUMNS,
    SPINE_BOX_COLUMNS,
    write_table,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NZ, SIDE, STEP_MM, PIXEL_MM = 21, 32, 6.0, 4.0


def tiny_config(workers: int = 0) -> Config:
    """Two folds, a backbone of a few thousand weights, one epoch, one process."""
    demo = load_config(CONFIGS / "demo.yaml")
    small = {
        "backbone": "test_resnet",
        "pretrained": False,
        "in_chans": 3,
        "size_px": SIDE,
        "field_mm": SIDE * PIXEL_MM,
        "slice_step_mm": STEP_MM,
        "stack_step_mm": STEP_MM,
        "epochs": 1,
        "batch_size": 16,
        "slices_per_study": 3,
    }
    member = demo.model.model_copy(update=small)
    return demo.model_copy(
        update={
            "folds": demo.folds.model_copy(update={"n": 2}),
            "execution": demo.execution.model_copy(update={"jobs": 1}),
            "training": demo.training.model_copy(update={"workers": workers}),
            "vertebra": demo.vertebra.model_copy(update=small),
            "members": dict.fromkeys(("a", "b"), member),
        }
    )


def write_run(root: Path, studies: int, *, first_fold: int | None = None) -> RunPaths:
    """Masked studies of 21 slices, three to a level; every third one is broken at C2.

    Two folds in turn, or the first `first_fold` studies in fold 0 and the others in fold 1.
    """
    paths = RunPaths(root)
    paths.cache.mkdir(parents=True)
    rng = np.random.default_rng(0)
    uids = [f"1.2.{k}" for k in range(1, studies + 1)]
    volumes = [_write_volume(paths.cache / f"{uid}.npy", uid, rng) for uid in uids]
    write_table(pd.DataFrame(volumes), paths.table("volumes"), "volumes", "k1")
    table = pd.DataFrame({"study_uid": uids, "split": "train", "source": "competition"})
    table = table.assign(n_slices=NZ, rows=SIDE, cols=SIDE, problems="", reversed=False)
    table["transfer_syntax"] = ""
    table = table.assign(spacing_z=STEP_MM, spacing_y=PIXEL_MM, spacing_x=PIXEL_MM)
    table = table.assign(irregular=False, has_mask=True, has_boxes=False)
    table = table.assign(**dict.fromkeys((OVERALL, *LEVELS), 0.0))
    table.loc[::3, [OVERALL, "C2"]] = 1.0
    write_table(table, paths.table("studies"), "studies", "k2")
    write_table(pd.concat([_slices(uid) for uid in uids]), paths.table("slices"), "slices", "k3")
    fold = [k % 2 if first_fold is None else int(k >= first_fold) for k in range(studies)]
    pd.DataFrame({"study_uid": uids, "fold": fold}).to_csv(paths.folds, index=False)
    return paths


def _write_volume(path: Path, uid: str, rng: np.random.Generator) -> dict:
    voxels = rng.integers(0, 255, (NZ, SIDE, SIDE)).astype(np.uint8)
    for z in range(NZ):
        voxels[z, 10:20, 10:20] = 30 * (z // 3 + 1)
    np.save(path, voxels)
    row = {
        "study_uid": uid,
        "path": str(path),
        "dtype": "uint8",
        "checksum": hashlib.sha256(voxels.data).hexdigest(),
        **dict(zip(("nz", "ny", "nx"), voxels.shape, strict=True)),
        **dict(zip(("spacing_z", "spacing_y", "spacing_x"), (6.0, 4.0, 4.0), strict=True)),
        **dict.fromkeys(("offset_y_px", "offset_x_px"), 0.0),
        **dict.fromkeys(("zoom_y", "zoom_x"), 1.0),
        **dict(zip(("hu_low", "hu_high"), (-200.0, 1000.0), strict=True)),
    }
    return {column: row[column] for column in CONTRACTS["volumes"].columns}


def _slices(uid: str) -> pd.DataFrame:
    z = np.arange(NZ)
    frame = pd.DataFrame({"study_uid": uid, "slice_idx": z, "file": [f"{k + 1}.dcm" for k in z]})
    frame = frame.assign(slice_number=z + 1.0, instance_number=z + 1.0, z_mm=-STEP_MM * z)
    frame = frame.assign(gap_mm=STEP_MM, **dict.fromkeys(BOX_COLUMNS, np.nan))
    for k, column in enumerate(MASK_COLUMNS):
        frame[column] = (z // 3 == k).astype(float)
    return frame.assign(**dict(zip(SPINE_BOX_COLUMNS, (10.0, 10.0, 20.0, 20.0), strict=True)))

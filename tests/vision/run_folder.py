"""A run folder as it is shipped without the scans: tables, folds and tiny volumes of both kinds.

In: a folder and a number of studies. Out: its paths, and a config that runs in seconds. Example::

    paths = write_run(tmp_path, 8)
    run_oof(tiny_config(), paths)
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL
from cspine_kit.core.config import Config, load_config
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.tables import BOX_COLUMNS, MASK_COLUMNS, SPINE_BOX_COLUMNS, write_table
from cspine_kit.data.volumes.cache import Cache
from cspine_kit.data.volumes.curve import HuCurve
from cspine_kit.data.volumes.lattice import Lattice
from cspine_kit.data.volumes.store import write_volume
from cspine_kit.data.volumes.volume import Held, Volume

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
    member = next(iter(demo.members.values())).model_copy(update=small)
    grid = {"spacing_mm": PIXEL_MM, "field_mm": SIDE * PIXEL_MM}
    volumes = demo.volumes.model_copy(
        update={
            "coarse": demo.volumes.coarse.model_copy(update=grid),
            "fine": demo.volumes.fine.model_copy(update=grid),
        }
    )
    nowhere = demo.competition.model_copy(update={"dir": Path("nowhere")})
    return demo.model_copy(
        update={
            "competition": nowhere,
            "folds": demo.folds.model_copy(update={"n": 2}),
            "execution": demo.execution.model_copy(update={"jobs": 1}),
            "training": demo.training.model_copy(update={"workers": workers}),
            "volumes": volumes,
            "vertebra": demo.vertebra.model_copy(update=small | {"weights": None}),
            "members": dict.fromkeys(("a", "b"), member),
        }
    )


def write_run(root: Path, studies: int, *, first_fold: int | None = None) -> RunPaths:
    """Masked studies of 21 slices, three to a level; every third one is broken at C2.

    Two folds in turn, or the first `first_fold` studies in fold 0 and the others in fold 1.
    """
    paths = RunPaths(root)
    rng = np.random.default_rng(0)
    uids = [f"1.2.{k}" for k in range(1, studies + 1)]
    caches = Cache.coarse(tiny_config(), paths), Cache.fine(tiny_config(), paths)
    for uid in uids:
        volume = _volume(uid, rng)
        for cache in caches:
            path = cache.folder / f"{uid}.arrow"
            write_volume(volume, path, {"recipe": cache.recipe, "source": "", "stand_ins": 0})
    table = pd.DataFrame({"study_uid": uids, "split": "train", "source": "competition"})
    table = table.assign(n_slices=NZ, rows=SIDE, cols=SIDE, problems="", reversed=False)
    table["transfer_syntax"] = ""
    table = table.assign(spacing_z=STEP_MM, spacing_y=PIXEL_MM, spacing_x=PIXEL_MM)
    table = table.assign(irregular=False, has_mask=True, has_boxes=False)
    table = table.assign(**dict.fromkeys((OVERALL, *LEVELS), 0.0))
    table.loc[::3, [OVERALL, "C2"]] = 1.0
    table = write_table(table, paths.table("studies"), "studies", "k2")
    slices = pd.concat([_slices(uid) for uid in uids])
    write_table(slices, paths.table("slices"), "slices", "k3")
    rows, _ = caches[0].build(table, slices, Competition(Path("nowhere")))
    write_table(rows, paths.table("coarse"), "coarse", "k1")
    fold = [k % 2 if first_fold is None else int(k >= first_fold) for k in range(studies)]
    pd.DataFrame({"study_uid": uids, "fold": fold}).to_csv(paths.folds, index=False)
    return paths


def _volume(uid: str, rng: np.random.Generator) -> Volume:
    """Noise in which a column of its own grey stands at each level."""
    voxels = rng.integers(0, 255, (NZ, SIDE, SIDE)).astype(np.uint8)
    for z in range(NZ):
        voxels[z, 10:20, 10:20] = 30 * (z // 3 + 1)
    return Volume(
        study_uid=uid,
        voxels=Held(voxels),
        z_mm=-STEP_MM * np.arange(NZ),
        step_mm=STEP_MM,
        lattice=Lattice((SIDE, SIDE), (PIXEL_MM, PIXEL_MM), (SIDE, SIDE)),
        corner=(0, 0),
        curve=HuCurve.of(tiny_config().volumes.curve),
    )


def _slices(uid: str) -> pd.DataFrame:
    z = np.arange(NZ)
    frame = pd.DataFrame({"study_uid": uid, "slice_idx": z, "file": [f"{k + 1}.dcm" for k in z]})
    frame = frame.assign(slice_number=z + 1.0, instance_number=z + 1.0, z_mm=-STEP_MM * z)
    frame = frame.assign(gap_mm=STEP_MM, **dict.fromkeys(BOX_COLUMNS, np.nan))
    for k, column in enumerate(MASK_COLUMNS):
        frame[column] = (z // 3 == k).astype(float)
    return frame.assign(**dict(zip(SPINE_BOX_COLUMNS, (40.0, 40.0, 80.0, 80.0), strict=True)))

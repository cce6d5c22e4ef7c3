"""`run_stack` on written tables: all artifacts, skipped when fresh, wrong inputs refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slice_tables import World

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config, load_config
from cspine_kit.core.errors import ArtifactError, TableError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.tables import MASK_COLUMNS, SPINE_BOX_COLUMNS, read_table, write_table
from cspine_kit.stack.booster import Stack
from cspine_kit.stack.fallback import HeaderFallback
from cspine_kit.stack.pipeline import run_stack

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def config() -> Config:
    config = load_config(CONFIGS / "demo.yaml")
    quick = config.stack.model_copy(update={"seeds": 1, "rounds": 30, "patience": 10})
    return config.model_copy(update={"stack": quick})


def write_run(world: World, root: Path) -> RunPaths:
    paths = RunPaths(root)
    write_table(world.slices, paths.table("oof_slices"), "oof_slices", "k1")
    write_table(world.crops, paths.table("crops"), "crops", "k2")
    studies = world.labels.assign(
        split="train", transfer_syntax="", problems="", n_slices=90, rows=512, cols=512
    )
    studies = studies.assign(spacing_z=2.0, spacing_y=0.5, spacing_x=0.5)
    flags = dict.fromkeys(("reversed", "irregular", "has_mask", "has_boxes"), False)
    write_table(studies.assign(**flags), paths.table("studies"), "studies", "k3")
    write_table(native_slices(world), paths.table("slices"), "slices", "k4")
    world.folds.to_csv(paths.folds, index=False)
    return paths


def native_slices(world: World) -> pd.DataFrame:
    """Contract `slices` of a world: no file numbers, no masks, no boxes."""
    frame = world.slices[["study_uid", "slice_idx", "z_mm"]].drop_duplicates()
    gaps = ["slice_number", "instance_number", "gap_mm", "box_x", "box_y", "box_w", "box_h"]
    frame = frame.assign(file=frame["slice_idx"].astype(str) + ".dcm")
    return frame.assign(**dict.fromkeys([*gaps, *MASK_COLUMNS, *SPINE_BOX_COLUMNS], np.nan))


def test_run_writes_everything_and_skips_when_fresh(
    world: World, config: Config, tmp_path: Path
) -> None:
    paths = write_run(world, tmp_path)
    table = run_stack(config, paths)
    models = set(table["model"])
    named = {
        "best_constant",
        "headers",
        "a",
        "b",
        "mean_of_members",
        "visibility_weighted_mean",
        "maximum",
    }
    named |= {"top5_mean", "logistic_regression", "mlp_5th_place", "stack", "stack_calibrated"}
    assert named | {"blend", "blend_mean"} <= models
    assert table["ships"].sum() == 1
    assert table.loc[table["ships"], "model"].iloc[0] in ("stack", "stack_calibrated", "blend")
    gains = table[table["ships"]].iloc[0]
    assert gains["per_exam_gain_high"] < 0
    predictions = read_table(paths.table("predictions"), "predictions")
    assert len(predictions) == len(models) * len(world.labels) * len(TARGETS)
    features = read_table(paths.table("features"), "features")
    assert features["label"].notna().all()
    fallback = HeaderFallback.load(paths.stack / "header")
    assert set(fallback.folds) == {0, 1, 2}
    loaded = Stack.load(paths.stack / "models")
    wide = predictions[predictions["model"] == "stack"].pivot(
        index="study_uid", columns="target", values="prob"
    )
    again = loaded.predict(features, "stack").set_index("study_uid")
    pd.testing.assert_frame_equal(again, wide[list(TARGETS)], check_names=False, check_exact=True)
    stamp = (paths.stack / "models" / "stack.json").stat().st_mtime_ns
    pd.testing.assert_frame_equal(run_stack(config, paths), table)
    assert (paths.stack / "models" / "stack.json").stat().st_mtime_ns == stamp


def test_wrong_inputs_are_refused(world: World, config: Config, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="make oof"):
        run_stack(config, RunPaths(tmp_path / "empty"))
    paths = write_run(world, tmp_path)
    world.folds.iloc[1:].to_csv(paths.folds, index=False)
    with pytest.raises(TableError, match=r"in no fold.*1\.2\.10"):
        run_stack(config, paths)
    moved = world.folds.copy()
    moved.loc[4, "fold"] = (moved.loc[4, "fold"] + 1) % 3
    moved.to_csv(paths.folds, index=False)
    with pytest.raises(TableError, match=r"another fold"):
        run_stack(config, paths)
    assert not (paths.stack / "scores.csv").exists()

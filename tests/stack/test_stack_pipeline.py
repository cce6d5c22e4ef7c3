"""`run_stack` on written tables: all artifacts, skipped when fresh, wrong inputs refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slice_tables import World

from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.config import Config, load_config
from cspine_kit.core.errors import ArtifactError, TableError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.tables import MASK_COLUMNS, SPINE_BOX_COLUMNS, read_table, write_table
from cspine_kit.stack.fallback.completing import complete
from cspine_kit.stack.fallback.headers import HeaderFallback
from cspine_kit.stack.model.stack import Stack
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
    world: World, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_run(world, tmp_path)
    table = run_stack(config, paths)
    shown = capsys.readouterr().err
    for stage in ("headers", "stack", "scores", "member ranking"):
        assert f"{stage}: 100%" in shown
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
    assert named | {"blend", "blend_mean", "blend_rank"} <= models
    assert table["ships"].sum() == 1
    assert (paths.stack / "calibration.png").exists()
    assert (paths.stack / "levels.png").exists()
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


def test_a_study_that_one_member_lacks_is_stood_in_for(
    world: World, config: Config, tmp_path: Path
) -> None:
    """The stack runs, keeps every study, says who is spoken for; the rest is as it was."""
    paths = write_run(world, tmp_path)
    uid = str(world.slices["study_uid"].iloc[0])
    holed = world.slices[~((world.slices["study_uid"] == uid) & (world.slices["member"] == "b"))]
    write_table(holed, paths.table("oof_slices"), "oof_slices", "k5")
    table = run_stack(config, paths)
    assert table["ships"].sum() == 1
    assert json.loads((paths.stack / "run.json").read_text())["results"]["stand_ins"] == {"b": 1}
    features = read_table(paths.table("features"), "features")
    assert set(features["study_uid"]) == set(world.labels["study_uid"])
    own = features.loc[features["study_uid"] == uid]
    assert np.isfinite(own.filter(like="b__").to_numpy()).all()
    completed, counts = complete(holed)
    assert counts == {"b": 1} and complete(world.slices)[1] == {}
    pd.testing.assert_frame_equal(completed.head(len(holed)), holed.reset_index(drop=True))
    added = completed.iloc[len(holed) :]
    assert set(added["study_uid"]) == {uid} and set(added["member"]) == {"b"}
    other = world.slices[(world.slices["study_uid"] == uid) & (world.slices["member"] == "a")]
    assert added["slice_idx"].tolist() == other["slice_idx"].tolist()
    assert (added["fold"] == added["model_fold"]).all()


def break_slices(slices: pd.DataFrame, fault: str) -> pd.DataFrame:
    """The slice table with one fault of the kind that a broken run leaves behind."""
    broken = slices.copy()
    uid = broken["study_uid"].iloc[0]
    own = broken["study_uid"] == uid
    if fault == "extra column":
        return broken.assign(surprise=1.0)
    if fault == "duplicate key":
        return pd.concat([broken, broken[own].head(1)], ignore_index=True)
    if fault == "not a number":
        broken.loc[broken[own].index[3], "fracture_C4"] = np.nan
    if fault == "infinite position":
        broken.loc[broken[own].index[3], "z_mm"] = np.inf
    if fault == "other fold model":
        broken.loc[own, "model_fold"] = (broken.loc[own, "fold"] + 1) % 3
    return broken


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("extra column", "surprise"),
        ("duplicate key", r"member.*study_uid.*slice_idx"),
        ("not a number", "fracture_C4"),
        ("infinite position", r"z_mm.*1\.2\.10"),
        ("other fold model", r"fold != model_fold.*1\.2\.10"),
    ],
)
def test_broken_slices_are_named_and_leave_nothing_half_written(
    world: World, config: Config, tmp_path: Path, fault: str, told: str
) -> None:
    paths = write_run(world, tmp_path)
    break_slices(world.slices, fault).to_parquet(paths.table("oof_slices"))
    with pytest.raises(TableError, match=told):
        run_stack(config, paths)
    written = {p.name for p in paths.stack.rglob("*")} if paths.stack.exists() else set()
    assert written <= {"run.json"}
    assert not paths.table("features").exists()
    assert not paths.table("predictions").exists()


def test_where_nothing_beats_the_plain_mean_the_mean_ships(
    world: World, config: Config, tmp_path: Path
) -> None:
    """Slices that say the labels outright: the mean is as good as it gets."""
    paths = write_run(world, tmp_path)
    slices = world.slices.copy()
    truth = world.labels.set_index("study_uid").loc[slices["study_uid"]]
    for level in LEVELS:
        slices[f"fracture_{level}"] = np.where(truth[level] > 0.5, 9.0, -9.0)
    write_table(slices, paths.table("oof_slices"), "oof_slices", "k5")
    table = run_stack(config, paths)
    assert table.loc[table["ships"], "model"].tolist() == ["mean_of_members"]
    assert Stack.load(paths.stack / "models").ships == "mean_of_members"

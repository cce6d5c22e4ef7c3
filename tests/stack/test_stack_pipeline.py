"""`run_stack` on written tables: all artifacts, skipped when fresh, wrong inputs refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slice_tables import World

from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.config import Config, ExternalConfig, load_config
from cspine_kit.core.errors import ArtifactError, TableError
from cspine_kit.core.metric import metric
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import read_json
from cspine_kit.core.tables import MASK_COLUMNS, SPINE_BOX_COLUMNS, read_table, write_table
from cspine_kit.stack.external.extras import Extras
from cspine_kit.stack.fallback.headers import HeaderFallback
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.model.stack import Stack
from cspine_kit.stack.pipeline import run_stack
from cspine_kit.stack.scores.console import render_stack

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def config() -> Config:
    config = load_config(CONFIGS / "demo.yaml")
    quick = config.stack.model_copy(update={"folds": 3, "seeds": 1, "rounds": 30, "patience": 10})
    return config.model_copy(update={"stack": quick})


def write_run(world: World, root: Path) -> RunPaths:
    paths = RunPaths(root)
    write_table(world.slices, paths.table("oof_slices"), "oof_slices", "k1")
    write_table(world.levels, paths.table("levels"), "levels", "k2")
    studies = world.labels.assign(
        split="train", source="competition", transfer_syntax="", problems="", n_slices=90
    )
    studies = studies.assign(rows=512, cols=512)
    studies.loc[::4, "source"] = "mine"
    studies = studies.assign(spacing_z=2.0, spacing_y=0.5, spacing_x=0.5)
    flags = dict.fromkeys(("reversed", "irregular", "has_mask", "has_boxes"), False)
    write_table(studies.assign(**flags), paths.table("studies"), "studies", "k3")
    write_table(native_slices(world), paths.table("slices"), "slices", "k4")
    world.folds.to_csv(paths.folds, index=False)
    return paths


def native_slices(world: World) -> pd.DataFrame:
    """Contract `slices` of a world: no file numbers, no masks, no boxes."""
    names = {"position": "slice_idx", "at_mm": "z_mm"}
    frame = world.slices[["study_uid", *names]].drop_duplicates().rename(columns=names)
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
    named |= {"top5_mean", "log_odds_mean", "logistic_regression", "mlp_5th_place"}
    assert named | {"stack", "stack_strict", "stack_slices_only", "shipped"} <= models
    assert table.loc[table["ships"], "model"].tolist() == ["shipped"]
    assert set(table["shipped_model"]) == {"stack"}
    assert (paths.stack / "calibration.png").exists()
    gains = table[table["ships"]].iloc[0]
    assert gains["per_exam_gain_high"] < 0
    by_model = table.set_index("model")
    gap = by_model.loc["stack_strict", "per_exam"] - by_model.loc["stack", "per_exam"]
    lower = by_model.loc["stack", "per_exam_low"] - 2 / 3 * max(gap, 0.0)
    assert by_model.loc["shipped", "per_exam_low"] == pytest.approx(max(lower, 0.0))
    predictions = read_table(paths.table("predictions"), "predictions")
    assert len(predictions) == len(models) * len(world.labels) * len(TARGETS)
    features = read_table(paths.table("features"), "features")
    assert features["label"].notna().all()
    fallback = HeaderFallback.load(paths.stack / "header")
    assert fallback.heads is not None
    loaded = Stack.load(paths.stack / "models")
    assert loaded.ships == "stack" and loaded.members == ("a", "b")
    assert set(loaded.points) == set(TARGETS)
    assert set(loaded.points["C1"]) == {
        *("best_f1", "sensitivity_0.8", "sensitivity_0.9", "sensitivity_0.95")
    }
    worth = pd.read_csv(paths.stack / "worth.csv")
    assert set(worth["member"]) == {"a", "b"} and worth["kept"].all()
    order = read_json(paths.stack / "imputer.json")["order"]
    assert order == worth.sort_values("per_exam")["member"].tolist()
    text = render_stack(paths.stack)
    assert "worth of a" in text and "shipped *" in text and "stack_slices_only" in text
    assert text.count("patient_overall") >= 4
    sources = pd.read_csv(paths.stack / "sources.csv").set_index("source")
    assert sources["studies"].sum() == len(world.labels)
    whole = (sources["per_exam"] * sources["studies"]).sum() / len(world.labels)
    assert whole == pytest.approx(by_model.loc["shipped", "per_exam"])
    mine = sources.loc["mine"]
    assert f"shipped on {mine['studies']:.0f} studies of mine: A {mine['per_exam']:.4f}" in text
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
        broken.loc[broken[own].index[3], "at_mm"] = np.inf
    if fault == "other fold model":
        broken.loc[own, "model_fold"] = (broken.loc[own, "fold"] + 1) % 3
    return broken


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("extra column", "surprise"),
        ("duplicate key", r"member.*study_uid.*plane"),
        ("not a number", "fracture_C4"),
        ("infinite position", r"at_mm.*1\.2\.10"),
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
    assert set(table["shipped_model"]) == {"mean_of_members"}
    scores = table.set_index("model")["per_exam"]
    assert scores["shipped"] == scores["mean_of_members"]
    assert Stack.load(paths.stack / "models").ships == "mean_of_members"


def test_missing_studies_are_imputed_counted_and_scored(
    world: World, config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One study that member b lacks, and one that no member has seen."""
    paths = write_run(world, tmp_path)
    lacking, lost = world.labels["study_uid"].iloc[[3, 8]]
    slices = world.slices
    kept = ~((slices["study_uid"] == lacking) & (slices["member"] == "b"))
    kept &= slices["study_uid"] != lost
    write_table(slices[kept], paths.table("oof_slices"), "oof_slices", "k6")
    table = run_stack(config, paths)
    record = read_json(paths.stack / "run.json")["results"]
    assert record["imputed"] == {"b": 1} and record["lost"] == 1
    assert "member b: 1 studies are missing and were imputed" in caplog.text
    assert (table["n_studies"] == len(world.labels)).all()
    predictions = read_table(paths.table("predictions"), "predictions")
    assert (predictions.groupby("model")["study_uid"].nunique() == len(world.labels)).all()
    of_lost = predictions[predictions["study_uid"] == lost].pivot(
        index="target", columns="model", values="prob"
    )
    for model in ("shipped", "stack", "a", "mean_of_members", "mlp_5th_place"):
        assert (of_lost[model] == of_lost["headers"]).all(), model
    stack = predictions[(predictions["model"] == "stack") & (predictions["study_uid"] == lacking)]
    assert len(stack) == len(TARGETS)


def test_external_members_and_columns_join(
    world: World, config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_run(world, tmp_path)
    rng = np.random.default_rng(0)
    truth = world.labels.set_index("study_uid")[list(TARGETS)]
    theirs = 1.0 / (1.0 + np.exp(-(1.5 * truth - 1.6 + rng.normal(0, 0.8, truth.shape))))
    theirs.iloc[:-2].to_csv(tmp_path / "theirs.csv")
    told = truth["patient_overall"].map({0.0: "walked in", 1.0: "fell"})
    patients = pd.DataFrame({"study_uid": truth.index, "age": 50.0, "mechanism": told.to_numpy()})
    patients.to_csv(tmp_path / "patients.csv", index=False)
    stack = config.stack.model_copy(
        update={
            "external": (
                ExternalConfig(
                    name="theirs", oof=tmp_path / "theirs.csv", test=tmp_path / "test.csv"
                ),
            ),
            "columns": tmp_path / "patients.csv",
        }
    )
    table = run_stack(config.model_copy(update={"stack": stack}), paths).set_index("model")
    assert {"theirs", "stack_columns_absent"} <= set(table.index)
    assert table.loc["stack", "per_exam"] < table.loc["stack_slices_only", "per_exam"]
    assert "external member theirs: 2 of 60 studies are missing and imputed" in caplog.text
    worth = pd.read_csv(paths.stack / "worth.csv").set_index("member")
    assert set(worth.index) == {"a", "b", "theirs", "raw"}
    assert worth.loc["raw", "per_exam_low"] > 0
    # The kernel: with the partner's file, and without it.
    loaded = Stack.load(paths.stack / "models")
    kept = world.slices[world.slices["member"].isin(loaded.members)]
    test = aggregate(kept, world.levels).assign(fold=-1, model_fold=0)
    absent = Extras.load(paths.stack)
    assert any("theirs" in problem for problem in absent.problems)
    theirs.to_csv(tmp_path / "test.csv")
    present = Extras.load(paths.stack)
    assert not present.problems and present.table is not None
    losses = [
        metric(truth.to_numpy(), loaded.predict(e.add(test)[0]).loc[truth.index].to_numpy())
        for e in (present, absent)
    ]
    assert losses[0] < losses[1]
    (tmp_path / "test.csv").write_text("study_uid,C1\n1.2.10,7\n")
    assert "columns" in Extras.load(paths.stack).problems[0]

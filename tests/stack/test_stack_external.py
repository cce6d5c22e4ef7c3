"""Other people's scores: read, checked, imputed, stacked; made up and real."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cspine_kit.cli import main
from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import DataError
from cspine_kit.core.metric import metric
from cspine_kit.core.numbers import logit, sigmoid
from cspine_kit.core.tables import read_table
from cspine_kit.data.labels import read_labels
from cspine_kit.stack.external.extras import Extras
from cspine_kit.stack.external.features import add_columns
from cspine_kit.stack.external.read import (
    check_scores,
    read_columns,
    read_scores,
    value_names,
)
from cspine_kit.stack.external.run import (
    EXTERNAL_STACK,
    read_members,
    skeleton,
    stack_scores,
    with_headers,
)
from cspine_kit.stack.model.stack import SHIPPED, STACK


@pytest.fixture
def labels() -> pd.DataFrame:
    """Labels of 240 studies."""
    rng = np.random.default_rng(0)
    levels = (rng.random((240, 7)) < 0.12).astype(float)
    frame = pd.DataFrame(np.column_stack([levels, levels.max(axis=1)]), columns=list(TARGETS))
    frame.insert(0, "study_uid", [f"1.2.{i + 100}" for i in range(240)])
    return frame


def draw_file(labels: pd.DataFrame, path: Path, seed: int, noise: float = 1.5) -> pd.DataFrame:
    """A file of weak scores that are too low: they ask for a stack."""
    rng = np.random.default_rng(seed)
    truth = labels[list(TARGETS)].to_numpy()
    odds = 1.2 * truth - 3.0 + rng.normal(0, noise, truth.shape) * 0.5
    frame = pd.DataFrame(sigmoid(odds), columns=list(TARGETS))
    frame.insert(0, "StudyInstanceUID", labels["study_uid"])
    frame.to_csv(path, index=False)
    return frame


def test_both_shapes_say_the_same(labels: pd.DataFrame, tmp_path: Path) -> None:
    wide = draw_file(labels, tmp_path / "wide.csv", 1)
    long = wide.melt("StudyInstanceUID", var_name="target", value_name="fractured")
    long["row_id"] = long["StudyInstanceUID"] + "_" + long["target"]
    long[["row_id", "fractured"]].to_csv(tmp_path / "long.csv", index=False)
    one, two = (read_scores("x", tmp_path / f"{name}.csv").probs for name in ("wide", "long"))
    pd.testing.assert_frame_equal(one, two, check_names=False)
    wide.assign(fold=2).to_csv(tmp_path / "folds.csv", index=False)
    assert set(read_scores("x", tmp_path / "folds.csv").fold) == {2}


def test_faults_of_a_file_are_named(labels: pd.DataFrame, tmp_path: Path) -> None:
    good = draw_file(labels, tmp_path / "good.csv", 1)
    cases = {
        "a study twice": (pd.concat([good, good.head(1)]), r"given twice.*1\.2\.100"),
        "no column": (good.drop(columns="C4"), r"\['C4'\] are missing"),
        "above one": (good.assign(C2=1.5), "no probabilities.*C2 of 1"),
        "not a number": (good.assign(C2=np.nan), "no probabilities"),
        "a fold in text": (good.assign(fold="one"), "whole numbers"),
        "no rows": (good.head(0), "no rows"),
    }
    for name, (frame, told) in cases.items():
        frame.to_csv(tmp_path / "bad.csv", index=False)
        with pytest.raises(DataError, match=told):
            read_scores(name, tmp_path / "bad.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_scores("x", tmp_path / "absent.csv")
    row = pd.DataFrame({"row_id": ["1.2.100_C9"], "fractured": [0.5]})
    row.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match=r"_C1\.\._C7"):
        read_scores("x", tmp_path / "bad.csv")
    with pytest.raises(DataError, match="different names"):
        read_members([tmp_path / "good.csv", tmp_path / "Good.csv"])


def test_coverage_and_suspicion_are_said(labels: pd.DataFrame, tmp_path: Path) -> None:
    frame = draw_file(labels, tmp_path / "a.csv", 1)
    assert check_scores(read_scores("a", tmp_path / "a.csv"), labels) == []
    frame.iloc[5:].to_csv(tmp_path / "a.csv", index=False)
    [line] = check_scores(read_scores("a", tmp_path / "a.csv"), labels.head(100))
    assert "5 of 100 studies are missing" in line and "140 others are ignored" in line
    with pytest.raises(DataError, match="none of the 1 studies"):
        check_scores(read_scores("a", tmp_path / "a.csv"), labels.head(1))
    cheat = labels.assign(**{t: 0.02 + 0.96 * labels[t] for t in TARGETS})
    cheat.to_csv(tmp_path / "cheat.csv", index=False)
    [line] = check_scores(read_scores("cheat", tmp_path / "cheat.csv"), labels)
    assert "suspiciously good" in line


def test_an_absent_study_is_imputed_from_the_other_file(
    labels: pd.DataFrame, tmp_path: Path
) -> None:
    frame = draw_file(labels, tmp_path / "a.csv", 1)
    values = 0.5 * logit(frame[list(TARGETS)].to_numpy()) + 0.3
    twin = frame.assign(**dict(zip(TARGETS, sigmoid(values).T, strict=True)))
    twin.iloc[3:].to_csv(tmp_path / "b.csv", index=False)
    members = read_members([tmp_path / "a.csv", tmp_path / "b.csv"])
    base = skeleton(labels, members)
    extras = Extras.fit(base, members)
    features, counts = extras.add(base)
    assert counts == {"b": 3}
    first = features[features["study_uid"] == labels["study_uid"].iloc[1]]
    assert first["b__external__own"].to_numpy() == pytest.approx(values[1, :7], abs=1e-6)
    lines = extras.imputer.lines
    assert json.loads(json.dumps(lines)) == lines
    # Nothing is there: every study gets the mean log-odds, and it is counted.
    bare, counts = replace(extras, scores={}).add(base)
    assert counts == {"a": 240, "b": 240}
    assert bare.groupby("level")["a__external__own"].nunique().eq(1).all()


def test_raw_columns_become_numbers(labels: pd.DataFrame, tmp_path: Path) -> None:
    frame = pd.DataFrame({"StudyInstanceUID": labels["study_uid"].head(4)})
    frame = frame.assign(age=[40, 50, None, 60], **{"injury kind": ["fall", None, "car", "fall"]})
    frame.to_csv(tmp_path / "c.csv", index=False)
    columns = read_columns(tmp_path / "c.csv")
    assert value_names(columns) == ["age", "injury_kind_car", "injury_kind_fall"]
    assert columns["injury_kind_fall"].tolist()[:1] == [1.0]
    assert np.isnan(columns.loc[1, "injury_kind_fall"]) and np.isnan(columns.loc[2, "age"])
    base = skeleton(labels.head(5), [])
    joined = add_columns(base, columns, value_names(columns))
    assert joined["raw__column__age"].isna().sum() == 14
    assert add_columns(base, None, ["age"])["raw__column__age"].isna().all()
    levels = pd.DataFrame({"study_uid": ["1.2.100"] * 2, "level": ["C2", "C5"], "mm": [3.0, 4.0]})
    levels.to_csv(tmp_path / "l.csv", index=False)
    joined = add_columns(base, read_columns(tmp_path / "l.csv"), ["mm"])
    assert joined["raw__column__mm"].dropna().tolist() == [3.0, 4.0]
    frame.assign(name=[f"n{i}" for i in range(4)]).drop(columns="age").to_csv(
        tmp_path / "c.csv", index=False
    )
    many = pd.DataFrame({"study_uid": labels["study_uid"], "name": labels["study_uid"] + "x"})
    many.to_csv(tmp_path / "many.csv", index=False)
    with pytest.raises(DataError, match="240 different texts"):
        read_columns(tmp_path / "many.csv")
    pd.concat([levels, levels]).to_csv(tmp_path / "l.csv", index=False)
    with pytest.raises(DataError, match="given twice"):
        read_columns(tmp_path / "l.csv")


def test_files_that_disagree_on_folds_are_refused(labels: pd.DataFrame, tmp_path: Path) -> None:
    frame = draw_file(labels, tmp_path / "a.csv", 1)
    frame.assign(fold=0).to_csv(tmp_path / "a.csv", index=False)
    frame.assign(fold=1).to_csv(tmp_path / "b.csv", index=False)
    members = read_members([tmp_path / "a.csv", tmp_path / "b.csv"])
    with pytest.raises(DataError, match=r"different folds.*1\.2\.100"):
        skeleton(labels, members)
    assert set(skeleton(labels, members[:1])["model_fold"]) == {0}


def test_the_verb_stacks_files_and_repeats_itself(
    labels: pd.DataFrame,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = EXTERNAL_STACK.model_copy(update={"folds": 2, "seeds": 1, "rounds": 40, "patience": 10})
    monkeypatch.setattr("cspine_kit.stack.external.run.EXTERNAL_STACK", few)
    for i, name in enumerate(("a", "b")):
        draw_file(labels, tmp_path / f"{name}.csv", i + 1)
    labels.rename(columns={"study_uid": "StudyInstanceUID"}).to_csv(
        tmp_path / "train.csv", index=False
    )
    arguments = ["stack", "--external", str(tmp_path / "a.csv"), "--external"]
    arguments += [str(tmp_path / "b.csv"), "--labels", str(tmp_path / "train.csv"), "--out"]
    one, two = tmp_path / "1", tmp_path / "2"
    assert main([*arguments, str(one), "--json", "--jobs", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert main([*arguments, str(two), "--jobs", "2"]) == 0
    text = capsys.readouterr().out
    assert "A: stack ships" in text and "worth of a:" in text and "paired 95 %" in text
    predictions, again = (
        read_table(out / "predictions.parquet", "predictions") for out in (one, two)
    )
    assert (predictions.groupby("model")["study_uid"].nunique() == 240).all()
    pd.testing.assert_frame_equal(predictions, again)
    models = said["models"]
    assert {"a", "b", "mean_of_members", "log_odds_mean", "stack_per_exam"} <= set(models)
    assert models["stack_per_exam"]["per_exam"] < models["mean_of_members"]["per_exam"]
    assert said["metric_per_exam"] == models["shipped_per_exam"]["per_exam"]
    assert main(["stack", "--external", "x.csv"]) == 1
    assert "--labels" in capsys.readouterr().err


def test_where_the_mean_knows_all_the_mean_ships(labels: pd.DataFrame, tmp_path: Path) -> None:
    sure = labels.assign(**{t: 0.001 + 0.998 * labels[t] for t in TARGETS})
    for name in ("a", "b"):
        sure.to_csv(tmp_path / f"{name}.csv", index=False)
    members = read_members([tmp_path / "a.csv", tmp_path / "b.csv"])
    few = EXTERNAL_STACK.model_copy(update={"folds": 2, "rounds": 20, "seeds": 1})
    _, fit = stack_scores(skeleton(labels, members), members, labels, few, jobs=1)
    assert fit.stack.ships == "mean_of_members"
    assert (fit.probs[SHIPPED] == fit.probs["mean_of_members"]).all()


@pytest.mark.slow
def test_real_external_files(real_data: Path) -> None:
    """Two weak public models: single 0.4897 / 0.4986, mean A 0.4828, nested logistic 0.473."""
    members = read_members([real_data / "external_a.csv", real_data / "external_b.csv"])
    truth = read_labels(real_data / "train.csv")
    truth = truth[truth["study_uid"].isin(members[0].probs.index)].reset_index(drop=True)
    assert len(truth) == 1237
    base = with_headers(skeleton(truth, members), real_data / "slice_headers.parquet")
    _, fit = stack_scores(base, members, truth, EXTERNAL_STACK)
    y = truth.set_index("study_uid").loc[list(fit.study_uid), list(TARGETS)].to_numpy()
    score = {name: metric(y, p) for name, p in fit.probs.items()}
    assert score["external_a"] == pytest.approx(0.4897, abs=1e-4)
    assert score["external_b"] == pytest.approx(0.4986, abs=1e-4)
    assert score["mean_of_members"] == pytest.approx(0.4828, abs=1e-4)
    assert fit.stack.ships == STACK
    assert score[SHIPPED] < 0.470

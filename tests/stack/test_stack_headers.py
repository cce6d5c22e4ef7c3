"""Header-only features and their nested cross-validation, made up and real."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import LEVELS, OVERALL
from cspine_kit.core.errors import DataError, TableError
from cspine_kit.core.tables import read_table
from cspine_kit.data.labels import read_labels
from cspine_kit.stack.external import run as room
from cspine_kit.stack.external.run import run_external
from cspine_kit.stack.headers.features import header_features


def make_headers(n: int, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Headers of two sites and labels that are twice as often positive at the second."""
    rng = np.random.default_rng(seed)
    frames, labels = [], []
    for i in range(n):
        uid, site = f"1.2.{i + 100}", i % 2
        slices = int(rng.integers(60, 90))
        step = 0.625 if site else 0.8
        frame = {"StudyInstanceUID": uid, "slice_number": np.arange(1, slices + 1)}
        frame |= {"ImageHeight": 512, "ImageWidth": 512, "SliceThickness": np.float32(step)}
        frame |= {"ImagePositionPatient_x": np.float32(rng.normal(-90, 10))}
        frame |= {"ImagePositionPatient_y": np.float32(rng.normal(-90, 30))}
        frame |= {"ImagePositionPatient_z": (100 - step * np.arange(slices)).astype(np.float32)}
        frames.append(pd.DataFrame(frame))
        levels = (rng.random(7) < (0.25 if site else 0.03)).astype(int)
        labels.append([uid, levels.max(), *levels])
    columns = ["StudyInstanceUID", OVERALL, *LEVELS]
    return pd.concat(frames, ignore_index=True), pd.DataFrame(labels, columns=columns)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    small = room.HEADER_STACK.model_copy(update={"seeds": 1, "rounds": 40, "patience": 10})
    monkeypatch.setattr(room, "HEADER_STACK", small)


def test_features_by_hand() -> None:
    frame, _ = make_headers(3)
    frame = frame.drop(index=frame.index[10])
    features = header_features(frame.sample(frac=1.0, random_state=0)).set_index("study_uid")
    first = features.loc["1.2.100"]
    assert first["missing"] == 1
    assert first["step"] == pytest.approx(0.8, abs=1e-4)
    assert first["step_max"] == pytest.approx(1.6, abs=1e-4)
    assert first["reversed"] == 0
    assert np.isfinite(features.to_numpy()).all()
    single = header_features(frame[frame["slice_number"] == 1])
    assert np.isfinite(single.drop(columns="study_uid").to_numpy()).all()


def test_stack_finds_the_site_and_writes_its_files(quick: None, tmp_path: Path) -> None:
    headers, labels = make_headers(200)
    headers.to_parquet(tmp_path / "headers.parquet")
    labels.to_csv(tmp_path / "train.csv", index=False)
    out = tmp_path / "out"
    result = run_external([], tmp_path / "train.csv", out, headers=tmp_path / "headers.parquet")
    scores = result["models"]
    for form in room.FORMS:
        shipped = scores[f"shipped_{form}"][form]
        assert shipped < 0.97 * scores[f"best_constant_{form}"][form]
        assert result[f"metric_{form}"] == shipped == scores[f"stack_{form}"][form]
    predictions = read_table(out / "predictions.parquet", "predictions")
    assert (predictions.groupby("model")["study_uid"].nunique() == 200).all()
    assert "A: stack ships" in room.render_external(out, result)
    assert json.loads((out / "run.json").read_text())["status"] == "done"


def test_shuffled_labels_return_to_the_constant(quick: None, tmp_path: Path) -> None:
    headers, labels = make_headers(200)
    rng = np.random.default_rng(1)
    targets = [OVERALL, *LEVELS]
    labels[targets] = labels[targets].to_numpy()[rng.permutation(len(labels))]
    headers.to_parquet(tmp_path / "headers.parquet")
    labels.to_csv(tmp_path / "train.csv", index=False)
    result = run_external(
        [], tmp_path / "train.csv", tmp_path / "out", headers=tmp_path / "headers.parquet"
    )
    for form in room.FORMS:
        constant = result["models"][f"best_constant_{form}"][form]
        assert result["models"][f"stack_{form}"][form] == pytest.approx(constant, rel=0.03)


def test_faults_are_named(tmp_path: Path) -> None:
    headers, labels = make_headers(4)
    with pytest.raises(TableError, match="SliceThickness"):
        header_features(headers.drop(columns="SliceThickness"))
    with pytest.raises(TableError, match=r"twice.*1\.2\.100"):
        header_features(pd.concat([headers, headers.head(1)]))
    holed = headers.copy()
    holed.loc[3, "ImagePositionPatient_z"] = np.nan
    with pytest.raises(TableError, match=r"ImagePositionPatient_z.*1\.2\.100"):
        header_features(holed)
    labels.to_csv(tmp_path / "train.csv", index=False)
    labels.assign(C4=3).to_csv(tmp_path / "wrong.csv", index=False)
    with pytest.raises(DataError, match=r"1\.2\.102"):
        read_labels(tmp_path / "wrong.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "absent.csv")
    with pytest.raises(DataError, match=r"absent\.parquet cannot be read"):
        run_external([], tmp_path / "train.csv", tmp_path, headers=tmp_path / "absent.parquet")
    with pytest.raises(TableError, match=r"no column.*slice_number"):
        run_external([], tmp_path / "train.csv", tmp_path, headers=tmp_path / "train.csv")
    headers[headers["StudyInstanceUID"] != "1.2.101"].to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(DataError, match=r"lack 1 studies.*1\.2\.101"):
        run_external([], tmp_path / "train.csv", tmp_path, headers=tmp_path / "few.csv")
    assert not (tmp_path / "predictions.parquet").exists()


def test_real_headers_have_the_documented_shape(real_data: Path) -> None:
    features = header_features(pd.read_parquet(real_data / "slice_headers.parquet"))
    labels = read_labels(real_data / "train.csv")
    assert features["study_uid"].tolist() == labels["study_uid"].tolist()
    assert features["slices"].sum() == 711_601
    assert np.isfinite(features.drop(columns="study_uid").to_numpy()).all()

"""The rehearsal: what it reads from a log, what it finds wrong, and one whole small run."""

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import load_config
from cspine_kit.core.errors import DataError
from cspine_kit.core.paths import Competition
from cspine_kit.infer.log import read_kernel_log
from cspine_kit.phantom.competition.hostile import write_hostile
from cspine_kit.ship.kaggle.parcels import Parcel
from cspine_kit.ship.kaggle.service import dataset_ref
from cspine_kit.ship.rehearsal.checks import Rehearsal, judge_hostile
from cspine_kit.ship.rehearsal.constraints import Pins
from cspine_kit.ship.rehearsal.environment import Environment
from cspine_kit.ship.rehearsal.forecast import HIDDEN_SLICES, forecast_run
from cspine_kit.ship.rehearsal.inputs import PUBLIC_ROWS, Inputs, assemble, layouts
from cspine_kit.ship.rehearsal.page import render_page
from cspine_kit.ship.rehearsal.rehearse import rehearse
from cspine_kit.ship.rehearsal.sandbox import Sandbox, best_isolation

ROOT = Path(__file__).resolve().parents[2]
KEPT_DEFECTS = ("clean", "reversed", "truncated_file", "empty_folder", "listed_twice", "no_folder")
KEPT_DEFECTS += ("path_uid", "extra_folder")
PYTHON = f"3.{sys.version_info.minor}"


def write_log(path: Path, *events: dict) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def study(uid: str, at: float, **more) -> dict:
    parts = {"decode_s": 1.0, "vertebra_s": 0.5, "members_s": {"a": 1.0, "b": 0.5}, "stack_s": 0.1}
    event = {"event": "study", "time": at, "study_uid": uid, "source": "image", "slices": 100}
    return {**event, "problems": [], **parts, "total_s": 3.1, **more}


def test_a_log_becomes_a_table(tmp_path):
    log = write_log(
        tmp_path / "log.jsonl",
        {"event": "priors_written", "time": 10.0, "rows": 24},
        {"event": "bundle", "time": 11.0, "readers": 3},
        study("1.1", 15.0),
        study("1.2", 16.0, source="priors", cause="no folder", slices=None, total_s=None),
        {"event": "fault", "time": 16.5, "stage": "member", "study_uid": "1.1", "cause": "NaN"},
        {"event": "end", "time": 17.0},
    )
    events = read_kernel_log(log)
    assert events.studies["source"].tolist() == ["image", "priors"]
    assert events.studies["cause"].tolist() == ["", "no folder"]
    assert events.studies["members_s"].tolist() == [1.5, 1.5]
    assert events.studies["total_s"].tolist() == pytest.approx([3.1, 3.1])
    assert events.members == {"a": 2.0, "b": 1.0}
    assert [e["event"] for e in events.others] == ["priors_written", "bundle", "fault", "end"]
    assert events.first("bundle")["readers"] == 3 and events.first("degraded") is None
    log.write_text('{"event": "end"}\nnot json\n')
    with pytest.raises(DataError, match=":2 is not JSON"):
        read_kernel_log(log)


def test_the_forecast_is_arithmetic_on_measured_stages(tmp_path):
    priors = {"event": "priors_written", "time": 10.0}
    log = write_log(
        tmp_path / "log.jsonl",
        priors,
        study("1.1", 20.1),
        study("1.2", 24.0),
        study("1.3", 30.0, source="header", cause="torn"),
    )
    events = read_kernel_log(log)
    forecast = forecast_run(events, {"1.1", "1.2", "1.3"}, pixels=512 * 512, decoders=2)
    longer = HIDDEN_SLICES / 100
    expected = {"decode": longer, "vertebra": 0.5 * longer, "members": 1.5 * longer, "stack": 0.1}
    for stage, seconds in expected.items():
        assert forecast.stages.loc[stage, "expected"] == pytest.approx(seconds)
    assert list(forecast.stages.index) == list(expected)
    assert forecast.startup_s == pytest.approx(20.1 - 10.0 - 3.1)
    serial = 7.0 + 1500 * sum(expected.values())
    assert forecast.serial_hours == pytest.approx(serial / 3600)
    assert forecast.hours == pytest.approx((7.0 + 1500 * (2.0 * longer + 0.1)) / 3600)
    assert forecast.hours < forecast.serial_hours
    quarter = forecast_run(events, {"1.1"}, pixels=256 * 256, decoders=1)
    assert quarter.stages.loc["decode", "expected"] == pytest.approx(4 * longer)
    with pytest.raises(DataError, match="no sound study"):
        forecast_run(events, {"1.3"}, pixels=1.0, decoders=1)


@pytest.fixture(scope="module", name="inputs")
def _inputs(run, tmp_path_factory) -> Inputs:
    """A few defects, and the tiny chain's own test studies for the sound and the full ones."""
    hostile = write_hostile(tmp_path_factory.mktemp("rehearsal") / "hostile", seed=2)
    path = hostile.root / "manifest.csv"
    manifest = pd.read_csv(path, dtype={"study_uid": str})
    gone = manifest[~manifest["defect"].isin(KEPT_DEFECTS)]
    manifest[manifest["defect"].isin(KEPT_DEFECTS)].to_csv(path, index=False)
    for uid in gone["study_uid"]:
        shutil.rmtree(hostile.images("test", uid), ignore_errors=True)
    listing = pd.read_csv(hostile.test_csv, dtype=str)
    kept = ~listing["StudyInstanceUID"].isin(gone["study_uid"])
    listing[kept].to_csv(hostile.test_csv, index=False)
    own = Competition(run / "competition")
    return Inputs(hostile, own, own, clean_limit=2)


def test_inputs_hold_every_kind_of_study(inputs, tmp_path):
    competition = assemble(inputs, tmp_path / "competition")
    listing = pd.read_csv(competition.test_csv, dtype=str)
    assert set(PUBLIC_ROWS) <= set(listing["row_id"])
    assert listing["row_id"].duplicated().sum() == len(TARGETS), "one study is listed twice"
    sample = pd.read_csv(competition.sample_submission_csv)["row_id"]
    assert sample.is_unique and set(sample) == set(listing["row_id"])
    folders = {p.name for p in (competition.root / "test_images").iterdir()}
    assert set(inputs.clean_uids) | set(inputs.full_uids) < folders
    config = load_config(ROOT / "configs" / "demo.yaml")
    parcels = [
        Parcel(part, dataset_ref(config, part), tmp_path, {}, "") for part in ("weights", "code")
    ]
    both = layouts(config, competition.root, parcels)
    slug = config.competition.slug
    assert f"competitions/{slug}" in both["new"] and slug in both["old"]
    assert "datasets/your-kaggle-name/cspine-kit-demo-bundle" in both["new"]
    assert "cspine-kit-demo-weights" in both["old"]


@pytest.mark.parametrize(
    ("defect", "change", "said"),
    [
        ("clean", None, None),
        ("reversed", {"source": "header", "cause": "torn"}, "from header: torn"),
        ("truncated_file", {"slices": 3}, "3 slices, promised"),
        ("empty_folder", {"source": "image"}, "promised a fallback"),
        ("no_folder", {"cause": ""}, "without a cause"),
        ("reversed", {"prob": 0.9}, "differs from the clean study by"),
        ("listed_twice", "no event", "from nothing"),
    ],
)
def test_a_wrong_outcome_is_found(inputs, tmp_path, defect, change, said):
    manifest = pd.read_csv(inputs.hostile.root / "manifest.csv", dtype={"study_uid": str})
    config = load_config(ROOT / "configs" / "demo.yaml")
    environment = Environment(Path(sys.prefix), PYTHON, PYTHON, 0.0, False)
    events, probs = [], {}
    for row in manifest[manifest["listed"]].to_dict("records"):
        fallback = row["outcome"] == "fallback"
        event = study(row["study_uid"], 1.0, slices=row["slices"])
        event |= {"source": "priors", "cause": "why", "slices": None} if fallback else {}
        changed = change if row["defect"] == defect else None
        if changed != "no event":
            events.append(json.loads(json.dumps(event | (changed or {}))))
        value = changed["prob"] if isinstance(changed, dict) and "prob" in changed else 0.2
        probs |= {f"{row['study_uid']}_{target}": value for target in TARGETS}
    log = write_log(tmp_path / "log.jsonl", *events)
    result = Rehearsal(config, environment, {})
    judge_hostile(result, inputs, pd.Series(probs), read_kernel_log(log))
    assert result.ok is (said is None)
    if said is not None:
        assert f"{defect}: " in result.checks[0].detail and said in result.checks[0].detail
        assert "WRONG" in render_page(result)


@pytest.mark.slow
def test_a_whole_rehearsal_of_the_tiny_bundle(inputs, run, tmp_path):
    """In this environment instead of Kaggle's; everything else is as in `make rehearse`."""
    sandbox = Sandbox(tmp_path / "sandbox", best_isolation(), 29.0)
    environment = Environment(Path(sys.prefix), PYTHON, PYTHON, 0.0, False)
    result = rehearse(
        run / "oof" / "tiny" / "bundle",
        inputs,
        environment,
        sandbox,
        kernels=ROOT / "kernels",
        out=tmp_path / "out",
        pins=Pins(PYTHON, {"numpy": version("numpy"), "six": "0.0.1"}),
        scans=Competition(run / "competition"),
        wheels=sorted((run / "oof" / "tiny" / "bundle").glob("cspine_kit-*.whl")),
        limit_s=300,
    )
    wrong = {check.name: check.detail for check in result.checks if not check.ok}
    assert list(wrong) == ["environment: every pin of Kaggle's image"], wrong
    assert "six" in wrong["environment: every pin of Kaggle's image"] and not result.ok
    page = render_page(result)
    assert "2 fold models, 0 of them differ" in page
    assert "FAILED: 1 of " in page and "hidden studies" in page
    assert all(f"| {defect} " in page for defect in KEPT_DEFECTS)
    assert result.score.n_studies == 2 and result.forecast.hours > 0
    for name in ("new_layout", "old_layout", "public_listing"):
        assert (tmp_path / "out" / name / "submission.csv").exists()
    assert len(pd.read_csv(tmp_path / "out" / "public_listing" / "submission.csv")) == 3

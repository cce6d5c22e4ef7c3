"""Scans judged for people: the kernel's numbers, and no number where the kernel would fall back."""

import json
import subprocess
import sys

import pandas as pd
import pydicom
import pytest

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.errors import ArtifactError, StudyError
from cspine_kit.infer import predictor as room
from cspine_kit.infer.judgment import SCHEMA, level_table
from cspine_kit.infer.origin import NOTE, NOTE_OF_FINDER
from cspine_kit.infer.predictor import Predictor


@pytest.fixture(scope="module", name="predictor")
def _predictor(run):
    return Predictor(run / "oof" / "tiny" / "bundle")


@pytest.fixture(scope="module", name="folders")
def _folders(run):
    return sorted((run / "competition" / "test_images").iterdir())


@pytest.fixture(scope="module", name="judgment")
def _judgment(predictor, folders):
    return predictor.predict(folders[0])


def test_numbers_are_the_kernels(run, predictor, folders):
    table = pd.read_parquet(run / "submissions" / "tiny" / "predictions.parquet")
    shipped = table[table["model"] == "shipped"]
    for folder in folders:
        own = shipped[shipped["study_uid"] == folder.name].set_index("target")["prob"]
        said = predictor.predict(folder).probabilities.set_index("target")["prob"]
        assert said.to_dict() == pytest.approx(own[list(TARGETS)].to_dict(), rel=1e-6)


def test_tables_are_plain_and_whole(judgment, predictor):
    assert judgment.ok and judgment.notes == (NOTE,)
    assert list(judgment.probabilities["target"]) == list(TARGETS)
    assert list(judgment.levels["level"]) == list(LEVELS)
    assert judgment.levels["z_mm"].is_monotonic_decreasing
    members = set(predictor.ensemble.config.members)
    assert set(judgment.slices["member"]) == members
    assert not judgment.slices.duplicated(["member", "slice"]).any()
    found = judgment.as_dict()
    assert found["schema"] == SCHEMA and json.loads(json.dumps(found)) == found
    for level in LEVELS:
        best, *_ = judgment.driving(level)
        assert judgment.evidence(level)[best] == judgment.evidence(level).max()
    files = [header.file for header in judgment.scan.geometry.headers]
    assert found["slices"] == len(files)


def test_levels_by_the_finder_are_marked(predictor, folders, monkeypatch):
    for network in predictor.ensemble.stage(range(predictor.ensemble.config.folds.n)).values():
        monkeypatch.setattr(network, "synthetic", True)
    judgment = predictor.predict(folders[0])
    assert judgment.notes == (NOTE, NOTE_OF_FINDER)
    told = (judgment.fold_levels, predictor.levels(folders[0]).levels)
    assert all(levels["source"].str.startswith(("finder", "absent")).all() for levels in told)


def test_what_the_kernel_answers_from_headers_is_not_judged(
    predictor, folders, monkeypatch, tmp_path
):
    scan = predictor.read(folders[0])
    said = predictor.ensemble.predict(scan.volumes, folders[0])
    said.levels_from, said.faults = "header_levels", {"vertebra fold 0": "no neck here"}
    monkeypatch.setattr(predictor.ensemble, "predict", lambda *_: said)
    told = predictor.judge(scan, folders[0])
    assert (told.status, told.probabilities.empty) == ("cannot_judge", True)
    assert "no neck here" in told.reason and told.as_dict()["probabilities"] is None

    said.levels_from = "image"
    kept = said.levels.copy()
    said.levels["present"] = False
    assert "is this a scan of the neck" in predictor.judge(scan, folders[0]).reason
    said.levels = kept.assign(present=True, center_z_mm=-kept["center_z_mm"])
    assert "the wrong end" in predictor.judge(scan, folders[0]).reason

    def fails(*_):
        raise StudyError("1.2", "nothing to look at")

    monkeypatch.setattr(predictor.ensemble, "predict", fails)
    assert "nothing to look at" in predictor.judge(scan, folders[0]).reason
    (tmp_path / "empty").mkdir()
    told = predictor.predict(tmp_path / "empty", phantom_bundle=True)
    assert told.status == "cannot_judge" and told.scan is None and told.reason


def test_a_level_outside_the_scan_is_marked(judgment):
    rows = judgment.fold_levels.copy()
    rows["present"] = rows["level"] != "C7"
    alone = rows["model_fold"] == 0  # one fold of two that places C1 elsewhere and calls it absent
    rows.loc[alone & (rows["level"] == "C1"), ["present", "center_z_mm"]] = [False, 9999.0]
    table = level_table(rows, judgment.scan).set_index("level")
    assert not table.loc["C7", "in_scan"] and table["in_scan"].drop("C7").all()
    assert table.loc["C1", "z_mm"] < 9000.0


def test_problems_that_forbid_an_answer_are_told(predictor, folders, tmp_path):
    for file in folders[0].iterdir():
        data = pydicom.dcmread(file)
        del data.PixelSpacing
        data.save_as(tmp_path / file.name)
    told = predictor.predict(tmp_path, phantom_bundle=True)
    assert told.status == "cannot_judge" and "assumed_spacing" in told.reason
    assert "assumed_spacing" in told.as_dict()["problems"]


def test_a_phantom_bundle_refuses_other_scans(predictor, folders, tmp_path):
    place = tmp_path / "scan"
    place.symlink_to(folders[0])
    assert predictor.predict(place).ok  # the link leads to a phantom
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folders[0].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    refused = predictor.predict(copy)
    assert refused.status == "cannot_judge" and NOTE in refused.reason
    allowed = predictor.predict(copy, phantom_bundle=True)
    assert allowed.ok and allowed.notes == (NOTE,)


def test_a_bundle_that_is_none_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="no bundle"):
        Predictor(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="manifest"):
        Predictor(tmp_path)


def test_importing_the_package_loads_nothing():
    code = (
        "import sys, cspine_kit\n"
        "assert not {'numpy', 'pandas', 'torch'} & set(sys.modules)\n"
        "from cspine_kit import Predictor\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute"):
        import cspine_kit

        _ = cspine_kit.Predicter
    assert OVERALL in TARGETS and room.NO_NECK

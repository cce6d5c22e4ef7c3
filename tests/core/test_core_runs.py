"""Atomic artifacts, fingerprints, seeds, safe ids and the guarded map."""

import json
import time
from pathlib import Path

import pytest

from cspine_kit.core import execution
from cspine_kit.core.errors import CSpineError, DataError, StudyError
from cspine_kit.core.execution import map_studies, require_some, with_bar
from cspine_kit.core.paths import Competition, is_safe_uid, safe_uid
from cspine_kit.core.runs import (
    derive_seed,
    fingerprint,
    is_fresh,
    listing_fingerprint,
    publish,
    run_record,
    stored_key,
)


def test_publish_is_all_or_nothing(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    with publish(path, "k1") as temporary:
        temporary.write_text("one")
    assert path.read_text() == "one" and is_fresh(path, "k1")
    with pytest.raises(RuntimeError), publish(path, "k2") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one" and stored_key(path) == "k1"
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.txt", "a.txt.key"]


def test_publish_replaces_a_folder(tmp_path):
    for content in ("one", "two"):
        with publish(tmp_path / "folder", content) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["two"]


def test_a_key_without_its_artifact_is_not_fresh(tmp_path):
    with publish(tmp_path / "a", "k") as temporary:
        temporary.write_text("x")
    (tmp_path / "a").unlink()
    assert not is_fresh(tmp_path / "a", "k")


def test_fingerprints_and_seeds_depend_on_every_part(tmp_path):
    assert fingerprint(1, {"a": 2}) == fingerprint(1, {"a": 2}) != fingerprint(1, {"a": 3})
    assert len({derive_seed(1, "m", fold) for fold in range(50)}) == 50
    assert 0 <= derive_seed("x") < 2**32
    before = listing_fingerprint(tmp_path)
    (tmp_path / "new").write_text("x")
    assert listing_fingerprint(tmp_path) != before


def test_run_record_tells_how_a_run_ended(tmp_path):
    with run_record(tmp_path, "fine", inputs={"key": "k"}) as results:
        results["n"] = 3
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "done" and record["results"] == {"n": 3}
    assert record["seconds"] >= 0 and record["peak_memory_mib"] > 0
    with pytest.raises(CSpineError), run_record(tmp_path, "bad", inputs={}):
        raise CSpineError("because")
    assert "because" in json.loads((tmp_path / "run.json").read_text())["status"]


@pytest.mark.parametrize("uid", ["../x", "1.2/3", "", "a.b", "1..2", ".1", "1.", "1" * 65, "1 2"])
def test_unsafe_ids_never_become_paths(uid, tmp_path):
    assert not is_safe_uid(uid)
    with pytest.raises(DataError):
        Competition(tmp_path).images("test", uid)


def test_a_real_uid_is_safe():
    assert safe_uid("1.2.826.0.1.3680043.6200") == "1.2.826.0.1.3680043.6200"


def test_folders_one_level_too_deep_and_packed_masks_are_found(tmp_path):
    (tmp_path / "train_images" / "train_images" / "1.2").mkdir(parents=True)
    (tmp_path / "test_images" / "1.3").mkdir(parents=True)
    (tmp_path / "segmentations").mkdir()
    (tmp_path / "segmentations" / "1.2.nii.gz").touch()
    competition = Competition(tmp_path)
    assert competition.images("train", "1.2") == tmp_path / "train_images" / "train_images" / "1.2"
    assert competition.images("test", "1.3") == tmp_path / "test_images" / "1.3"
    assert competition.segmentation("1.2").name == "1.2.nii.gz"
    assert competition.segmentation("1.4").name == "1.4.nii"
    (tmp_path / "segmentations" / "1.2.nii").touch()
    assert competition.segmentation("1.2").name == "1.2.nii"


def test_a_dead_link_does_not_stop_a_listing(tmp_path):
    (tmp_path / "1.dcm").write_text("x")
    before = listing_fingerprint(tmp_path)
    (tmp_path / "2.dcm").symlink_to("nowhere")
    dead = listing_fingerprint(tmp_path)
    assert dead != before
    (tmp_path / "nowhere").write_text("y")
    assert listing_fingerprint(tmp_path) != dead, "a mended link is seen"


def half(value: int) -> float:
    if value == 3:
        raise StudyError("u3", "three is broken")
    return 6 / value


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_bad_study_costs_only_itself(jobs):
    outcome = map_studies(half, {f"u{i}": i for i in (1, 2, 3, 0, 6)}, jobs=jobs)
    assert outcome.results == {"u1": 6, "u2": 3, "u6": 1}
    assert "three is broken" in outcome.failures["u3"]
    assert "ZeroDivisionError" in outcome.failures["u0"]


def test_all_bad_is_an_error():
    with pytest.raises(DataError, match="three is broken"):
        require_some(map_studies(half, {"u3": 3}, jobs=1), "index")


def read_here(name: str) -> str:
    return Path(name).read_text()


def test_relative_paths_mean_the_callers_folder_in_reused_workers(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "note.txt").write_text(folder)
        monkeypatch.chdir(tmp_path / folder)
        outcome = map_studies(read_here, {"a": "note.txt", "b": "note.txt"}, jobs=2)
        assert outcome.results == {"a": folder, "b": folder}


def test_a_bar_shows_only_where_items_take_long(monkeypatch, capsys):
    assert list(with_bar(range(3), "short")) == [0, 1, 2]
    assert "short" not in capsys.readouterr().err
    monkeypatch.setattr(execution, "BAR_AFTER_S", 0.05)
    for _ in with_bar(range(4), "long", unit="file"):
        time.sleep(0.15)
    assert "long: 100%" in capsys.readouterr().err

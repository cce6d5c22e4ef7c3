"""The proof that a model never saw what it is scored on: its list of studies, and its hash."""

import pytest
from fake_networks import fake_networks
from run_folder import tiny_config, write_run

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import fingerprint, read_json, write_json
from cspine_kit.vision.inputs.tables import open_inputs
from cspine_kit.vision.oof.chain import FoldChain
from cspine_kit.vision.oof.lineage import check_lineage, read_lineage, seal_model, write_lineage
from cspine_kit.vision.oof.run import run_oof
from cspine_kit.vision.oof.steps import train_fracture


@pytest.fixture(name="paths")
def _paths(tmp_path, monkeypatch):
    """A finished run of eight studies in two folds; the odd ones are in fold 0."""
    fake_networks(monkeypatch)
    paths = write_run(tmp_path / "run", 8)
    run_oof(tiny_config(), paths)
    return paths


def test_a_model_names_all_it_learned_from(paths):
    for fold, held_out in ((0, (1, 3, 5, 7)), (1, (2, 4, 6, 8))):
        others = [f"1.2.{k}" for k in range(1, 9) if k not in held_out]
        for name in ("vertebra", "a", "b"):
            folder = paths.model(name, fold)
            assert read_lineage(folder) == others
            assert read_json(folder / "model.json")["learned_from"] == fingerprint(others)


def test_what_taught_a_model_is_part_of_it(tmp_path):
    write_lineage(tmp_path, ["1.1"], upstream=[["1.5", "1.2"], ["1.2", "1.7"]], key="k")
    assert read_lineage(tmp_path) == ["1.1", "1.2", "1.5", "1.7"]
    # A training that goes on has seen what it saw before, though a study is lost by now.
    write_lineage(tmp_path, ["1.3"], upstream=[], key="k")
    assert read_lineage(tmp_path) == ["1.1", "1.2", "1.3", "1.5", "1.7"]
    write_lineage(tmp_path, ["1.3"], upstream=[], key="another")
    assert read_lineage(tmp_path) == ["1.3"]
    write_json(tmp_path / "model.json", {"heads": {}})
    seal_model(tmp_path)
    check_lineage(tmp_path, ["1.1"])
    with pytest.raises(ArtifactError, match=r"learned from 1 studies of its own fold: \['1.3'\]"):
        check_lineage(tmp_path, ["1.1", "1.3"])


def test_rows_of_a_model_that_saw_its_fold_are_not_collected(paths):
    """However it came about: here the vertebra model that taught fold 0 has seen study 1."""
    folder = paths.model("vertebra", 0)
    leaked = sorted([*read_lineage(folder), "1.2.1"])
    write_json(folder / "studies.json", leaked, (folder / "studies.json.key").read_text().strip())
    model = read_json(folder / "model.json")
    write_json(folder / "model.json", {**model, "learned_from": fingerprint(leaked)})
    with pytest.raises(ArtifactError, match=r"vertebra/fold_0.*own fold: \['1.2.1'\]"):
        run_oof(tiny_config(), paths)
    # Its members are taught by it: made anew, they carry its list.
    (paths.model("a", 0) / "weights.safetensors").unlink()
    train_fracture(FoldChain(tiny_config(), paths, open_inputs(paths), 0), "a")
    assert "1.2.1" in read_lineage(paths.model("a", 0))


@pytest.mark.parametrize("damage", ["list", "hash", "another model"])
def test_a_list_that_is_not_the_models_is_refused(paths, damage):
    folder = paths.model("a", 1)
    key = (folder / "studies.json.key").read_text().strip()
    if damage == "list":
        write_json(folder / "studies.json", read_lineage(folder)[1:], key)
    elif damage == "hash":
        model = read_json(folder / "model.json")
        write_json(folder / "model.json", {**model, "learned_from": "0" * 64})
    else:
        text = (paths.model("a", 0) / "model.json").read_text()
        (folder / "model.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"a/fold_1/model\.json holds another hash.*make oof"):
        run_oof(tiny_config(), paths)


def test_a_model_without_a_list_proves_nothing(paths):
    folder = paths.model("b", 0)
    (folder / "studies.json").unlink()
    with pytest.raises(ArtifactError, match="nobody can tell which studies"):
        check_lineage(folder, [])
    run_oof(tiny_config(), paths)
    assert read_lineage(folder) == ["1.2.2", "1.2.4", "1.2.6", "1.2.8"], "it is trained again"
    (folder / "studies.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is no list of studies"):
        check_lineage(folder, [])

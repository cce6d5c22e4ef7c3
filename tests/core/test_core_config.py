"""Configs: every shipped one loads, and a typo is never silent."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from cspine_kit.core.config import RESERVED, load_config, parse_network, resolved_yaml
from cspine_kit.core.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def changed(tmp_path: Path, change) -> Path:
    """A copy of the base config after `change(raw)`."""
    raw = yaml.safe_load((CONFIGS / "base.yaml").read_text())
    change(raw)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize(
    "path",
    sorted(CONFIGS.glob("*.yaml")) + sorted(CONFIGS.glob("sources/*.yaml")),
    ids=lambda p: p.stem,
)
def test_every_shipped_config_loads_and_survives_resolution(path, tmp_path):
    config = load_config(path)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(config))
    assert load_config(resolved) == config


def test_members_inherit_the_model_section():
    config = load_config(CONFIGS / "rsna2022.yaml")
    assert len(config.members) >= 2
    assert len({m.backbone for m in config.members.values()}) >= 2
    sizes = {"slices": config.model.size_px, "levels": config.levels.size_px}
    sizes |= {"study": config.study.size_px, "volume": config.volume.size_px}
    assert all(m.size_px == sizes[m.kind] for m in config.members.values())
    flat = {m.in_chans for m in config.members.values() if m.kind != "volume"}
    assert flat == {config.model.in_chans}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw["model"].update(epoch=3), "'model.epoch'; did you mean 'model.epochs'"),
        (lambda raw: raw.update(modle={}), "unknown key 'modle'; did you mean 'model'"),
        (lambda raw: raw["members"].update(a={"sise_px": 1}), "mean 'members.a.size_px'"),
        (lambda raw: raw["folds"].update(n=1), "folds.n"),
        (lambda raw: raw["model"].update(in_chans=4), "in_chans must be odd"),
        (lambda raw: raw["model"].update(windows=[[400, 400]]), "must lie below"),
        (lambda raw: raw["kernel"].update(views="fold"), "should be 1, 2 or 'folds'"),
        (lambda raw: raw["kernel"].update(studies_at_once=0), "kernel.studies_at_once"),
        (lambda raw: raw["model"].update(windows=["minmaks"]), "should be 'minmax'"),
        (lambda raw: raw["model"].update(background="zeros"), "should be 'keep' or 'zero'"),
        (lambda raw: raw["vertebra"].update(background="zero"), "for kind 'vertebra', only for"),
        (lambda raw: raw["model"].update(field_mm=500), "larger than volumes.fine.field_mm"),
        (lambda raw: raw.update(name="../up"), "name"),
        (lambda raw: raw.pop("volumes"), "volumes: Field required"),
        (lambda raw: raw["vertebra"].update(visible_loss=2), "for kind 'vertebra', only for ['se"),
        (lambda raw: raw["vertebra"].update(fracture=1), "unknown key 'vertebra.fracture'"),
        (lambda raw: raw["members"].update(a={"kind": "level"}), "'boxes']; did you mean 'levels'"),
        (lambda raw: raw["levels"].update(slices_per_level=1), "'gru' does nothing with slices_pe"),
        (lambda raw: raw["levels"].update(hiden=64), "did you mean 'levels.hidden'"),
        (lambda raw: raw["levels"].update(in_chans=4), "levels: Value error, in_chans must be odd"),
        (lambda raw: raw["model"].update(weights="net.pt"), "weights must be a .safetensors file"),
        (lambda raw: raw["vertebra"].update(weights="findr"), "a .safetensors file or 'finder'"),
        (lambda raw: raw["training"].update(precision="half"), "precision: Input should be 'auto'"),
        (lambda raw: raw["stack"].update(keep=["effnet"]), "['effnet'] are no members; there are"),
    ],
)  # fmt: skip
def test_faults_name_file_key_and_nearest(tmp_path, change, said):
    path = changed(tmp_path, change)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (
            {"slices_per_study": 3},
            "for kind 'levels', only for ['vertebra', 'segment', 'slices', 'boxes']",
        ),
        ({"slices_per_study": 3}, "did you mean 'members.a.slices_per_level'"),
        (
            {"plane": "sagittal", "stack_step_mm": 30},
            "breadth of 148.0 is larger than volumes.fine",
        ),
        ({"plane": "axal"}, "members.a.plane: Input should be 'axial'"),
    ],
)
def test_faults_of_a_member_name_its_kind(tmp_path, member, said):
    path = changed(tmp_path, lambda raw: raw["members"].update(a={"kind": "levels", **member}))
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert said in str(error.value)


def test_a_typo_in_model_is_said_once(tmp_path):
    path = changed(tmp_path, lambda raw: raw["model"].update(epoch=3))
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).count("unknown key") == 1


@pytest.mark.parametrize("name", ["a__b", "_a", "a_", "A", "../x", "a-b", "a.b", "", "ä"])
def test_a_member_bears_a_plain_name(tmp_path, name):
    path = changed(tmp_path, lambda raw: raw["members"].update({name: {}}))
    with pytest.raises(ConfigError, match="is no name: lower-case letters, digits and single"):
        load_config(path)


@pytest.mark.parametrize("name", [*sorted(RESERVED), "stack", "stack_strict", "stack_2"])
def test_names_of_the_kit_are_taken(tmp_path, name):
    path = changed(tmp_path, lambda raw: raw["members"].update({name: {}}))
    with pytest.raises(ConfigError, match=f"'{name}'.* names of the kit"):
        load_config(path)
    external = [{"name": name, "oof": "x.csv"}]
    path = changed(tmp_path, lambda raw: raw["stack"].update(external=external))
    with pytest.raises(ConfigError, match=f"'{name}'.* names of the kit"):
        load_config(path)


def test_models_of_the_score_table_are_reserved(chain):
    """Every model the stack scored is a member, or a name that no member can have."""
    members = load_config(chain / "configs" / "tiny.yaml").members
    scores = pd.read_csv(chain / "oof" / "tiny" / "stack" / "scores.csv")
    for name in set(scores["model"]) - set(members):
        assert name in RESERVED or name.startswith("stack"), name


def test_a_kind_takes_only_the_defaults_that_it_has():
    config = load_config(CONFIGS / "base.yaml")
    assert config.model.positive_weight == 2.0
    assert not hasattr(config.vertebra, "positive_weight")
    assert config.vertebra.kind == "vertebra" and config.vertebra.lr == config.model.lr
    assert {member.kind for member in config.members.values()} == {"slices"}
    assert list(config.networks) == ["vertebra", *config.members]


def test_a_network_is_read_back_by_its_kind():
    config = load_config(CONFIGS / "base.yaml")
    for network in (*config.networks.values(), config.levels, config.study):
        assert parse_network(network.model_dump(mode="json")) == network
    with pytest.raises(ValueError, match="kind"):
        parse_network({"kind": "boxes"})


def test_absent_file_names_its_neighbors(tmp_path):
    (tmp_path / "demo.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match=r"demo\.yaml"):
        load_config(tmp_path / "deom.yaml")


def test_a_base_has_no_base(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: c.yaml")
    with pytest.raises(ConfigError, match="may not name a base"):
        load_config(tmp_path / "a.yaml")

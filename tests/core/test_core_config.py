"""Configs: every shipped one loads, and a typo is never silent."""

from pathlib import Path

import pytest
import yaml

from cspine_kit.core.config import load_config, resolved_yaml
from cspine_kit.core.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def changed(tmp_path: Path, change) -> Path:
    """A copy of the base config after `change(raw)`."""
    raw = yaml.safe_load((CONFIGS / "base.yaml").read_text())
    change(raw)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_loads_and_survives_resolution(path, tmp_path):
    config = load_config(path)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(config))
    assert load_config(resolved) == config


def test_members_inherit_the_model_section():
    config = load_config(CONFIGS / "rsna2022.yaml")
    assert len(config.members) >= 2
    assert len({m.backbone for m in config.members.values()}) >= 2
    assert {m.size_px for m in config.members.values()} == {config.model.size_px}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw["model"].update(epoch=3), "'model.epoch'; did you mean 'model.epochs'"),
        (lambda raw: raw.update(modle={}), "unknown key 'modle'; did you mean 'model'"),
        (lambda raw: raw["members"].update(a={"sise_px": 1}), "mean 'members.a.size_px'"),
        (lambda raw: raw["folds"].update(n=1), "folds.n"),
        (lambda raw: raw["model"].update(in_chans=4), "in_chans must be odd"),
        (lambda raw: raw["model"].update(windows=[[400, 400]]), "must lie below"),
        (lambda raw: raw["model"].update(field_mm=500), "larger than volumes.fine.field_mm"),
        (lambda raw: raw.update(name="../up"), "name"),
        (lambda raw: raw.pop("volumes"), "volumes: Field required"),
    ],
)  # fmt: skip
def test_faults_name_file_key_and_nearest(tmp_path, change, said):
    path = changed(tmp_path, change)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_typo_in_model_is_said_once(tmp_path):
    path = changed(tmp_path, lambda raw: raw["model"].update(epoch=3))
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).count("unknown key") == 1


def test_absent_file_names_its_neighbors(tmp_path):
    (tmp_path / "demo.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match=r"demo\.yaml"):
        load_config(tmp_path / "deom.yaml")


def test_a_base_has_no_base(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: c.yaml")
    with pytest.raises(ConfigError, match="may not name a base"):
        load_config(tmp_path / "a.yaml")

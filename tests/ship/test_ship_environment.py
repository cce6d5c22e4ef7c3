"""Kaggle's packages in an environment of their own: shown as they come, named where they fail."""

import sys
from pathlib import Path

import pytest

from cspine_kit.core.errors import ArtifactError
from cspine_kit.ship.rehearsal.environment import build_environment

TARGET = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_an_installation_shows_that_it_goes_on_and_keeps_what_pip_refused(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    pins = tmp_path / "pins.txt"
    pins.write_text(f"# python: {TARGET}\ncspine-absent==1.0\n")
    with pytest.raises(ArtifactError, match=r"No matching distribution found for cspine-absent"):
        build_environment(pins, tmp_path / "root", python=Path(sys.executable))
    shown = capsys.readouterr().err
    assert f"python {TARGET} environment: 00:" in shown and f"packages of {pins}: 00:" in shown
    [folder] = (tmp_path / "root").iterdir()
    assert not (folder / ".ready.json").exists(), "half an environment is not used again"

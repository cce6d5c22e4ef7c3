"""submit.py on a damaged bundle: a changed wheel is not installed, broken priors cost no row."""

import csv
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from finished_run import ROOT

from cspine_kit.core.runs import file_hash, write_json


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """The script as a module, installing and writing below `tmp_path`; paths are put back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("CSPINE_PACKAGES", str(tmp_path / "packages"))
    monkeypatch.setenv("CSPINE_OUT", str(tmp_path / "submission.csv"))
    spec = importlib.util.spec_from_file_location("submit", ROOT / "kernels/submit/submit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle with a wheel of this Python's tag, one of another's, and priors."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    names = ("somelib-1.0-py3-none-any.whl", "somelib-1.0-cp399-cp399-manylinux_2_28_x86_64.whl")
    for name in names:
        (folder / name).write_bytes(b"no real wheel")
    (folder / "priors.json").write_text('{"C1": 0.1}')
    listed = {p.name: {"sha256": file_hash(p)} for p in folder.iterdir()}
    write_json(folder / "manifest.json", {"format": "cspine_kit bundle 1", "files": listed})
    return folder


def test_a_wheel_that_is_not_the_manifests_is_not_installed(submit, bundle, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(
        submit.subprocess, "run", lambda command, check: ran.append(command) or _Done()
    )
    submit.install(bundle)
    told = capsys.readouterr().out
    assert f"bundle manifest {file_hash(bundle / 'manifest.json')}" in told
    assert "installed somelib-1.0-py3-none-any.whl" in told
    assert "left out, of another Python: somelib-1.0-cp399" in told
    assert len(ran) == 1 and "--no-index" in ran[0]

    (bundle / "somelib-1.0-py3-none-any.whl").write_bytes(b"something else")
    submit.install(bundle)
    assert "NOT installed, not the manifest's hash: somelib-1.0-py3" in capsys.readouterr().out
    assert len(ran) == 1


class _Done:
    returncode = 0


@pytest.mark.parametrize(("priors", "expected"), [('{"C1": 0.1}', "0.1"), ("{broken", "0.5")])
def test_every_row_gets_a_prior_whatever_the_priors_file_holds(
    submit, bundle, tmp_path, priors, expected
):
    (bundle / "priors.json").write_text(priors)
    shutil.copy(bundle / "priors.json", tmp_path)
    rows = "row_id,StudyInstanceUID,prediction_type\n1.2_C1,1.2,C1\n1.2_C1,1.2,C1\n"
    (tmp_path / "test.csv").write_text(rows)
    submit.write_priors(tmp_path, bundle)
    with (tmp_path / "submission.csv").open(newline="") as handle:
        assert list(csv.reader(handle)) == [["row_id", "fractured"], ["1.2_C1", expected]]

"""The probe kernel's report, and the pins of Kaggle's image made from it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cspine_kit.cli import main
from cspine_kit.core.config import load_config
from cspine_kit.core.errors import DataError
from cspine_kit.ship.kaggle.service import kernel_metadata
from cspine_kit.ship.rehearsal.constraints import (
    KERNEL_PACKAGES,
    read_pins,
    render_pins,
    write_probe_metadata,
)

ROOT = Path(__file__).resolve().parents[2]
PROBE = ROOT / "kernels" / "probe" / "probe.py"
IMPORTED_AS = {"cv2": "opencv-python-headless", "gdcm": "python-gdcm", "yaml": "pyyaml"}
IMPORTED_AS |= {"sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"}
NOT_IN_KERNEL = {"accelerate", "kaggle", "matplotlib", "nibabel", "optuna", "packaging", "pandera"}
NOT_IN_KERNEL |= {"pytorch_grad_cam", "ray"}
OPTIONAL_IN_KERNEL = {"imagecodecs"}
COMES_ALONG = {"mypy-extensions", "pandera", "python-gdcm", "typing-inspect"}


@pytest.fixture(name="report")
def _report(tmp_path) -> dict:
    """What the probe says on this machine, run alone and without this project on its path."""
    inputs = tmp_path / "input"
    (inputs / "competitions" / "rsna" / "test_images" / "1.2").mkdir(parents=True)
    (inputs / "competitions" / "rsna" / "test.csv").write_text("row_id\n")
    (inputs / "datasets" / "me" / "bundle").mkdir(parents=True)
    (inputs / "datasets" / "me" / "bundle" / "manifest.json").write_text("{}")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"CSPINE_INPUT": str(inputs), "CSPINE_PROBE": str(tmp_path / "probe.json")}
    command = [sys.executable, str(PROBE)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    report = json.loads((tmp_path / "probe.json").read_text())
    assert json.loads(done.stdout) == report
    return report


def test_the_probe_tells_what_a_session_holds(report):
    assert report["python"].startswith(f"3.{sys.version_info.minor}.")
    assert report["packages"]["numpy"] and report["packages"]["python-gdcm"]
    assert report["cpus"] >= 1 and report["memory"]["total_mib"] > 100
    assert report["disks"]["/tmp"]["gb"] > 0 and isinstance(report["gpus"], list)
    assert report["layout"] == "competitions/<slug>, datasets/<owner>/<slug>"
    mounts = {mount["path"]: mount for mount in report["mounts"]}
    assert mounts["competitions/rsna"]["names"] == ["test.csv", "test_images"]
    assert "datasets/me/bundle" in mounts
    assert not any("test_images" in path for path in mounts), "image folders are never entered"


def test_constraints_come_from_the_probe(report, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report["packages"] |= {"torch": "2.10.0+cu128", "numpy": "2.0.2", "unrelated": "1.0"}
    del report["packages"]["python-gdcm"]
    Path("probe.json").write_text(json.dumps(report))
    assert main(["constraints", "--from", "probe.json"]) == 0
    assert "numpy: absent -> 2.0.2" in capsys.readouterr().out
    text = Path("constraints-kaggle.txt").read_text()
    pins = read_pins(Path("constraints-kaggle.txt"))
    assert pins.versions["torch"] == "2.10.0" and pins.versions["numpy"] == "2.0.2"
    assert "unrelated" not in pins.versions and "python-gdcm" not in pins.versions
    assert "comes along: " in text and report["made"] in text
    assert pins.python == ".".join(report["python"].split(".")[:2])
    names = list(pins.versions)
    assert names == sorted(names)
    report["packages"]["timm"] = "9.9.9"
    Path("probe.json").write_text(json.dumps(report))
    assert main(["constraints", "--from", "probe.json"]) == 0
    assert "1 packages changed\ntimm:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [("not json", "cannot be read"), ("[]", "must be a JSON object"), ("{}", "no packages")],
)
def test_a_wrong_report_changes_nothing(tmp_path, monkeypatch, capsys, text, said):
    monkeypatch.chdir(tmp_path)
    Path("probe.json").write_text(text)
    Path("constraints-kaggle.txt").write_text("# python: 3.12\nnumpy==2.0.2\n")
    assert main(["constraints", "--from", "probe.json"]) == 1
    assert said in capsys.readouterr().err
    assert "numpy==2.0.2" in Path("constraints-kaggle.txt").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [("# python: 3.12\nnumpy>=2\n", "no exact pin"), ("numpy==2.0.2\n", "has no line '# python")],
)
def test_wrong_constraints_are_named(tmp_path, text, said):
    path = tmp_path / "constraints-kaggle.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_pins(path)


def test_the_committed_pins_are_whole():
    pins = read_pins(ROOT / "constraints-kaggle.txt")
    assert set(pins.versions) | COMES_ALONG == set(KERNEL_PACKAGES)
    again = render_pins({"python": pins.python, "packages": pins.versions}, "probe.json")
    assert [line for line in again.splitlines() if not line.startswith("#")] == [
        f"{name}=={version}" for name, version in pins.versions.items()
    ]


def test_the_pins_cover_whatever_the_kernels_rooms_import():
    """Every third-party import of these rooms is pinned, or known not to be needed there."""
    found = set()
    for room in ("core", "data", "vision", "stack", "infer"):
        for path in (ROOT / "cspine_kit" / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module]
                found |= {name.split(".")[0] for name in names}
    third = found - set(sys.stdlib_module_names) - {"cspine_kit"}
    third -= NOT_IN_KERNEL | OPTIONAL_IN_KERNEL
    unknown = {IMPORTED_AS.get(name, name) for name in third} - set(KERNEL_PACKAGES)
    assert not unknown, f"add to KERNEL_PACKAGES (or say why the kernel needs it not): {unknown}"


def test_the_probes_metadata_differs_from_the_kernels_only_in_name(tmp_path):
    config = load_config(ROOT / "configs" / "demo.yaml")
    write_probe_metadata(config, tmp_path / "probe")
    ours = json.loads((tmp_path / "probe" / "kernel-metadata.json").read_text())
    theirs = kernel_metadata(config)
    different = {key for key in theirs if theirs[key] != ours[key]}
    assert different == {"id", "title", "code_file"} and ours.keys() == theirs.keys()
    owner, slug = ours["id"].split("/")
    assert owner == "your-kaggle-name" and slug == ours["title"].replace(" ", "-")
    assert ours["code_file"] == "probe.py" and ours["enable_internet"] is False

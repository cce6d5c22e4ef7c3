"""submit.py: wheels and priors of a damaged bundle, and work that fails, dies or hangs."""

import csv
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from finished_run import ROOT

from cspine_kit.core.runs import file_hash, write_json
from cspine_kit.ship.rehearsal.session import session_processes


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """The script as a module, installing and writing below `tmp_path`; paths are put back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
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
    write_json(folder / "manifest.json", {"format": "cspine_kit bundle 2", "files": listed})
    return folder


@pytest.fixture
def packages(tmp_path) -> Path:
    """Where wheels go."""
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder


def test_a_wheel_that_is_not_the_manifests_is_not_installed(
    submit, bundle, packages, monkeypatch, capsys
):
    ran = []

    def run(command, *, env, check, timeout):
        ran.append((command, env))
        return SimpleNamespace(returncode=0)

    monkeypatch.setenv("KAGGLE_KEY", "secret")
    monkeypatch.setattr(submit.subprocess, "run", run)
    submit.install(bundle, packages)
    told = capsys.readouterr().out
    assert f"bundle manifest {file_hash(bundle / 'manifest.json')}" in told
    assert "installed somelib-1.0-py3-none-any.whl" in told
    assert "left out, of another Python: somelib-1.0-cp399" in told
    [(command, environment)] = ran
    assert {"--no-index", "--only-binary=:all:", "--require-hashes"} < set(command)
    assert not [name for name in environment if "KAGGLE" in name or name.startswith("PYTHON")]
    assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(packages)

    (bundle / "somelib-1.0-py3-none-any.whl").write_bytes(b"something else")
    submit.install(bundle, packages)
    assert "NOT installed, not the manifest's hash: somelib-1.0-py3" in capsys.readouterr().out
    assert len(ran) == 1


@pytest.mark.parametrize("pip_works", [True, False])
def test_a_sound_wheel_is_installed_by_pip_or_unpacked(submit, bundle, packages, pip_works):
    wheel = bundle / "somelib-1.0-py3-none-any.whl"
    info = "somelib-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("somelib.py", "VALUE = 7\n")
        made.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: somelib\nVersion: 1.0\n")
        if pip_works:
            made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            made.writestr(f"{info}/RECORD", "")
    digest = file_hash(wheel)
    assert submit.pip_install(wheel, digest, packages) is pip_works
    assert submit.pip_install(wheel, "0" * 64, packages.with_name("other")) is False
    files = {wheel.name: {"sha256": digest}}
    write_json(bundle / "manifest.json", {"format": "cspine_kit bundle 2", "files": files})
    submit.install(bundle, packages)
    assert (packages / "somelib.py").read_text() == "VALUE = 7\n"


def test_what_everything_depends_on_has_a_copy(submit, bundle, packages, capsys):
    """A damaged manifest or wheel is read from its copy."""
    wheel = bundle / "somelib-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("somelib.py", "VALUE = 7\n")
    files = {wheel.name: {"sha256": file_hash(wheel)}}
    write_json(bundle / "manifest.json.copy", {"format": "cspine_kit bundle 2", "files": files})
    shutil.copyfile(wheel, bundle / f"{wheel.name}.copy")
    (bundle / "manifest.json").write_text('{"format": "cspi')
    wheel.write_bytes(wheel.read_bytes()[:-9])
    assert not submit.is_bundle(bundle / "manifest.json")
    assert submit.is_bundle(bundle / "manifest.json.copy")
    submit.install(bundle, packages)
    assert "installed somelib-1.0-py3-none-any.whl" in capsys.readouterr().out
    assert (packages / "somelib.py").exists()
    (bundle / f"{wheel.name}.copy").unlink()
    submit.install(bundle, packages)
    assert "NOT installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffrow_id,StudyInstanceUID,prediction_type\n1.2_C1,1.2,C1\n1.2_C2,1.2,C2\n",
        "row_id;StudyInstanceUID;prediction_type\r\n1.2_C1;1.2;C1\r\n1.2_C2;1.2;C2\r\n",
        "Row_ID, StudyInstanceUID , Prediction_type\n1.2_C1 ,1.2, C1 \n\n1.2_C2,1.2,C2\n,,\n",
    ],
    ids=["byte order mark", "semicolons", "blanks"],
)
def test_priors_for_a_listing_that_a_spreadsheet_saved(submit, bundle, tmp_path, text):
    (tmp_path / "test.csv").write_bytes(text.encode())
    submit.write_priors(tmp_path, bundle)
    assert submit.OUT.read_text() == "row_id,fractured\n1.2_C1,0.1\n1.2_C2,0.5\n"


@pytest.mark.parametrize("before", [None, "", ":", "/a::/b"])
def test_no_entry_of_the_path_is_empty(submit, bundle, packages, monkeypatch, before):
    monkeypatch.delenv("PYTHONPATH") if before is None else monkeypatch.setenv("PYTHONPATH", before)
    for wheel in bundle.glob("*.whl"):
        wheel.unlink()
    submit.install(bundle, packages)
    parts = os.environ["PYTHONPATH"].split(os.pathsep)
    assert parts[0] == str(packages) and "" not in parts


WORKS = {
    "well": ("return 0", 0),
    "badly": ("return 1", 1),
    "raising": ("raise RuntimeError('no')", 1),
    "exiting": ("sys.exit(3)", 1),
    "dying": ("os.kill(os.getpid(), signal.SIGSEGV)", 1),
    "hanging": ("time.sleep(600)", 1),
    "hanging in a thread": (
        "threading.Thread(target=time.sleep, args=(600,)).start(); return 0",
        0,
    ),
}
DRIVER = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
import submit
def work(*_):
    {body}
submit.work = work
submit.SHARE = 2.0 / 3600 / 9
sys.exit(submit.main())
"""


@pytest.mark.parametrize("rerun", [True, False], ids=["hidden rerun", "after a push"])
@pytest.mark.parametrize("kind", WORKS)
def test_whatever_the_work_does_the_script_ends_in_time(bundle, tmp_path, kind, rerun):
    """In a hidden rerun with 0, else loudly; the rows of priors stand, no process is left."""
    body, loud = WORKS[kind]
    (tmp_path / "input" / "competition").mkdir(parents=True)
    (tmp_path / "input" / "bundle").symlink_to(bundle)
    rows = "row_id,StudyInstanceUID,prediction_type\n1.2_C1,1.2,C1\n"
    (tmp_path / "input" / "competition" / "test.csv").write_text(rows)
    (tmp_path / "tmp").mkdir()
    environment = {
        **{"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / "tmp")},
        **{"CSPINE_INPUT": str(tmp_path / "input"), "CSPINE_OUT": str(tmp_path / "s.csv")},
        **({"KAGGLE_IS_COMPETITION_RERUN": "1"} if rerun else {}),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(body=body), str(ROOT / "kernels" / "submit")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.wait(30) == (0 if rerun else loud)
    assert (tmp_path / "s.csv").read_text() == "row_id,fractured\n1.2_C1,0.1\n"
    assert session_processes(process.pid) == []
    assert list((tmp_path / "tmp").iterdir()) == [], "the packages' folder is gone"


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

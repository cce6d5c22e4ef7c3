"""The place a rehearsal runs in keeps what it promises."""

import json
import sys
from pathlib import Path

import pytest

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import read_json
from cspine_kit.ship.rehearsal.environment import build_environment
from cspine_kit.ship.rehearsal.sandbox import (
    Sandbox,
    base_of,
    best_isolation,
    has_gpu,
)
from cspine_kit.ship.rehearsal.session import session_processes

HERE = Path(sys.prefix)
PROMISES = """
import json, os, socket, sys, time
from pathlib import Path

said = {"cwd": os.getcwd(), "script": __file__}
said["home"] = sorted(os.listdir(os.path.expanduser("~")))
said["root"] = sorted(os.listdir("/root")) if os.access("/root", os.R_OK) else []
said["variables"] = sorted(name for name in os.environ if "KAGGLE" in name)
said["rerun"] = os.environ.get("KAGGLE_IS_COMPETITION_RERUN")
source = Path(os.environ.get("CSPINE_INPUT", "/kaggle/input")) / "competitions" / "rsna"
said["seen"] = sorted(p.name for p in source.iterdir())
try:
    (source / "new.txt").write_text("x")
    said["written"] = True
except OSError as error:
    said["written"] = False
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 9), timeout=2)
    said["network"] = "connected"
except OSError as error:
    said["network"] = str(error)
try:
    bytearray(3 << 30)
    said["memory"] = "had it"
except MemoryError:
    said["memory"] = "refused"
Path("said.json").write_text(json.dumps(said))
time.sleep(1)  # long enough to be weighed
"""


@pytest.fixture(name="inputs")
def _inputs(tmp_path) -> dict[str, Path]:
    (tmp_path / "rsna").mkdir()
    (tmp_path / "rsna" / "test.csv").write_text("row_id\n")
    return {"competitions/rsna": tmp_path / "rsna"}


@pytest.fixture(name="isolation", params=["namespaces", "guard"])
def _isolation(request) -> str:
    if request.param == "namespaces" and best_isolation() != "namespaces":
        pytest.skip("namespaces are not allowed here")
    return str(request.param)


def run(tmp_path, isolation, inputs, code, *, limit_s=60.0, memory_gib=2.0, working_gb=20.0):
    script = tmp_path / "kernel.py"
    script.write_text(code)
    sandbox = Sandbox(tmp_path / "sandbox", isolation, memory_gib, working_gb)
    return sandbox, sandbox.run(HERE, script, inputs, limit_s=limit_s)


def test_promises_are_kept(tmp_path, inputs, isolation, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    sandbox, done = run(tmp_path, isolation, inputs, PROMISES)
    assert done.code == 0, done.output
    said = read_json(sandbox.working / "said.json")
    assert said["seen"] == ["test.csv"] and said["rerun"] == "1"
    assert said["memory"] == ("had it" if has_gpu() else "refused")
    assert done.peak_mib > 1 and done.seconds < 60 and done.ended_for == ""
    if isolation == "namespaces":
        assert said["cwd"] == "/kaggle/working" and said["script"] == "/kaggle/src/script.py"
        assert said["written"] is False and "unreachable" in said["network"]
        assert not (tmp_path / "rsna" / "new.txt").exists()
        assert not Path("/kaggle/src/script.py").exists(), "nothing of it is left outside"
        held = {p.parts[2] for p in (base_of(HERE), HERE) if p.parts[:2] == ("/", "root")}
        assert set(said["root"]) <= held, "homes are hidden but for the interpreter"
    else:
        assert "no network here" in said["network"] and said["home"] == []
    assert said["variables"] == ["KAGGLE_IS_COMPETITION_RERUN", "KAGGLE_KERNEL_RUN_TYPE"]
    told = sandbox.describe()
    assert set(told) == {"paths", "network", "inputs", "home", "memory", "disk", "is not"}
    assert "no wall" in told["is not"]


def test_a_run_past_its_time_is_ended_with_all_its_helpers(tmp_path, inputs, isolation):
    code = (
        "import subprocess, sys, time\n"
        "print('started', flush=True)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "time.sleep(60)\n"
    )
    _, done = run(tmp_path, isolation, inputs, code, limit_s=2.0)
    assert done.ended_for == "time" and done.code != 0 and done.seconds < 30
    assert done.output.startswith("started")


def test_memory_of_all_processes_together_is_limited(tmp_path, inputs):
    """Each helper stays under the limit that all of them break."""
    helper = "x = bytearray(b'1') * (60 << 20); import time; time.sleep(60)"
    code = (
        "import subprocess, sys\n"
        f"all = [subprocess.Popen([sys.executable, '-c', {helper!r}]) for _ in range(4)]\n"
        "[one.wait() for one in all]\n"
    )
    _, done = run(tmp_path, "guard", inputs, code, memory_gib=0.15)
    assert done.ended_for == "memory" and done.peak_mib > 150 and done.seconds < 60


@pytest.mark.parametrize("after", ["time.sleep(60)", ""])
def test_a_working_folder_that_grows_too_large_ends_the_run(tmp_path, inputs, isolation, after):
    code = (
        "import os, pathlib, time\n"
        "pathlib.Path('few').write_bytes(bytes(400_000))\n"
        "os.symlink('few', 'link')\n"
        f"if {bool(after)}: pathlib.Path('many').write_bytes(bytes(700_000))\n"
        f"{after}\n"
    )
    _, done = run(tmp_path, isolation, inputs, code, working_gb=1e-3)
    assert done.ended_for == ("disk" if after else "") and done.seconds < 30
    assert done.disk_gb == pytest.approx(1.1e-3 if after else 0.4e-3)


def test_helpers_left_behind_are_counted_and_ended(tmp_path, inputs):
    code = (
        "import os, subprocess, sys\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(os.getpid(), flush=True)\n"
    )
    _, done = run(tmp_path, "guard", inputs, code)
    assert done.code == 0 and done.left_over == 1
    assert session_processes(int(done.output.split()[0])) == []


def test_a_missing_mount_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"datasets/me/bundle.*no folder"):
        run(tmp_path, "guard", {"datasets/me/bundle": tmp_path / "absent"}, "")


@pytest.mark.slow
def test_environments_are_built_once_for_each_constraints(tmp_path):
    """With no pins: what is tested is the folder, not the package index."""
    constraints = tmp_path / "constraints.txt"
    version = f"3.{sys.version_info.minor}"
    constraints.write_text(f"# python: {version}\n")
    first = build_environment(constraints, tmp_path / "envs", python=Path(sys.executable))
    again = build_environment(constraints, tmp_path / "envs", python=Path(sys.executable))
    assert first.built_now and not again.built_now and again.folder == first.folder
    assert first.python.exists() and first.version == version and first.on_target
    constraints.write_text("# python: 2.7\n")
    (first.folder / ".ready.json").unlink()  # as a build that was interrupted leaves it
    other = build_environment(constraints, tmp_path / "envs", python=Path(sys.executable))
    assert other.built_now and other.folder != first.folder
    assert not other.on_target and other.target == "2.7"
    with pytest.raises(ArtifactError, match="does not run"):
        build_environment(constraints, tmp_path / "envs", python=tmp_path / "no_python")


def test_the_network_of_a_namespace_reaches_nothing_that_listens_here(tmp_path, inputs):
    import socket

    if best_isolation() != "namespaces":
        pytest.skip("namespaces are not allowed here")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = PROMISES.replace("int(sys.argv[1]) if sys.argv[1:] else 9", str(port))
        sandbox, _ = run(tmp_path, "namespaces", inputs, code)
        said = json.loads((sandbox.working / "said.json").read_text())
        assert "connected" not in said["network"]
        socket.create_connection(("127.0.0.1", port), timeout=2).close()

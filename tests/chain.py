"""The tiny chain that several tests stand on: a folder like a clone's, and the verbs in order.

In: a new folder. Out: the folder after `CHAIN`. Example: `run_chain(tmp_path / "clone")`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ["--config", "configs/tiny.yaml"]
CHAIN = ("oof", "stack", "bundle", "kernel", "score")
ALL = """
import sys
from cspine_kit.cli import main
for verb in sys.argv[3:]:
    if main([verb, *sys.argv[1:3]]):
        sys.exit(f"cspine {verb} failed")
"""


def folder_of(tmp: Path) -> Path:
    """A working folder with the configs and the kernel scripts, as a clone has them."""
    (tmp / "configs").mkdir(parents=True)
    shutil.copy(ROOT / "configs" / "base.yaml", tmp / "configs")
    shutil.copy(ROOT / "tests" / "tiny.yaml", tmp / "configs")
    shutil.copytree(ROOT / "kernels", tmp / "kernels")
    return tmp


def run_chain(folder: Path) -> Path:
    """Run every verb in a new folder, all in one process: most of what they take is imports."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ALL, *CONFIG, *CHAIN]
    done = subprocess.run(
        command, cwd=folder_of(folder), env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{folder}: {done.stderr[-2000:]}")
    return folder

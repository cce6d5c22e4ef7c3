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


def folder_of(tmp: Path) -> Path:
    """A working folder with the configs and the kernel scripts, as a clone has them."""
    (tmp / "configs").mkdir(parents=True)
    shutil.copy(ROOT / "configs" / "base.yaml", tmp / "configs")
    shutil.copy(ROOT / "tests" / "tiny.yaml", tmp / "configs")
    shutil.copytree(ROOT / "kernels", tmp / "kernels")
    return tmp


def run_chain(folder: Path) -> Path:
    """Run every verb in a new folder, each in a process of its own as a user does."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    folder_of(folder)
    for verb in CHAIN:
        command = [sys.executable, "-m", "cspine_kit", verb, *CONFIG]
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"cspine {verb} failed in {folder}: {done.stderr[-2000:]}")
    return folder

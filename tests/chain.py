"""The tiny chain that several tests stand on: a folder like a clone's, and the verbs in order.

In: a new folder. Out: the folder after `CHAIN`. Example: `run_chain(tmp_path / "clone")`.
"""

import os
import shutil
from pathlib import Path

from cspine_kit.cli import main

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
    """Run every verb in a new folder; returns the folder."""
    before = Path.cwd()
    os.chdir(folder_of(folder))
    try:
        for verb in CHAIN:
            if main([verb, *CONFIG]):
                raise RuntimeError(f"cspine {verb} failed in {folder}")
    finally:
        os.chdir(before)
    return folder

"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest
from chain import run_chain
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real tables and the real CT; the test is skipped where there is none."""
    named = os.environ.get("CSPINE_REAL_DATA")
    for folder in [Path(named)] if named else [ROOT.parent / "shared" / "real"]:
        if folder.is_dir():
            return folder
    pytest.skip("no real data: set CSPINE_REAL_DATA to a folder with train.csv and head_neck_ct/")


@pytest.fixture(scope="session", name="chain")
def _chain(tmp_path_factory, worker_id) -> Path:
    """The folder after the whole tiny chain; read-only for tests, one for all test processes."""
    own = tmp_path_factory.getbasetemp()
    place = own if worker_id == "master" else own.parent
    folder, done = place / "chain" / "clone", place / "chain" / "done"
    done.parent.mkdir(exist_ok=True)
    with FileLock(place / "chain.lock"):
        if not done.exists():
            run_chain(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session", name="run")
def _run(chain) -> Path:
    """The same; a module may have a run of its own beside it."""
    return chain


@pytest.fixture(name="bundle")
def _bundle(run) -> Path:
    """The tiny chain's bundle."""
    return run / "oof" / "tiny" / "bundle"

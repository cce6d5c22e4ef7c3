"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real tables and the real CT; the test is skipped where there is none."""
    named = os.environ.get("CSPINE_REAL_DATA")
    for folder in [Path(named)] if named else [ROOT.parent / "shared" / "real"]:
        if folder.is_dir():
            return folder
    pytest.skip("no real data: set CSPINE_REAL_DATA to a folder with train.csv and head_neck_ct/")

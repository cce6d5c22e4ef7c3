"""Hundreds of volumes under a low limit of open files: training and prediction."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from run_folder import write_run

from cspine_kit.vision.names import WEIGHTS_FILE

pytestmark = pytest.mark.slow

LIMIT, LEARNED = 256, 300

RUN = """
import resource, sys
from pathlib import Path
from run_folder import tiny_config
from cspine_kit.core.paths import RunPaths
from cspine_kit.vision.oof.run import train_member
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
train_member(tiny_config(workers=int(sys.argv[3])), RunPaths(Path(sys.argv[1])), "a", 1)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_hundreds_of_volumes_needs_256_open_files(tmp_path, workers):
    """Both stages of fold 1 learn from 300 studies, and the first predicts all of them."""
    paths = write_run(tmp_path / "run", LEARNED + 2, first_fold=LEARNED)
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(paths.root), str(LIMIT), str(workers)],
        env={"PYTHONPATH": ":".join([here, *sys.path]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (paths.model("a", 1) / WEIGHTS_FILE).exists()
    for file in ("left_out.json", "failures.json"):
        assert json.loads((paths.model("vertebra", 1) / file).read_text()) == []
    assert json.loads((paths.model("a", 1) / "left_out.json").read_text()) == []
    rows = pd.read_parquet(paths.model("vertebra", 1) / "slices.parquet")
    assert rows["study_uid"].nunique() == LEARNED + 2

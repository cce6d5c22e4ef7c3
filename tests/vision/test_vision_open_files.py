"""Hundreds of volumes under a low limit of open files: training and prediction."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cspine_kit.data.volumes.mapped import MOST_OPEN, MappedVoxels, _mapped
from run_folder import write_run

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.tables import read_table
from cspine_kit.data.volumes.volume import open_volume
from cspine_kit.vision.names import WEIGHTS_FILE

LIMIT, LEARNED = 256, 300

RUN = """
import resource, sys
from pathlib import Path
from run_folder import tiny_config
from cspine_kit.core.paths import RunPaths
from cspine_kit.vision.oof import train_member
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


def test_few_maps_stay_open_and_show_the_same_voxels(tmp_path):
    expected = []
    for k in range(3 * MOST_OPEN):
        expected.append(np.full((2, 3, 4), k % 250, np.uint8))
        np.save(tmp_path / f"{k}.npy", expected[-1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    voxels = [MappedVoxels.of(tmp_path / f"{k}.npy") for k in range(3 * MOST_OPEN)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    for wanted, found in zip(expected, voxels, strict=True):
        assert found.shape == wanted.shape and len(found) == 2 and found.dtype == np.uint8
        assert np.array_equal(found, wanted) and np.array_equal(found[1, :, 1:3], wanted[1, :, 1:3])
    assert _mapped.cache_info().currsize == MOST_OPEN
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + MOST_OPEN


def test_a_cut_or_strange_volume_is_seen_when_it_is_opened(tmp_path):
    paths = write_run(tmp_path / "run", 1)
    row = read_table(paths.table("volumes"), "volumes").iloc[0]
    slices = read_table(paths.table("slices"), "slices")
    path = Path(row["path"])
    whole = path.read_bytes()
    assert open_volume(row, slices).voxels.shape == (21, 32, 32)
    for data, said in (
        (whole[:-1], "bytes instead of"),
        (whole[:40], "cannot be opened"),
        (b"", "cannot be opened"),
    ):
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=said):
            open_volume(row, slices)
    np.save(path, np.zeros((21, 32, 32), np.float32))
    with pytest.raises(ArtifactError, match="float32"):
        open_volume(row, slices)
    path.unlink()
    with pytest.raises(ArtifactError, match="No such file"):
        open_volume(row, slices)

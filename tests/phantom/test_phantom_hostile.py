"""Hostile studies: the manifest's promises hold for the kit's own reader."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import StudyError
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.phantom.competition.hostile import write_hostile
from cspine_kit.phantom.competition.misfits import ALL_DEFECTS

READABLE = [name for name, d in ALL_DEFECTS.items() if d.outcome == "predicted"]
LOST = [name for name, d in ALL_DEFECTS.items() if d.outcome == "fallback"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return write_hostile(tmp_path_factory.mktemp("hostile") / "c", seed=1, size_px=32, jobs=1)


@pytest.fixture(scope="module")
def manifest(hostile):
    return pd.read_csv(hostile.root / "manifest.csv").set_index("defect")


@pytest.fixture(scope="module")
def clean(hostile, manifest):
    uid = manifest.study_uid["clean"]
    return read_study(hostile.images("test", uid)).hu


@pytest.mark.parametrize("defect", READABLE)
def test_reader_recovers_what_the_manifest_promises(hostile, manifest, clean, defect):
    row = manifest.loc[defect]
    hu = read_study(hostile.images("test", row.study_uid)).hu
    assert len(hu) > 0
    if pd.notna(row.slices):
        assert len(hu) == row.slices
    if row.same_as_clean:
        np.testing.assert_array_equal(hu, clean)


@pytest.mark.parametrize("defect", LOST)
def test_lost_studies_raise_a_study_error_or_are_no_path(hostile, manifest, defect):
    uid = manifest.study_uid[defect]
    if defect == "path_uid":
        assert not (hostile.root / "test_images" / uid).exists()
        return
    with pytest.raises(StudyError):
        read_study(hostile.images("test", uid))


def test_tables_list_what_the_manifest_says(hostile, manifest):
    test = pd.read_csv(hostile.test_csv)
    counts = test.groupby("StudyInstanceUID").size()
    assert set(counts.index) == set(manifest.study_uid[manifest.listed])
    assert counts[manifest.study_uid["listed_twice"]] == 2 * len(TARGETS)
    assert counts[manifest.study_uid["clean"]] == len(TARGETS)
    assert manifest.study_uid["extra_folder"] not in counts.index
    assert pd.read_csv(hostile.sample_submission_csv).row_id.is_unique


@pytest.mark.slow
def test_same_seed_same_bytes(hostile, tmp_path):
    def digest(root):
        files = sorted(p for p in root.rglob("*") if p.is_file())
        return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).digest() for p in files}

    other = write_hostile(tmp_path / "c", seed=1, size_px=32, jobs=1)
    assert digest(other.root) == digest(hostile.root)

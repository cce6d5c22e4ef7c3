"""The compact volume, its cache, and that both are one."""

import numpy as np
import pandas as pd
import pytest
from scans import PITCH, neck_hu, write_scan

from cspine_kit.core.config import CacheConfig
from cspine_kit.core.errors import ArtifactError, DataError
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.tables import check_table
from cspine_kit.data import cache as cache_room
from cspine_kit.data.cache import build_cache
from cspine_kit.data.dicom import read_study
from cspine_kit.data.volumes import make_volume, neck_center, open_volume

CONFIG = CacheConfig(spacing_mm=2.0, field_mm=96.0, hu_low=-500, hu_high=1500)


@pytest.mark.parametrize("shift", [(0, 0), (8, -14), (-10, 15)])
def test_square_follows_the_spine(tmp_path, shift):
    write_scan(tmp_path, neck_hu(shift=shift))
    study = read_study(tmp_path)
    y, x = neck_center(study)
    assert abs(y - (96 * 0.53 + shift[0])) < 6 and abs(x - (48 + shift[1])) < 4
    volume = make_volume(study, CONFIG)
    assert volume.voxels.shape == (24, 48, 48) and volume.voxels.dtype == np.uint8
    bone = np.argwhere(volume.voxels[0] > 100)
    native = volume.offset_px + bone * np.array(volume.zoom)
    assert (study.hu[0][tuple(native.round().astype(int).T)] > 100).mean() > 0.9


def test_grey_values_and_spacing(tmp_path):
    hu = np.full((3, 60, 60), 500, dtype=np.int16)
    hu[1] = -2000
    hu[2] = 3000
    write_scan(tmp_path, hu)
    volume = make_volume(read_study(tmp_path), CONFIG)
    inside = volume.voxels[:, 20:28, 20:28]
    assert (inside[0] == 128).all() and (inside[1] == 0).all() and (inside[2] == 255).all()
    assert volume.spacing_mm[1] == pytest.approx(volume.zoom[0] * PITCH)
    assert volume.spacing_mm[1] == pytest.approx(2.0, rel=0.01)


def test_upsampling_and_air_only(tmp_path):
    write_scan(tmp_path, np.full((2, 40, 40), -1000, dtype=np.int16))
    fine = CONFIG.model_copy(update={"spacing_mm": 1.0, "field_mm": 64.0})
    volume = make_volume(read_study(tmp_path), fine)
    assert volume.voxels.shape == (2, 64, 64) and volume.voxels.max() == 0


@pytest.fixture
def competition(tmp_path):
    for i, uid in enumerate(["1.2.1", "1.2.2"]):
        write_scan(tmp_path / "comp" / "train_images" / uid, neck_hu(shift=(i, i)))
    return Competition(tmp_path / "comp")


def studies_of(*uids):
    return pd.DataFrame(
        {"study_uid": uids, "split": "train", "n_slices": 24, "rows": 96, "cols": 96}
    )


def test_cache_equals_kernel_and_is_kept(tmp_path, competition, monkeypatch):
    paths = RunPaths(tmp_path / "run")
    studies = studies_of("1.2.1", "1.2.2", "1.2.9")
    volumes, failures = build_cache(studies, competition, CONFIG, paths, jobs=1)
    assert list(failures) == ["1.2.9"] and len(volumes) == 2
    checked = check_table(volumes, "volumes")
    study = read_study(competition.images("train", "1.2.2"), "1.2.2")
    live = make_volume(study, CONFIG)
    slices = pd.DataFrame({"slice_idx": range(24), "z_mm": study.z_mm})
    cached = open_volume(checked.set_index("study_uid").loc["1.2.2"], slices)
    assert np.array_equal(cached.voxels, live.voxels) and cached.study_uid == "1.2.2"
    assert cached.offset_px == live.offset_px and cached.zoom == live.zoom
    assert cached.spacing_mm == live.spacing_mm and np.array_equal(cached.z_mm, live.z_mm)

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(cache_room, "read_study", never)
    again, _ = build_cache(studies.iloc[:2], competition, CONFIG, paths, jobs=1)
    pd.testing.assert_frame_equal(again, volumes)
    _, failures = build_cache(
        studies.iloc[:2],
        competition,
        CONFIG.model_copy(update={"hu_low": -400.0}),
        paths,
        jobs=1,
    )
    assert len(failures) == 2 and "read again" in failures["1.2.1"]


def test_damaged_cache_and_full_disk_are_errors(tmp_path, competition, monkeypatch):
    paths = RunPaths(tmp_path / "run")
    volumes, _ = build_cache(studies_of("1.2.1"), competition, CONFIG, paths, jobs=1)
    slices = pd.DataFrame({"slice_idx": range(23), "z_mm": -np.arange(23.0)})
    with pytest.raises(ArtifactError, match="the tables say"):
        open_volume(volumes.iloc[0], slices)
    (paths.cache / "1.2.1.npy").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="cannot be opened"):
        open_volume(volumes.iloc[0], slices)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(cache_room.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="GB are free"):
        build_cache(studies_of("1.2.2"), competition, CONFIG, paths, jobs=1)


def test_real_ct_spine_inside(real_data):
    """A 511 mm radiotherapy field with a table: the square still holds the spine."""
    study = read_study(real_data / "head_neck_ct")
    y, x = neck_center(study)
    # The dens, C4 and C6 as seen on the frames, native pixels.
    assert abs(x - 250) < 12 and abs(y - 241) < 25

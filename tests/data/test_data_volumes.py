"""The compact volume, its cache, and that both are one."""

import cv2
import numpy as np
import pandas as pd
import pytest
from scans import PITCH, STEP, neck_hu, write_scan

from cspine_kit.core.config import CacheConfig
from cspine_kit.core.errors import ArtifactError, DataError
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.tables import check_table
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.data.volumes import cache as cache_room
from cspine_kit.data.volumes.cache import build_cache
from cspine_kit.data.volumes.neck import BEHIND_MM, Survey
from cspine_kit.data.volumes.volume import open_volume, read_volume

CONFIG = CacheConfig(spacing_mm=2.0, field_mm=96.0, hu_low=-500, hu_high=1500)


def neck_center(study):
    survey = Survey(study)
    return survey.center({z: survey.coarse(study.hu[z]) for z in survey.slices})


@pytest.mark.parametrize("shift", [(0, 0), (8, -14), (-10, 15)])
def test_square_follows_the_spine(tmp_path, shift):
    write_scan(tmp_path, neck_hu(shift=shift))
    study = read_study(tmp_path)
    y, x = neck_center(study)
    behind = BEHIND_MM / PITCH
    assert abs(y - (96 * 0.53 + shift[0] + behind)) < 6 and abs(x - (48 + shift[1])) < 4
    volume, _ = read_volume(tmp_path, CONFIG)
    assert volume.voxels.shape == (24, 48, 48) and volume.voxels.dtype == np.uint8
    bone = np.argwhere(volume.voxels[0] > 100)
    native = volume.offset_px + bone * np.array(volume.zoom)
    assert (study.hu[0][tuple(native.round().astype(int).T)] > 100).mean() > 0.9


def test_grey_values_and_spacing(tmp_path):
    hu = np.full((3, 60, 60), 500, dtype=np.int16)
    hu[1] = -2000
    hu[2] = 3000
    write_scan(tmp_path, hu)
    volume, _ = read_volume(tmp_path, CONFIG)
    inside = volume.voxels[:, 20:28, 20:28]
    assert (inside[0] == 128).all() and (inside[1] == 0).all() and (inside[2] == 255).all()
    assert volume.spacing_mm[1] == pytest.approx(volume.zoom[0] * PITCH)
    assert volume.spacing_mm[1] == pytest.approx(2.0, rel=0.01)


def test_upsampling_and_air_only(tmp_path):
    write_scan(tmp_path, np.full((2, 40, 40), -1000, dtype=np.int16))
    fine = CONFIG.model_copy(update={"spacing_mm": 1.0, "field_mm": 64.0})
    volume, _ = read_volume(tmp_path, fine)
    assert volume.voxels.shape == (2, 64, 64) and volume.voxels.max() == 0


@pytest.fixture
def competition(tmp_path):
    for i, uid in enumerate(["1.2.1", "1.2.2"]):
        write_scan(tmp_path / "comp" / "train_images" / uid, neck_hu(shift=(i, i)))
    return Competition(tmp_path / "comp")


def slices_of(*uids):
    z_mm = [100.0 - STEP * z for z in range(24)]
    return pd.concat(
        pd.DataFrame({"study_uid": uid, "slice_idx": range(24), "z_mm": z_mm}) for uid in uids
    )


def studies_of(*uids):
    return pd.DataFrame(
        {"study_uid": uids, "split": "train", "n_slices": 24, "rows": 96, "cols": 96}
    )


def test_cache_equals_kernel_and_is_kept(tmp_path, competition, monkeypatch):
    paths = RunPaths(tmp_path / "run")
    studies, every = studies_of("1.2.1", "1.2.2", "1.2.9"), slices_of("1.2.1", "1.2.2", "1.2.9")
    volumes, failures = build_cache(studies, every, competition, CONFIG, paths, jobs=1)
    assert list(failures) == ["1.2.9"] and len(volumes) == 2
    checked = check_table(volumes, "volumes")
    live, geometry = read_volume(competition.images("train", "1.2.2"), CONFIG, "1.2.2")
    slices = pd.DataFrame({"slice_idx": range(24), "z_mm": geometry.z_mm})
    cached = open_volume(checked.set_index("study_uid").loc["1.2.2"], slices)
    assert np.array_equal(cached.voxels, live.voxels) and cached.study_uid == "1.2.2"
    assert cached.offset_px == live.offset_px and cached.zoom == live.zoom
    assert cached.spacing_mm == live.spacing_mm and np.array_equal(cached.z_mm, live.z_mm)

    def never(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr(cache_room, "read_volume", never)
    again, _ = build_cache(studies.iloc[:2], every, competition, CONFIG, paths, jobs=1)
    pd.testing.assert_frame_equal(again, volumes)
    _, failures = build_cache(
        studies.iloc[:2],
        every,
        competition,
        CONFIG.model_copy(update={"hu_low": -400.0}),
        paths,
        jobs=1,
    )
    assert len(failures) == 2 and "read again" in failures["1.2.1"]


@pytest.mark.parametrize("shift", [(0, 0), (-30, 25)])
@pytest.mark.parametrize("spacing", [1.0, 2.0, 2.6, 4.0])
def test_a_volume_is_the_study_windowed_cut_and_resampled(tmp_path, shift, spacing):
    """Against plain float arithmetic on the whole study, at every ratio of the two grids."""
    write_scan(tmp_path, neck_hu(shift=shift), reverse=True)
    config = CONFIG.model_copy(update={"spacing_mm": spacing})
    volume, geometry = read_volume(tmp_path, config)
    assert geometry.reversed and geometry.problems == ()
    share = (np.clip(read_study(tmp_path).hu, -500, 1500) + 500.0) / 2000.0
    side, zoom = config.side_px, volume.zoom[0]
    span = round(side * zoom)
    y, x = (round(offset - (zoom - 1) / 2) for offset in volume.offset_px)
    square = np.pad(share, ((0, 0), (99, 99), (99, 99)))[:, 99 + y :, 99 + x :][:, :span, :span]
    method = cv2.INTER_AREA if zoom > 1.5 else cv2.INTER_LINEAR
    expected = [255 * cv2.resize(plane, (side, side), interpolation=method) for plane in square]
    # Both are rounded once more here: after the window, and to whole grey values.
    assert np.abs(volume.voxels - np.array(expected)).max() <= 1.1


def test_an_undecodable_slice_is_shown_by_its_neighbor(tmp_path, competition):
    folder = competition.images("train", "1.2.1")
    whole, _ = read_volume(folder, CONFIG)
    path = folder / "11.dcm"
    path.write_bytes(path.read_bytes()[:-5])
    paths = RunPaths(tmp_path / "run")
    slices = slices_of("1.2.1")
    volumes, failures = build_cache(studies_of("1.2.1"), slices, competition, CONFIG, paths, jobs=1)
    assert not failures
    cached = open_volume(volumes.iloc[0], slices)
    kept = np.delete(np.arange(24), 10)
    assert np.array_equal(cached.voxels[kept], whole.voxels[kept])
    assert any(np.array_equal(cached.voxels[10], whole.voxels[z]) for z in (9, 11))
    volume, geometry = read_volume(folder, CONFIG)
    assert len(volume.z_mm) == 23
    assert geometry.problems == ("other_study", "undecodable_pixels", "gap")


def test_damaged_cache_and_full_disk_are_errors(tmp_path, competition, monkeypatch):
    paths = RunPaths(tmp_path / "run")
    volumes, _ = build_cache(
        studies_of("1.2.1"), slices_of("1.2.1"), competition, CONFIG, paths, jobs=1
    )
    slices = pd.DataFrame({"slice_idx": range(23), "z_mm": -np.arange(23.0)})
    with pytest.raises(ArtifactError, match="the tables say"):
        open_volume(volumes.iloc[0], slices)
    (paths.cache / "1.2.1.npy").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="cannot be opened"):
        open_volume(volumes.iloc[0], slices)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(cache_room.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="GB are free"):
        build_cache(studies_of("1.2.2"), slices_of("1.2.2"), competition, CONFIG, paths, jobs=1)


def test_real_ct_spine_inside(real_data):
    """A 511 mm radiotherapy field with a table: the square still holds the spine."""
    study = read_study(real_data / "head_neck_ct")
    y, x = neck_center(study)
    # From the front of the dens to the tip of C7 as seen on the frames, native pixels of 1 mm.
    assert abs(x - 250) < 8 and abs(y - (214 + 300) / 2) < 8

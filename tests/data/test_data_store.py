"""Volumes in files: lossless, slice by slice, few files open, and damage is told."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cspine_kit.core.errors import ArtifactError
from cspine_kit.data.volumes import store
from cspine_kit.data.volumes.curve import HuCurve
from cspine_kit.data.volumes.lattice import Lattice
from cspine_kit.data.volumes.store import in_memory, mask_path, open_volume, write_volume
from cspine_kit.data.volumes.volume import Held, Volume

CURVE = HuCurve(((-1000, 0), (400, 150), (2500, 255)))


def some_volume(uid: str = "1.2", nz: int = 12) -> Volume:
    rng = np.random.default_rng(nz)
    voxels = rng.integers(0, 60, (nz, 30, 20)).astype(np.uint8)
    return Volume(
        study_uid=uid,
        voxels=Held(voxels),
        z_mm=7.3 - np.cumsum(rng.uniform(1, 2, nz)),
        step_mm=1.5,
        lattice=Lattice.of((50, 60), (0.43, 0.41), 0.3),
        corner=(-3, 17),
        curve=CURVE,
        first_slice=4,
        group=2,
    )


def copy_of(volume: Volume) -> Volume:
    """As another process gets it."""
    return pickle.loads(pickle.dumps(volume))  # noqa: S301 - made here


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("masked", [False, True])
def test_a_stored_volume_is_the_same(tmp_path, masked):
    volume, path = some_volume(), tmp_path / "1.2.arrow"
    if masked:
        volume = replace(volume, mask=Held(volume.voxels.array % 9))
    write_volume(volume, path, {"recipe": "r"})
    again, facts = open_volume(path)
    assert facts["recipe"] == "r" and len(facts["checksum"]) == 64
    assert bool(facts["mask_checksum"]) == masked == mask_path(path).exists()
    for name in ("study_uid", "spacing_mm", "lattice", "corner", "curve", "first_slice", "group"):
        assert getattr(again, name) == getattr(volume, name)
    assert np.array_equal(again.z_mm, volume.z_mm)
    assert again.voxels.shape == (12, 30, 20)
    assert np.array_equal(again.voxels.slices(range(12)), volume.voxels.array)
    rows, cols = slice(3, 9), slice(0, 5)
    part = again.voxels.slices([5, 5, 0], rows, cols)
    assert np.array_equal(part, volume.voxels.array[[5, 5, 0], rows, cols])
    assert np.array_equal(in_memory(again).voxels.array, volume.voxels.array)
    if masked:
        assert np.array_equal(again.mask.slices([2]), volume.mask.array[[2]])
    else:
        assert again.mask is None
    copy = copy_of(again)
    assert np.array_equal(copy.voxels.slices([1]), volume.voxels.array[[1]])


def test_it_takes_less_room_and_its_checksum_is_of_the_voxels(tmp_path):
    volume = some_volume()
    write_volume(volume, tmp_path / "a.arrow", {"recipe": "r"})
    write_volume(replace(volume, z_mm=volume.z_mm - 1), tmp_path / "b.arrow", {"recipe": "s"})
    changed = volume.voxels.array.copy()
    changed[3, 2, 1] ^= 1
    write_volume(replace(volume, voxels=Held(changed)), tmp_path / "c.arrow", {"recipe": "r"})
    sums = [open_volume(tmp_path / f"{name}.arrow")[1]["checksum"] for name in "abc"]
    assert sums[0] == sums[1] != sums[2]
    even = replace(volume, voxels=Held(np.zeros((300, 64, 64), np.uint8)))
    write_volume(replace(even, z_mm=-np.arange(300.0)), tmp_path / "d.arrow", {})
    assert (tmp_path / "d.arrow").stat().st_size < 300 * 64 * 64 / 4


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "text", "no mask"])
def test_damage_is_told(tmp_path, damage):
    volume, path = some_volume(), tmp_path / "1.2.arrow"
    write_volume(replace(volume, mask=volume.voxels), path, {})
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "no mask":
        mask_path(path).unlink()
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-50], "text": b"voxels" * 99}[damage])
    with pytest.raises(ArtifactError, match=r"cannot be opened.*cspine cache"):
        open_volume(path)


def test_a_file_that_is_made_again_is_opened_again(tmp_path):
    volume, path = some_volume(), tmp_path / "1.2.arrow"
    write_volume(volume, path, {})
    stored = open_volume(path)[0]
    assert stored.voxels.slices([3]).max() > 0
    write_volume(replace(volume, voxels=Held(0 * volume.voxels.array)), path, {})
    assert stored.voxels.slices([3]).max() == 0


def test_few_files_are_open(tmp_path):
    """More volumes than a process keeps open, all looked at."""
    store._opened.cache_clear()
    before = open_files()
    volumes = []
    for k in range(160):
        path = tmp_path / f"{k}.arrow"
        write_volume(some_volume(nz=3 + k % 4), path, {})
        volumes.append(open_volume(path)[0])
    assert open_files() <= before + 2
    for volume in volumes:
        assert volume.voxels.slices([1]).shape == (1, 30, 20)
    held = open_files() - before
    maps = Path("/proc/self/maps").read_text().count(str(tmp_path))
    assert held <= 130 and maps <= 130

"""Studies read ahead in processes: every study answers once, whatever a process does."""

import os
import signal
import threading

import numpy as np
import pytest

from cspine_kit.core.config import CacheConfig, PhantomConfig
from cspine_kit.data.volumes.volume import read_volume
from cspine_kit.infer import reading
from cspine_kit.infer.reading import ReadAhead
from cspine_kit.phantom.competition.write import write_competition

CACHE = CacheConfig(spacing_mm=3.0, field_mm=96, hu_low=-500, hu_high=1500)


@pytest.fixture(scope="module", name="folders")
def _folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("reading") / "phantom"
    spec = PhantomConfig(studies=1, test_studies=5, size_px=64, difficulty="easy", seed=3)
    images = write_competition(out, spec, jobs=1).root / "test_images"
    return {folder.name: folder for folder in sorted(images.iterdir())}


def test_every_study_comes_once_as_it_is_read_here(folders, tmp_path):
    with ReadAhead(folders, CACHE, tmp_path, readers=2) as readings:
        seen = {}
        for found in readings:
            seen[found.study_uid] = np.array(found.open().voxels)
            found.close()
    assert set(seen) == set(folders)
    assert not list(tmp_path.iterdir())
    for uid, voxels in seen.items():
        volume, _ = read_volume(folders[uid], CACHE, uid)
        assert np.array_equal(volume.voxels, voxels)


def test_a_study_that_cannot_be_read_says_why(folders, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "1.dcm").write_bytes(b"nothing")
    with ReadAhead({"1.2": broken, **folders}, CACHE, tmp_path, readers=1) as readings:
        found = {r.study_uid: r for r in readings}
    assert "1.dcm" in found["1.2"].cause
    assert all(found[uid].cause is None for uid in folders)


def test_a_killed_process_costs_nothing_but_time(folders, tmp_path, monkeypatch):
    started = []
    process = reading._Process

    class Noted(process):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            started.append(self.process.pid)

    monkeypatch.setattr(reading, "_Process", Noted)
    with ReadAhead(folders, CACHE, tmp_path, readers=1) as readings:
        for count, found in enumerate(readings):
            assert found.cause is None, found.cause
            if count == 0:
                os.kill(started[0], signal.SIGKILL)
    assert count == len(folders) - 1
    assert len(started) == 2


def test_a_study_that_kills_every_process_is_given_up(folders, tmp_path, monkeypatch):
    deadly = next(iter(folders))
    read = reading._Process.read

    def dies(self, uid, folder):
        if uid == deadly:
            self.process.kill()
            self.process.join()
        return read(self, uid, folder)

    monkeypatch.setattr(reading._Process, "read", dies)
    with ReadAhead(folders, CACHE, tmp_path, readers=1) as readings:
        found = {r.study_uid: r for r in readings}
    assert "died" in found[deadly].cause
    assert all(found[uid].cause is None for uid in folders if uid != deadly)


def test_a_process_that_hangs_is_replaced(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PATIENCE_S", 0.0)
    some = dict(list(folders.items())[:1])
    with ReadAhead(some, CACHE, tmp_path, readers=1) as readings:
        (found,) = readings
    assert "no answer" in found.cause


def test_only_a_few_studies_wait(folders, tmp_path):
    with ReadAhead(folders, CACHE, tmp_path, readers=1) as readings:
        stream = iter(readings)
        next(stream)
        threading.Event().wait(3.0)
        assert len(list(tmp_path.glob("*.npy"))) <= 3
        assert sum(1 for _ in stream) == len(folders) - 1

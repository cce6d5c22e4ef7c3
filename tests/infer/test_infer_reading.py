"""Studies read ahead in processes: every study answers once, whatever a process does."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from cspine_kit.core.config import FineConfig, GridConfig, PhantomConfig, VolumesConfig
from cspine_kit.data.volumes.read import read_both
from cspine_kit.data.volumes.store import every_slice
from cspine_kit.infer.studies import reading
from cspine_kit.infer.studies.reading import ReadAhead, Reading, reader_memory
from cspine_kit.phantom.competition.write import write_competition

PATIENCE_S = 60.0


def all_of(readings: ReadAhead, count: int) -> Iterator[Reading]:
    """The next `count` readings, as they come."""
    for _ in range(count):
        found = readings.take(PATIENCE_S)
        assert found is not None, "nothing was read"
        yield found


VOLUMES = VolumesConfig(
    curve=((-1000, 0), (1500, 255)),
    coarse=GridConfig(spacing_mm=3.0, field_mm=96),
    fine=FineConfig(spacing_mm=2.0, field_mm=60, margin_mm=5),
)


@pytest.fixture(scope="module", name="folders")
def _folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("reading") / "phantom"
    spec = PhantomConfig(studies=1, test_studies=5, size_px=64, difficulty="easy", seed=3)
    images = write_competition(out, spec, jobs=1).root / "test_images"
    return {folder.name: folder for folder in sorted(images.iterdir())}


def both(volumes):
    return [every_slice(volume.voxels) for volume in (volumes.coarse, volumes.fine)]


def test_every_study_comes_once_as_it_is_read_here(folders, tmp_path):
    with ReadAhead(folders, VOLUMES, tmp_path, readers=2) as readings:
        seen = {}
        for found in all_of(readings, len(folders)):
            seen[found.study_uid] = both(found.open())
            found.close()
    assert set(seen) == set(folders)
    assert not list(tmp_path.iterdir())
    for uid, voxels in seen.items():
        volumes, _ = read_both(folders[uid], VOLUMES, uid)
        assert all(np.array_equal(a, b) for a, b in zip(both(volumes), voxels, strict=True))


def test_a_study_that_cannot_be_read_says_why(folders, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "1.dcm").write_bytes(b"nothing")
    with ReadAhead({"1.2": broken, **folders}, VOLUMES, tmp_path, readers=1) as readings:
        found = {r.study_uid: r for r in all_of(readings, len(folders) + 1)}
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
    with ReadAhead(folders, VOLUMES, tmp_path, readers=1) as readings:
        for count, found in enumerate(all_of(readings, len(folders))):
            assert found.cause is None, found.cause
            if count == 0:
                os.kill(started[0], signal.SIGKILL)
    assert count == len(folders) - 1
    assert len(started) == 2


def test_a_study_that_kills_every_process_is_given_up(folders, tmp_path, monkeypatch):
    deadly = next(iter(folders))
    read = reading._Process.read

    order = []

    def dies(self, uid, folder, patience_s):
        order.append(uid)
        if uid == deadly:
            self.process.kill()
            self.process.join()
        return read(self, uid, folder, patience_s)

    monkeypatch.setattr(reading._Process, "read", dies)
    with ReadAhead(folders, VOLUMES, tmp_path, readers=1) as readings:
        found = {r.study_uid: r for r in all_of(readings, len(folders))}
    assert "died" in found[deadly].cause
    assert all(found[uid].cause is None for uid in folders if uid != deadly)
    assert order[0] == order[-1] == deadly, "the second try comes after all others"


def test_a_process_that_hangs_is_replaced(folders, tmp_path):
    some = dict(list(folders.items())[:1])
    with ReadAhead(some, VOLUMES, tmp_path, readers=1, patience_s=0.0) as readings:
        (found,) = all_of(readings, 1)
    assert "no answer" in found.cause
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_reader_has_its_share_of_memory_and_no_more(folders, tmp_path):
    assert reader_memory(1) >= reader_memory(64) == 2 << 30
    code = (
        "from cspine_kit.infer.studies.reading import _limit_memory; _limit_memory(256 << 20)\n"
        "bytearray(64 << 20)\n"
        "try:\n    bytearray(512 << 20)\nexcept MemoryError:\n    print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr
    with ReadAhead(folders, VOLUMES, tmp_path, readers=1, memory=4 << 20) as readings:
        assert all(found.cause for found in all_of(readings, len(folders)))


def test_after_the_stop_nothing_is_read_and_nobody_waits(folders, tmp_path, monkeypatch):
    fifo = tmp_path / "hangs"
    fifo.mkdir()
    os.mkfifo(fifo / "1.dcm")
    taken = []
    read = reading._Process.read

    def noted(self, uid, folder, patience_s):
        taken.append(uid)
        if uid == "9.9":
            self.pipe.poll(patience_s)  # nobody ever answers
        return read(self, uid, folder, patience_s)

    monkeypatch.setattr(reading._Process, "read", noted)
    with ReadAhead({"9.9": fifo, **folders}, VOLUMES, tmp_path, readers=1) as readings:
        while not taken:
            time.sleep(0.01)
        start = time.monotonic()
        readings.stop()
        assert readings.take(0.1) is None
    assert time.monotonic() - start < 10.0
    assert taken == ["9.9"]


def test_only_a_few_studies_wait(folders, tmp_path):
    with ReadAhead(folders, VOLUMES, tmp_path, readers=1) as readings:
        stream = all_of(readings, len(folders))
        next(stream)
        threading.Event().wait(3.0)
        assert len(list(tmp_path.glob("*.npy"))) <= 6  # two of each
        assert sum(1 for _ in stream) == len(folders) - 1

"""Studies read ahead of the networks, each once, in processes of their own.

In: study folders. Out: `Reading`s in the order in which they are done. Example::

    with ReadAhead({uid: folder}, config.volumes, Path(), readers=1) as readings:
        while (reading := readings.take(timeout_s=1.0)) is None:
            pass                                     # not yet
        volumes = reading.open()                     # memory-mapped, or an error with reading.cause
        reading.close()

A process that dies, hangs or wants more memory than its share costs one study at most: it is
replaced, and the study is tried once more after all others. Volumes wait as files below `scratch`,
a few at a time, so that memory does not grow with the number of studies. After `stop` nothing more
is read.
"""

import contextlib
import logging
import multiprocessing
import os
import queue
import resource
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from cspine_kit.core.config import VolumesConfig
from cspine_kit.core.errors import StudyError
from cspine_kit.data.volumes.curve import Grey
from cspine_kit.data.volumes.read import read_both
from cspine_kit.data.volumes.store import every_slice
from cspine_kit.data.volumes.volume import Held, Volumes
from cspine_kit.infer.answer import cause_of
from cspine_kit.infer.patience import Patience

log = logging.getLogger(__name__)

TRIES = 2
START_S = 180.0
"""Imports take seconds; a busy network mount stretches them."""

END_S = 5.0
"""A killed process that stands in a read of a dead disk cannot end; it is left behind."""

MEMORY_SHARE = 0.5
LEAST_MEMORY = 2 << 30
"""All readers together may take half of the machine's memory, each at least 2 GiB."""


def reader_memory(readers: int) -> int:
    """Bytes that one of so many readers may take."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(LEAST_MEMORY, round(MEMORY_SHARE * installed / readers))


@dataclass(frozen=True)
class Reading:
    """One study as read: its volumes without voxels and the files that hold them, or a cause."""

    study_uid: str
    seconds: float
    volumes: Volumes | None = None
    files: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()
    cause: str | None = None
    died: bool = False
    """True where not the study but its process failed: it may be tried again."""

    def open(self) -> Volumes:
        """The volumes, memory-mapped.

        Raises:
            StudyError: they were not read.
        """
        if self.volumes is None:
            raise StudyError(self.study_uid, self.cause or "it was not read")
        coarse, fine = (
            replace(volume, voxels=Held(np.load(file, mmap_mode="r", allow_pickle=False)))
            for volume, file in zip(
                (self.volumes.coarse, self.volumes.fine), self.files, strict=True
            )
        )
        return Volumes(coarse, fine)

    def close(self) -> None:
        """Delete the files of voxels."""
        for file in self.files:
            file.unlink(missing_ok=True)


def _files(scratch: Path, uid: str) -> tuple[Path, Path]:
    """Where the voxels of a study wait: coarse, fine."""
    return scratch / f"{uid}.coarse.npy", scratch / f"{uid}.fine.npy"


def _read(uid: str, folder: Path, config: VolumesConfig, scratch: Path) -> Reading:
    start = time.monotonic()
    coarse_file, fine_file = _files(scratch, uid)

    def allocate(shape: tuple[int, int, int]) -> Grey:
        # Written where it waits: the larger volume is never held beside its copy.
        memory: Grey = np.lib.format.open_memmap(fine_file, "w+", np.uint8, shape)
        return memory

    try:
        volumes, geometry = read_both(folder, config, uid, threads=1, allocate=allocate)
        np.save(coarse_file, every_slice(volumes.coarse.voxels), allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - whatever it is, it costs this study alone
        for file in (coarse_file, fine_file):
            file.unlink(missing_ok=True)
        return Reading(uid, time.monotonic() - start, cause=cause_of(error))
    empty = Held(np.empty((0, 0, 0), np.uint8))
    bare = Volumes(replace(volumes.coarse, voxels=empty), replace(volumes.fine, voxels=empty))
    seconds = time.monotonic() - start
    return Reading(uid, seconds, bare, (coarse_file, fine_file), geometry.problems)


def _limit_memory(more: int) -> None:
    """This process and its children may map `more` bytes beyond what it maps now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + more
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _serve(pipe: Connection, config: VolumesConfig, scratch: Path, memory: int) -> None:
    """A reading process: answer studies until the pipe closes."""
    _limit_memory(memory)
    pipe.send(None)  # imports are done
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            uid, folder = pipe.recv()
            pipe.send(_read(uid, folder, config, scratch))


class _Process:
    """One reading process and its pipe."""

    def __init__(self, config: VolumesConfig, scratch: Path, memory: int) -> None:
        # Forked copies of a process that holds networks and their threads are not safe.
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(other, config, scratch, memory), daemon=True
        )
        self.process.start()
        other.close()

    def wait_started(self) -> None:
        """Wait for its imports: they are no part of the time that a study may take.

        Raises:
            ChildProcessError: it died, or does not start.
        """
        try:
            if not self.pipe.poll(START_S):
                raise ChildProcessError(f"a reading process did not start in {START_S:.0f} s")
            self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise ChildProcessError("a reading process died as it started") from error

    def read(self, uid: str, folder: Path, patience_s: float) -> Reading:
        """Read one study.

        Raises:
            ChildProcessError: the process died or hangs.
        """
        try:
            self.pipe.send((uid, folder))
            if not self.pipe.poll(patience_s):
                raise ChildProcessError(f"no answer in {patience_s:.0f} s")
            reading: Reading = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise ChildProcessError(f"the reading process died ({cause_of(error)})") from error
        return reading

    def kill(self) -> None:
        """End the process; whoever waits for its answer hears that it died."""
        self.process.kill()

    def end(self) -> None:
        """Close the pipe and the process."""
        self.pipe.close()
        self.process.kill()
        self.process.join(END_S)


class ReadAhead:
    """Reads studies in `readers` processes; at most twice as many are being read or wait, beside
    those that were taken.

    Several threads may take at once, each study goes to one of them.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        config: VolumesConfig,
        scratch: Path,
        *,
        readers: int,
        patience_s: float = Patience.read_s,
        memory: int | None = None,
    ) -> None:
        self._config, self._scratch, self._patience_s = config, scratch, patience_s
        self._memory = memory or reader_memory(readers)
        self._todo: queue.SimpleQueue[tuple[str, Path, int]] = queue.SimpleQueue()
        for uid, folder in folders.items():
            self._todo.put((uid, folder, 1))
        self._done: queue.Queue[Reading] = queue.Queue()
        self._room = threading.Semaphore(2 * readers)
        self._ended = threading.Event()
        self._processes: dict[int, _Process] = {}
        self._threads = [
            threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(readers)
        ]

    def __enter__(self) -> "ReadAhead":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        end_s = time.monotonic() + END_S
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))

    def stop(self) -> None:
        """Read no further study, and give up those that are being read."""
        self._ended.set()
        self._room.release(len(self._threads))
        for process in list(self._processes.values()):
            process.kill()

    def take(self, timeout_s: float) -> Reading | None:
        """The next study that was read; None where there is none within `timeout_s` seconds."""
        try:
            reading = self._done.get(timeout=timeout_s)
        except queue.Empty:
            return None
        self._room.release()
        return reading

    def _work(self, place: int) -> None:
        """One thread that keeps one process busy."""
        while True:
            self._room.acquire()
            try:
                uid, folder, attempt = self._todo.get_nowait()
            except queue.Empty:
                break
            if self._ended.is_set():
                break
            reading = self._try(place, uid, folder)
            if reading.died and attempt < TRIES and not self._ended.is_set():
                log.warning("study %s, try %d: %s", uid, attempt, reading.cause)
                self._todo.put((uid, folder, attempt + 1))
                self._room.release()
            elif not self._ended.is_set():
                self._done.put(reading)
        process = self._processes.pop(place, None)
        if process is not None:
            process.end()

    def _try(self, place: int, uid: str, folder: Path) -> Reading:
        start = time.monotonic()
        try:
            if place not in self._processes:
                self._processes[place] = _Process(self._config, self._scratch, self._memory)
                self._processes[place].wait_started()
            return self._processes[place].read(uid, folder, self._patience_s)
        except Exception as error:  # noqa: BLE001 - the others must still be read
            process = self._processes.pop(place, None)
            if process is not None:
                process.end()
            for file in _files(self._scratch, uid):
                file.unlink(missing_ok=True)
            return Reading(uid, time.monotonic() - start, cause=cause_of(error), died=True)

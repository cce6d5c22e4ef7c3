"""Studies read ahead of the networks, each once, in processes of their own.

In: study folders. Out: `Reading`s in the order in which they are done. Example::

    with ReadAhead({uid: folder}, config.cache, Path(), readers=1) as readings:
        for reading in readings:
            volume = reading.open()              # memory-mapped, or an error with reading.cause
            reading.close()

A process that dies or hangs costs one study at most: it is replaced, and the study is tried once
more. Volumes wait as files below `scratch`, a few at a time, so that memory does not grow with the
number of studies; a reading process holds the one volume that it makes.
"""

import contextlib
import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from cspine_kit.core.config import CacheConfig
from cspine_kit.core.errors import CSpineError, StudyError
from cspine_kit.data.volumes.volume import Volume, read_volume

log = logging.getLogger(__name__)

PATIENCE_S = 600.0
"""A study of thousands of compressed slices needs about a minute."""

TRIES = 2


@dataclass(frozen=True)
class Reading:
    """One study as read: its volume without voxels and the file that holds them, or a cause."""

    study_uid: str
    seconds: float
    volume: Volume | None = None
    file: Path | None = None
    problems: tuple[str, ...] = ()
    cause: str | None = None

    def open(self) -> Volume:
        """The volume, memory-mapped.

        Raises:
            StudyError: it was not read.
        """
        if self.volume is None or self.file is None:
            raise StudyError(self.study_uid, self.cause or "it was not read")
        return replace(self.volume, voxels=np.load(self.file, mmap_mode="r", allow_pickle=False))

    def close(self) -> None:
        """Delete the file of voxels."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def cause_of(error: BaseException) -> str:
    """One line that says what happened."""
    return str(error) if isinstance(error, CSpineError) else f"{type(error).__name__}: {error}"


def _read(uid: str, folder: Path, config: CacheConfig, scratch: Path) -> Reading:
    start = time.monotonic()
    try:
        volume, geometry = read_volume(folder, config, uid, threads=1)
        file = scratch / f"{uid}.npy"
        np.save(file, volume.voxels, allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - whatever it is, it costs this study alone
        return Reading(uid, time.monotonic() - start, cause=cause_of(error))
    empty = np.empty((0, 0, 0), np.uint8)
    seconds = time.monotonic() - start
    return Reading(uid, seconds, replace(volume, voxels=empty), file, geometry.problems)


def _serve(pipe: Connection, config: CacheConfig, scratch: Path) -> None:
    """A reading process: answer studies until the pipe closes."""
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            uid, folder = pipe.recv()
            pipe.send(_read(uid, folder, config, scratch))


class _Process:
    """One reading process and its pipe."""

    def __init__(self, config: CacheConfig, scratch: Path) -> None:
        # Forked copies of a process that holds networks and their threads are not safe.
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, config, scratch), daemon=True)
        self.process.start()
        other.close()

    def read(self, uid: str, folder: Path) -> Reading:
        """Read one study.

        Raises:
            ChildProcessError: the process died or hangs.
        """
        try:
            self.pipe.send((uid, folder))
            if not self.pipe.poll(PATIENCE_S):
                raise ChildProcessError(f"no answer in {PATIENCE_S:.0f} s")
            reading: Reading = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise ChildProcessError(f"the reading process died ({cause_of(error)})") from error
        return reading

    def end(self) -> None:
        """Close the pipe and the process."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


class ReadAhead:
    """Reads studies in `readers` processes; at most twice as many are being read, wait or are used.

    Iterate to get them; several threads may iterate at once, each study goes to one of them.
    """

    def __init__(
        self, folders: Mapping[str, Path], config: CacheConfig, scratch: Path, *, readers: int
    ) -> None:
        self._config, self._scratch = config, scratch
        self._todo: queue.SimpleQueue[tuple[str, Path]] = queue.SimpleQueue()
        for item in folders.items():
            self._todo.put(item)
        self._done: queue.Queue[Reading] = queue.Queue()
        self._room = threading.Semaphore(2 * readers)
        self._left = len(folders)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(readers)]

    def __enter__(self) -> "ReadAhead":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._room.release(len(self._threads))

    def __iter__(self) -> Iterator[Reading]:
        while True:
            with self._lock:
                if self._left == 0:
                    return
                self._left -= 1
            yield self._done.get()
            self._room.release()

    def _work(self) -> None:
        """One thread that keeps one process busy."""
        process: _Process | None = None
        while True:
            self._room.acquire()
            if self._ended.is_set():
                break
            try:
                uid, folder = self._todo.get_nowait()
            except queue.Empty:
                break
            for attempt in range(TRIES):
                start = time.monotonic()
                try:
                    process = process or _Process(self._config, self._scratch)
                    reading = process.read(uid, folder)
                    break
                except Exception as error:  # noqa: BLE001 - the others must still be read
                    reading = Reading(uid, time.monotonic() - start, cause=cause_of(error))
                    log.warning("study %s, try %d: %s", uid, attempt + 1, reading.cause)
                    if process is not None:
                        process.end()
                    process = None
            self._done.put(reading)
        if process is not None:
            process.end()

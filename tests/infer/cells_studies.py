"""Faults of listing, headers and pixels: each must cost the studies it befalls and no other.

In: a `Ground`. Out: a `Count`. Example: `CELLS["pixels", "hangs"](ground)`.
"""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import faults
import numpy as np
from faults import Count, Ground, count_rows, patience_with, run_here, uids

from cspine_kit.infer.log import IMAGE
from cspine_kit.infer.studies import listing, reading

STUDIES, VICTIMS = 6, ("1.2", "1.5")
SPARED = [uid for uid in uids(STUDIES) if uid not in VICTIMS]
FAULTS_AT = "CSPINE_TEST_FAULTS"


def eio(*_: object) -> None:
    """A disk that cannot be read."""
    raise OSError(errno.EIO, "Input/output error")


def no_room(*_: object) -> None:
    """Memory that is not there."""
    raise MemoryError("Unable to allocate 2.00 GiB")


def hang(*_: object) -> None:
    """A read of a dead mount."""
    threading.Event().wait()


BEHAVIOUR: dict[str, Callable[..., None]] = {
    "error": eio,
    "hangs": hang,
    "no room": no_room,
    "dies": lambda *_: os._exit(9),
}


@contextmanager
def befalling(name: str, kind: str) -> Iterator[None]:
    """`listing.<name>` of the victims' folders behaves as `kind` says."""
    real = getattr(listing, name)

    def faulty(folder: Path, *arguments: object) -> object:
        if folder.name in VICTIMS:
            BEHAVIOUR[kind]()
        return real(folder, *arguments)

    with mock.patch.object(listing, name, faulty):
        yield


def _folders(ground: Ground, name: str) -> tuple[Path, list[Path]]:
    competition = ground.competition(name, STUDIES)
    return competition, [competition / "test_images" / uid for uid in VICTIMS]


def listing_damaged(ground: Ground) -> Count:
    """A file where a folder should be."""
    competition, folders = _folders(ground, "listing_damaged")
    for folder in folders:
        shutil.rmtree(folder)
        folder.write_bytes(b"no folder")
    result = run_here(ground, competition)
    return count_rows("a file for a folder", 2, ground, result, SPARED, victims=VICTIMS)


def listing_missing(ground: Ground) -> Count:
    """No folder."""
    competition, folders = _folders(ground, "listing_missing")
    for folder in folders:
        shutil.rmtree(folder)
    result = run_here(ground, competition)
    return count_rows("no folder", 2, ground, result, SPARED, victims=VICTIMS)


def _listing(kind: str) -> Callable[[Ground], Count]:
    def cell(ground: Ground) -> Count:
        competition = ground.competition(f"listing_{kind}", STUDIES)
        with befalling("list_files", kind):
            result = run_here(ground, competition, patience=patience_with("listing", kind))
        # What is late is read all the same: by a process that does not hang here.
        spared = uids(STUDIES) if kind == "hangs" else SPARED
        return count_rows(f"listing a folder {kind}", 2, ground, result, spared, victims=VICTIMS)

    return cell


def headers_damaged(ground: Ground) -> Count:
    """The first bytes of every file of a study are noise."""
    competition, folders = _folders(ground, "headers_damaged")
    rng = np.random.default_rng(5)
    for folder in folders:
        for file in folder.iterdir():
            data = file.read_bytes()
            file.unlink()  # a hard link: the sound study must stay sound
            file.write_bytes(rng.integers(0, 256, 700, np.uint8).tobytes() + data[700:])
    result = run_here(ground, competition)
    return count_rows("noise for headers", 2, ground, result, SPARED, victims=VICTIMS)


def headers_missing(ground: Ground) -> Count:
    """Files that are listed and then gone."""
    competition = ground.competition("headers_missing", STUDIES)
    real = listing.list_files

    def gone(folder: Path) -> list[str]:
        names = real(folder)
        if folder.name in VICTIMS:
            shutil.rmtree(folder)
        return names

    with mock.patch.object(listing, "list_files", gone):
        result = run_here(ground, competition)
    return count_rows("files gone after listing", 2, ground, result, SPARED, victims=VICTIMS)


def _headers(kind: str) -> Callable[[Ground], Count]:
    def cell(ground: Ground) -> Count:
        competition = ground.competition(f"headers_{kind}", STUDIES)
        with befalling("read_geometry", kind):
            result = run_here(ground, competition, patience=patience_with("headers", kind))
        # Headers are only the fallback: the pixels of the very same studies still speak.
        return count_rows(f"reading headers {kind}", 2, ground, result, uids(STUDIES))

    return cell


def corrupt(path: Path, rng: np.random.Generator, most: int) -> None:
    """Give one file up to `most` random injuries: bytes, a block, a cut, zeros, a lost piece."""
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, most + 1))):
        if not data:
            break
        # Half of the injuries hit the header, where they hurt most.
        at = int(rng.integers(0, min(len(data), 1200) if rng.random() < 0.5 else len(data)))
        kind = int(rng.integers(0, 6))
        size = min(int(rng.integers(1, 400)), len(data) - at)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[at : at + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at : at + size] = bytes(size)
        elif kind == 4:
            data[at : at + 2] = b"\xff\xff"
        else:
            del data[at : at + size]
    path.unlink()  # a hard link: the sound study must stay sound
    path.write_bytes(bytes(data))


def corrupted(ground: Ground, count: int = 16, *, spared: int = 4, seed: int = 0) -> Count:
    """Random bytes in one to all files of `count` studies, `spared` sound ones among them.

    A quarter has one injured file, a quarter one in five, a quarter all, a quarter all badly.
    """
    rng = np.random.default_rng(seed)
    competition = ground.competition("corrupted", count + spared)
    everyone = uids(count + spared)
    untouched = set(rng.choice(everyone, spared, replace=False).tolist())
    victims = [uid for uid in everyone if uid not in untouched]
    for uid in victims:
        files = sorted((competition / "test_images" / uid).iterdir())
        share, most = ((0.0, 4), (0.2, 4), (1.0, 4), (1.0, 100))[int(rng.integers(0, 4))]
        for i in rng.permutation(len(files))[: max(1, round(share * len(files)))]:
            corrupt(files[i], rng, most)
    result = run_here(ground, competition)
    name = "random bytes in a study"
    counted = count_rows(name, count, ground, result, sorted(untouched), victims=victims)
    images = sum(source == IMAGE for source in result.sources().values()) - spared
    counted.remark = counted.remark or f"{images} of {count} still predicted from what was sound"
    return counted


def vanishing(ground: Ground, count: int = 12) -> Count:
    """Files and folders of half of the studies disappear after the first study is done."""
    competition = ground.competition("vanishing", count)
    process, out = faults.start_kernel(ground, competition)
    faults.wait_for(process, out, 1)
    victims = uids(count)[1::2]
    for i, uid in enumerate(victims):
        folder = competition / "test_images" / uid
        files = sorted(folder.iterdir())
        for file in files if i % 2 else files[::2]:
            file.unlink(missing_ok=True)
        if i % 4 == 1:
            folder.rmdir()
    ended = faults.end(process)
    result = faults.read_result(competition, out)
    spared = [uid for uid in uids(count) if uid not in victims]
    name = "files vanish during the run"
    return count_rows(name, len(victims), ground, result, spared, victims=victims, ended=ended)


_SERVE, _READ = reading._serve, reading._read


def serve_faulty(*arguments: object) -> None:
    """A reading process in which the victims' pixels behave as the environment says."""

    def read(uid: str, *rest: object) -> object:
        if uid in VICTIMS:
            if os.environ[FAULTS_AT] == "no room":
                bytearray(1 << 45)
            BEHAVIOUR[os.environ[FAULTS_AT]]()
        return _READ(uid, *rest)

    reading._read = read
    _SERVE(*arguments)


def _pixels(kind: str) -> Callable[[Ground], Count]:
    def cell(ground: Ground) -> Count:
        competition = ground.competition(f"pixels_{kind}", STUDIES)
        with (
            mock.patch.object(reading, "_serve", serve_faulty),
            mock.patch.dict(os.environ, {FAULTS_AT: kind}),
        ):
            result = run_here(ground, competition, patience=patience_with("pixels", kind))
        return count_rows(f"reading pixels {kind}", 2, ground, result, SPARED, victims=VICTIMS)

    return cell


CELLS: dict[tuple[str, str], Callable[[Ground], Count]] = {
    ("listing", "damaged"): listing_damaged,
    ("listing", "missing"): listing_missing,
    **{("listing", kind): _listing(kind) for kind in ("error", "hangs", "no room")},
    ("headers", "damaged"): headers_damaged,
    ("headers", "missing"): headers_missing,
    **{("headers", kind): _headers(kind) for kind in ("error", "hangs", "no room")},
    ("pixels", "damaged"): corrupted,
    ("pixels", "missing"): vanishing,
    **{("pixels", kind): _pixels(kind) for kind in ("error", "hangs", "dies", "no room")},
}

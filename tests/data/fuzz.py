"""Read mutated DICOM files one after the other: `python fuzz.py FOLDER COUNT SEED`.

Writes JSON: how many were read, refused, and the longest time of one. Anything else that a file
provokes (a crash, another exception, memory beyond the limit) ends the process with an error.
"""

import contextlib
import json
import logging
import os
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from cspine_kit.core.errors import StudyError
from cspine_kit.data.reader.dicom import read_study
from cspine_kit.data.reader.headers.files import read_header
from cspine_kit.data.reader.pixels.decode import decode
from cspine_kit.data.reader.pixels.values import Meaning, hounsfield
from cspine_kit.data.reader.problems import PROBLEMS, FileError

EXTRA_MEMORY = 1 << 30
WHOLE_EVERY = 25


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight random injuries: bits, bytes, runs, lengths, cuts, moved blocks."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if not out:
            break
        # Half of the injuries hit the header, where they hurt most.
        at = int(rng.integers(0, min(len(out), 900) if rng.random() < 0.5 else len(out)))
        kind = int(rng.integers(0, 7))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at] = int(rng.integers(0, 256))
        elif kind == 2:
            out[at : at + 4] = b"\xff\xff\xff\xff"[: len(out[at : at + 4])]
        elif kind == 3:
            out[at : at + int(rng.integers(1, 64))] = b""
        elif kind == 4:
            out[at:at] = rng.bytes(int(rng.integers(1, 16)))
        elif kind == 5 and rng.random() < 0.3:
            del out[at:]
        else:
            start = int(rng.integers(0, len(out)))
            out[at : at + 8] = out[start : start + 8]
    return bytes(out)


def read_one(folder: Path, name: str) -> bool:
    """True where a file was read, False where it was refused with a documented reason."""
    try:
        header = read_header(folder, name)
        stored = decode(folder / name, header)
        hounsfield(stored, header, Meaning(header.signed))
    except FileError as error:
        if error.code not in PROBLEMS:
            raise
        return False
    return True


def main(folder: Path, count: int, seed: int) -> None:
    """Mutate the files of `folder` in turn, `count` times."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    seeds = [path.read_bytes() for path in sorted(folder.iterdir())]
    work = folder.parent / f"work{os.getpid()}"
    work.mkdir()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rng, counts, slowest = np.random.default_rng(seed), {"read": 0, "refused": 0}, 0.0
    for turn in range(count):
        (work / "1.dcm").write_bytes(mutate(seeds[turn % len(seeds)], rng))
        start = time.monotonic()
        counts["read" if read_one(work, "1.dcm") else "refused"] += 1
        if turn % WHOLE_EVERY == 0:
            with contextlib.suppress(StudyError):
                read_study(work, threads=1)
        slowest = max(slowest, time.monotonic() - start)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - used
    if grown > EXTRA_MEMORY:
        raise MemoryError(f"memory grew by {grown >> 20} MiB")
    found = {**counts, "slowest_s": round(slowest, 3), "grown_mib": grown >> 20}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

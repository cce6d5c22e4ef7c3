"""The decoder of record in a process of its own, because a damaged stream can crash C++ code.

In: a folder, a file's name. Out: stored values, or an error that names the cause. Example::

    stored = decode_isolated(str(folder), "17.dcm")

Children are kept for the next file; one that dies or hangs costs one file and is replaced. A child
is this module run with `-m`: nothing of the caller's program is imported or run again in it.
"""

import atexit
import contextlib
import json
import os
import select
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

from cspine_kit.data.reader.headers.files import read_frames
from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.pixels.record import Stored, decode_of_record

PATIENCE_S = 60.0
"""The slowest decoder needs well under a second for a frame."""

_idle: "list[_Child]" = []
"""Children without work; append and pop are atomic."""
_REPLY = struct.Struct("<cII")


class _Child:
    """One decoding process and its pipes."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[3])
        # An empty entry would mean the folder that the child happens to stand in.
        before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        paths = [root, *filter(None, before)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cspine_kit.data.reader.pixels.isolated"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def ask(self, folder: str, name: str, frame: int) -> Stored:
        """Stored values of one frame.

        Raises:
            ValueError: the decoder refuses the file.
            ChildProcessError: the child died or hangs.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise ChildProcessError("the decoding process has no pipes")
        try:
            stdin.write(json.dumps([folder, name, frame]).encode() + b"\n")
            stdin.flush()
        except OSError as error:
            raise ChildProcessError("the decoding process is gone") from error
        if not select.select([stdout], [], [], PATIENCE_S)[0]:
            raise ChildProcessError(f"no answer from the decoder in {PATIENCE_S:.0f} s")
        head = stdout.read(_REPLY.size)
        if len(head) < _REPLY.size:
            raise ChildProcessError("the decoder crashed on this file")
        kind, rows, cols = _REPLY.unpack(head)
        if kind == b"e":
            raise ValueError(stdout.read(rows).decode())
        dtype = np.dtype(np.int16 if kind == b"i" else np.uint16)
        data = stdout.read(rows * cols * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(rows, cols)

    def end(self) -> None:
        """Close the pipes and the process."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a dead reader: nothing is left to flush to
                    pipe.close()
        self.process.wait()


@atexit.register
def end_children() -> None:
    """End every idle child; a later file starts a new one."""
    while _idle:
        _idle.pop().end()


def decode_isolated(folder: str, name: str, frame: int = 0) -> Stored:
    """Stored values (rows, cols) of one frame, decoded by pydicom and gdcm in a child process.

    Raises:
        ValueError: the decoder refuses the file.
        ChildProcessError: the decoder crashed or hangs on it.
    """
    try:
        child = _idle.pop()
    except IndexError:
        child = _Child()
    try:
        # A child stays in the folder it was started in; its parent may have moved since.
        stored = child.ask(str(Path(folder).absolute()), name, frame)
    except ValueError:
        _idle.append(child)
        raise
    except BaseException:
        child.end()
        raise
    _idle.append(child)
    return stored


def _serve() -> None:
    """Answer requests on standard input until it closes."""
    out = os.fdopen(os.dup(1), "wb")
    # Whatever a C library prints must not get between the answers.
    os.dup2(2, 1)
    known: tuple[object, list[Header]] = (None, [])
    for line in sys.stdin.buffer:
        folder, name, frame = json.loads(line)
        try:
            path = Path(folder) / name
            state = path, path.stat().st_mtime_ns, path.stat().st_size
            if known[0] != state:  # frames of one file come one after the other
                known = state, read_frames(folder, name)
            stored = decode_of_record(path, known[1][frame])
        except Exception as error:  # noqa: BLE001 - the parent decides what it means
            text = f"{type(error).__name__}: {error}".encode()[:2000]
            out.write(_REPLY.pack(b"e", len(text), 0) + text)
        else:
            kind = b"i" if stored.dtype == np.int16 else b"u"
            out.write(_REPLY.pack(kind, *stored.shape))
            out.write(np.ascontiguousarray(stored).tobytes())
        out.flush()


if __name__ == "__main__":
    _serve()

"""A line a minute that says how a long run stands, for people who can see nothing but its log.

In: a function that tells. Out: what it tells, on standard error and in the kernel's log. Example::

    log = KernelLog(Path("kernel_log.jsonl"))
    with pulse(lambda: {"studies done": "3 of 40", "seconds left": 120}, log, every_s=60.0):
        sum(range(1000))

A log file gets no progress bar: a bar is redrawn ten times a second, a file keeps every drawing.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cspine_kit.infer.log import KernelLog

EVERY_S = 60.0


@contextmanager
def pulse(
    tell: Callable[[], Mapping[str, object]], log: KernelLog, *, every_s: float = EVERY_S
) -> Iterator[None]:
    """Tell how the block stands, every so many seconds and once at its end.

    Args:
        tell: name to value, in the order in which they are to be read.
        log: gets them as event `pulse`.
        every_s: between two lines.
    """
    ended = threading.Event()

    def beat() -> None:
        told = tell()
        log.write("pulse", **told)
        if not sys.stderr.isatty():  # a terminal has the bar
            sys.stderr.write("; ".join(f"{name} {value}" for name, value in told.items()) + "\n")
            sys.stderr.flush()

    def beats() -> None:
        while not ended.wait(every_s):
            beat()

    beating = threading.Thread(target=beats, daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        beat()

"""How long the kernel waits for what may never come, and calls that cannot hold up their caller.

In: functions and seconds. Out: their results, or what is late. Example::

    sizes = {}
    measure = lambda name: sizes.update({name: (folder / name).stat().st_size})
    late = run_all(measure, ["1.dcm", "2.dcm"], threads=2, wait_s=60.0, patience_s=10.0)
    data = within(60.0, path.read_bytes)      # TimeoutError where the disk hangs

Nothing ends a thread that hangs in a read of a dead disk or in a driver. So whatever may hang runs
in a daemon thread, and who waits for it gives up on it; the process ends without it.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

TICK_S = 0.02
"""Between two looks at what is late."""


@dataclass(frozen=True)
class Patience:
    """Seconds after which something counts as hanging.

    `bundle_s`: all files of the bundle; `headers_s`: files and headers of all studies (525,000
    files at 16 threads need two to ten minutes); `study_s`: those of one study; `load_s`: the
    networks of one device and their check; `read_s`: pixels of one study, in a process of its own;
    `network_s`: one study on a GPU, before anything was measured (a CPU gets `CPU_FACTOR` of it).
    """

    bundle_s: float = 900.0
    headers_s: float = 900.0
    study_s: float = 60.0
    load_s: float = 900.0
    read_s: float = 300.0
    network_s: float = 600.0


CPU_FACTOR = 6.0


def run_all(
    work: Callable[[str], object],
    names: Sequence[str],
    *,
    threads: int,
    wait_s: float,
    patience_s: float,
    relief_s: float | None = None,
) -> list[str]:
    """Call `work` for every name on daemon threads; one that hangs is replaced.

    Args:
        work: one name; what it raises is swallowed, so it must keep its own failures.
        names: in the order in which they are begun.
        threads: that work at once.
        wait_s: for all of them.
        patience_s: for one of them.
        relief_s: after which a further thread takes the next name while one still works; as many
            may hang as there are names, and the others are done all the same. `patience_s` where
            not given.

    Returns:
        Names that are not done; those not given up as hanging go on in the background.
    """
    todo, done, lock = deque(names), set[str](), threading.Lock()
    begun: dict[str, float] = {}
    relieved = set[str]()
    relief_s = patience_s if relief_s is None else relief_s

    def serve() -> None:
        while True:
            with lock:
                if not todo:
                    return
                name = todo.popleft()
                begun[name] = time.monotonic()
            with contextlib.suppress(Exception):
                work(name)
            with lock:
                done.add(name)
                if name in relieved:  # another thread works in this one's place
                    return

    def start(count: int) -> None:
        for _ in range(count):
            threading.Thread(target=serve, daemon=True).start()

    start(min(threads, len(names)))
    end_s = time.monotonic() + wait_s
    while time.monotonic() < end_s:
        with lock:
            now = time.monotonic()
            working = {name: now - at for name, at in begun.items() if name not in done}
            hanging = {name for name, took_s in working.items() if took_s > patience_s}
            new = {name for name, took_s in working.items() if took_s > relief_s} - relieved
            relieved |= new
            waiting = len(todo)
            if not waiting and len(done) + len(hanging) == len(names):
                break
        start(min(len(new), waiting))
        time.sleep(TICK_S)
    with lock:
        return [name for name in names if name not in done]


def within(wait_s: float, function: Callable[..., T], *args: Any) -> T:
    """What `function(*args)` returns, in a thread of its own.

    Raises:
        TimeoutError: not within `wait_s` seconds; it goes on in the background.
        Exception: whatever the function raises.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(function(*args))
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(max(wait_s, 0.0))
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {wait_s:.1f} s")
    return results[0]

"""One map over studies, with a progress bar, that no study's exception stops.

In: a picklable function of one item, and items with names. Out: results and failures. Example::

    >>> outcome = map_studies(len, {"1.2.3": [7, 8], "1.2.4": None}, jobs=1, title="files")
    >>> outcome.results
    {'1.2.3': 2}
    >>> outcome.failures
    {'1.2.4': "study 1.2.4: TypeError: object of type 'NoneType' has no len()"}
"""

import ctypes
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from cspine_kit.core.cluster import map_on_cluster
from cspine_kit.core.errors import CSpineError, DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

MALLOC_THRESHOLD = 512 << 20

Backend = Literal["local", "ray"]
"""Where a map runs: this machine's processes, or a Ray cluster."""

Answer = tuple[str, Any, str | None]
BAR_AFTER_S = 1.0


@dataclass
class Outcome(Generic[Result]):
    """What a map gave: results and reasons of failure by study_uid, in the order of the items."""

    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def usable_cores() -> int:
    """Cores this process may use (a container's affinity counts, not the machine's size)."""
    return len(os.sched_getaffinity(0))


def measure_gflops(side: int = 2048, seconds: float = 0.5) -> float:
    """GFLOP/s of a float32 product of two (side, side) matrices, on a machine as busy as it is now.

    numpy's BLAS runs it on every usable core (fewer where OPENBLAS_NUM_THREADS or the like says
    so); a product costs 2 side^3 operations. Times in docs stand beside this figure.

    Args:
        side: rows and columns.
        seconds: products are repeated for this long, one at least, and the fastest counts.
    """
    import numpy as np

    left = np.random.default_rng(0).random((side, side), dtype=np.float32)
    product = np.empty_like(left)
    np.matmul(left[:256, :256], left[:256, :256])  # starts BLAS's threads
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        np.matmul(left, left, out=product)
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best / 1e9


def tune_process() -> None:
    """Prepare this process for networks and large arrays on a CPU; call it before torch starts.

    glibc keeps large blocks instead of returning them after each use, which stops page faults on
    activations (up to 2x) and volumes. One arena serves all threads: the heaps of others end at
    64 MB, and what is larger would be mapped anew each time. OpenMP threads that wait sleep instead
    of spinning: on a busy machine spinning threads steal the core from the one they wait for.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8  # malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_trim_threshold, MALLOC_THRESHOLD)
        libc.mallopt(m_mmap_threshold, MALLOC_THRESHOLD)
        libc.mallopt(m_arena_max, 1)
    except (OSError, AttributeError):
        log.debug("no glibc here, malloc left as it is")


def _guarded(function: Callable[[Any], Any], pair: tuple[str, Any]) -> Answer:
    name, item = pair
    try:
        return name, function(item), None
    except CSpineError as error:
        return name, None, str(error)
    except Exception as error:  # noqa: BLE001 - one bad study must cost only itself
        return name, None, f"study {name}: {type(error).__name__}: {error}"


def _guarded_from(folder: str, function: Callable[[Any], Any], pair: tuple[str, Any]) -> Answer:
    # A worker may have been started elsewhere; relative paths mean the caller's folder.
    os.chdir(folder)
    return _guarded(function, pair)


def _local(function: Callable[[Any], Any], items: Mapping[str, Any], jobs: int) -> Iterator[Answer]:
    """Answers in the order of `items`, from processes of this machine."""
    from joblib import Parallel, delayed

    jobs = min(jobs or usable_cores(), max(1, len(items)))
    folder = str(Path.cwd())
    stream: Iterator[Answer] = Parallel(
        n_jobs=jobs, return_as="generator", initializer=tune_process
    )(delayed(_guarded_from)(folder, function, pair) for pair in items.items())
    return stream


def map_studies(
    function: Callable[[Item], Result],
    items: Mapping[str, Item],
    *,
    jobs: int = 0,
    title: str = "studies",
    backend: Backend = "local",
) -> Outcome[Result]:
    """Apply `function` to every item, each in its own guard against exceptions.

    A process that dies (out of memory, a crash in C code) is no exception: it ends a local map of
    several processes with joblib's error; on Ray the study is tried again.

    Args:
        function: picklable; one item to one result.
        items: by study_uid.
        jobs: processes; 0 means the usable cores, 1 runs in this process.
        title: name of the progress bar.
        backend: "ray" runs on the cluster of RAY_ADDRESS, whose nodes must see the same files;
            `jobs` then counts for nothing.

    Returns:
        Results and failures in the order of `items`. A failure is logged and recorded, not raised.
    """
    from tqdm import tqdm

    if backend == "ray":
        guarded = partial(_guarded, function)
        stream: Iterator[Answer] = map_on_cluster(guarded, list(items.items()), title=title)
    else:
        stream = _local(function, items, jobs)
    outcome: Outcome[Result] = Outcome()
    for name, result, problem in tqdm(stream, total=len(items), desc=title, unit="study"):
        if problem is None:
            outcome.results[name] = result
        else:
            outcome.failures[name] = problem
            log.warning(problem)
    return outcome


def with_bar(items: Iterable[Item], title: str, *, unit: str = "study") -> Iterable[Item]:
    """The same items, with a progress bar where going through them takes longer than a second."""
    from tqdm import tqdm

    bar: Iterable[Item] = tqdm(items, desc=title, unit=unit, delay=BAR_AFTER_S)
    return bar


def require_some(outcome: Outcome[Result], what: str) -> dict[str, Result]:
    """Results of a map, or an error where there is none.

    Raises:
        DataError: nothing succeeded; carries the first reason.
    """
    if not outcome.results:
        first = next(iter(outcome.failures.values()), "there was nothing to read")
        count = len(outcome.failures)
        raise DataError(f"{what}: not one study succeeded ({count} failed); the first: {first}")
    return outcome.results

"""Work on a Ray cluster: a map over many small items, and long tasks that wait for each other.

In: picklable functions. Out: their answers. Example::

    from cspine_kit.core.execution import map_studies

    items = {"1.2.3": -2, "1.2.4": 3}
    map_studies(abs, items, jobs=1).results       # with backend="ray" the same, on the cluster

The cluster is that of RAY_ADDRESS, else a running local one, else one of this machine alone. Its
nodes must see the same files and have the kit installed. What a node that died had in hand runs
again on another one; an exception is an answer and is not tried again.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cspine_kit.core.errors import DataError

RETRIES = 5
"""Times that what a node had in hand is tried again after the node died."""

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What tells numerical libraries how many threads to use."""


def connect() -> Any:
    """The module `ray`, connected.

    Raises:
        DataError: ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise DataError(
            "execution.backend is ray, but ray is not installed: pip install 'cspine-kit[ray]'"
        ) from error
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    return ray


def _from(folder: str, function: Callable[..., Any], arguments: tuple[Any, ...], *_: Any) -> Any:
    """Call a function as if from the caller's folder; what else is given was only waited for."""
    os.chdir(folder)
    return function(*arguments)


def map_on_cluster(
    function: Callable[[Any], Any], items: Sequence[Any], *, title: str
) -> Iterator[Any]:
    """Answers in the order of `items`, each from one core.

    Args:
        function: of one item; it must not raise (`execution.map_studies` guards it).
        items: what goes to the nodes.
        title: name of the tasks in Ray's own views.
    """
    ray = connect()
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_from).options(name=title)
    shared, folder = ray.put(function), str(Path.cwd())
    waiting = [task.remote(folder, shared, (item,)) for item in items]
    return (ray.get(reference) for reference in waiting)


def run_on_cluster(
    calls: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[str, ...]]],
    *,
    tick_s: float,
) -> Iterator[tuple[str, Any]]:
    """Names and results of calls as they end, each on one GPU, or one core where there is none.

    Args:
        calls: function, arguments and the names that must be done before it, by name; names that
            are waited for stand before those that wait.
        tick_s: Ctrl-C is heard this often.

    Raises:
        Exception: the first one that a call raised; the others are ended.
    """
    ray = connect()
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_from)
    folder, references = str(Path.cwd()), dict[str, Any]()
    for name, (function, arguments, after) in calls.items():
        before = [references[one] for one in after]
        references[name] = task.options(name=name).remote(folder, function, arguments, *before)
    names = {reference: name for name, reference in references.items()}
    left = list(names)
    try:
        while left:
            done, left = ray.wait(left, timeout=tick_s)
            for reference in done:
                yield names[reference], ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    finally:
        for reference in left:
            ray.cancel(reference, force=True)

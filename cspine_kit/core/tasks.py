"""Long tasks that wait for each other, side by side in processes of their own.

In: tasks by name, each with the names that must be done before it. Out: their results. Example::

    tasks = {"a": Task(len, ("xyz",)), "b": Task(max, (1, 2), after=("a",))}
    run_tasks(tasks, jobs=2, title="train")["b"]

Each process works on one thread, so that results do not depend on how many run at once. What a task
tells (`report`) stands behind the parent's one progress bar.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from cspine_kit.core.cluster import ONE_THREAD, run_on_cluster
from cspine_kit.core.execution import Backend, tune_process, usable_cores

TICK_S = 0.5
"""What tasks tell is shown this often."""

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of sys/prctl.h


class _Nobody:
    """Who hears what a task on another machine tells."""

    def put(self, text: str) -> None:
        """Forget it."""


_news: "SimpleQueue[str] | _Nobody | None" = None
"""Where this process reports to; None in the process that the user started."""


@dataclass(frozen=True)
class Task:
    """A call that pickles, and the tasks that must be done before it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    after: tuple[str, ...] = ()

    def run(self) -> Any:
        """Call it."""
        return self.function(*self.arguments)


def report(text: str) -> None:
    """Tell the parent how far a task is; nothing where this process is the user's own."""
    if _news is not None:
        _news.put(text)


def is_worker() -> bool:
    """True in a process of `run_tasks`: bars of its own would tear the parent's."""
    return _news is not None


def _start_worker(
    news: "SimpleQueue[str]", folder: str, places: "SimpleQueue[dict[str, str]]"
) -> None:
    """Prepare a process before torch is imported in it."""
    global _news  # noqa: PLW0603 - a process has one parent to report to
    _news = news
    # Ctrl-C reaches the parent, which ends its workers; a killed parent takes them along.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    if not places.empty():
        os.environ.update(places.get())
    os.chdir(folder)
    tune_process()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")


def _run_elsewhere(task: Task) -> Any:
    """Run a task in a worker of a cluster."""
    global _news  # noqa: PLW0603 - a process has one parent to report to
    _news = _Nobody()
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    tune_process()
    return task.run()


def _on_cluster(tasks: Mapping[str, Task], title: str) -> dict[str, Any]:
    from tqdm import tqdm

    calls = {name: (_run_elsewhere, (task,), task.after) for name, task in tasks.items()}
    results: dict[str, Any] = {}
    with tqdm(total=len(tasks), desc=title, unit="task") as bar:
        for name, result in run_on_cluster(calls, tick_s=TICK_S):
            results[name] = result
            bar.set_postfix_str(name)
            bar.update()
    return results


def run_tasks(
    tasks: Mapping[str, Task],
    *,
    jobs: int = 0,
    title: str,
    backend: Backend = "local",
    environments: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Run every task as soon as those before it are done.

    Args:
        tasks: by name; `after` names tasks of this mapping, listed before their followers.
        jobs: processes; 0 means the usable cores, 1 runs them in order in this process.
        title: of the progress bar.
        backend: "ray" runs them on the cluster of RAY_ADDRESS, whose nodes must see the same files,
            each on one GPU where the cluster has any; `jobs` then counts for nothing.
        environments: variables of each process, where there are several: which GPU is its own.

    Returns:
        Results by name.

    Raises:
        Exception: the first one that a task raised; the others are ended (what they finished is
            kept by whoever writes it).
    """
    if backend == "ray" and tasks:
        return _on_cluster(tasks, title)
    jobs = min(jobs or usable_cores(), len(tasks))
    if jobs <= 1:
        return {name: task.run() for name, task in tasks.items()}
    from tqdm import tqdm

    context = multiprocessing.get_context("spawn")  # forked copies of torch's threads hang
    news: SimpleQueue[str] = context.SimpleQueue()
    places: SimpleQueue[dict[str, str]] = context.SimpleQueue()
    for environment in environments:
        places.put(dict(environment))
    results: dict[str, Any] = {}
    running: dict[Future[Any], str] = {}
    pool = ProcessPoolExecutor(
        jobs, context, initializer=_start_worker, initargs=(news, str(Path.cwd()), places)
    )
    try:
        with tqdm(total=len(tasks), desc=title, unit="task") as bar:
            waiting = dict(tasks)
            while waiting or running:
                for name in [n for n, t in waiting.items() if all(a in results for a in t.after)]:
                    running[pool.submit(waiting.pop(name).run)] = name
                if not running:
                    raise ValueError(f"tasks {sorted(waiting)} wait for tasks that nobody named")
                done, _ = wait(running, timeout=TICK_S, return_when=FIRST_COMPLETED)
                for future in done:
                    results[running.pop(future)] = future.result()
                    bar.update()
                while not news.empty():
                    bar.set_postfix_str(news.get())
    except BaseException:
        for process in list(pool._processes.values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return results

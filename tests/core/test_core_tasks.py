"""Long tasks side by side: order, errors, one thread each, and no orphans."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cspine_kit.core.errors import DataError
from cspine_kit.core.tasks import Task, is_worker, report, run_tasks


def note(folder: Path, name: str, needs: tuple[str, ...] = ()) -> int:
    """Leave a file; fails where those it needs are not there yet. Returns the process."""
    missing = [n for n in needs if not (folder / n).exists()]
    if missing:
        raise DataError(f"{name} came before {missing}")
    report(f"{name} is at work")
    (folder / name).write_text(os.environ.get("OMP_NUM_THREADS", ""))
    return os.getpid()


def fail(folder: Path) -> None:
    raise DataError(f"wrong in {folder.name}")


def place_of(folder: Path, name: str, other: str) -> str | None:
    """The process's own variable, once the other task has begun too."""
    (folder / name).touch()
    deadline = time.monotonic() + 60
    while not (folder / other).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return os.environ.get("PLACE")


def sleep_then_note(folder: Path) -> None:
    (folder / "started").touch()
    time.sleep(5)
    (folder / "finished").touch()


def chain_of(folder: Path) -> dict[str, Task]:
    return {
        "a": Task(note, (folder, "a")),
        "b": Task(note, (folder, "b")),
        "a1": Task(note, (folder, "a1", ("a",)), after=("a",)),
        "last": Task(note, (folder, "last", ("a1", "b")), after=("a1", "b")),
    }


def test_tasks_wait_for_those_before_them_and_run_elsewhere(tmp_path):
    done = run_tasks(chain_of(tmp_path), jobs=2, title="t")
    assert sorted(done) == ["a", "a1", "b", "last"]
    assert os.getpid() not in done.values()
    assert all((tmp_path / name).read_text() == "1" for name in done)


def test_each_process_has_a_place_of_its_own(tmp_path):
    tasks = {n: Task(place_of, (tmp_path, n, o)) for n, o in (("a", "b"), ("b", "a"))}
    places = [{"PLACE": "0"}, {"PLACE": "1"}]
    done = run_tasks(tasks, jobs=2, title="t", environments=places)
    assert sorted(done.values()) == ["0", "1"] and "PLACE" not in os.environ


def test_one_job_runs_in_this_process_in_order(tmp_path):
    done = run_tasks(chain_of(tmp_path), jobs=1, title="t")
    assert set(done.values()) == {os.getpid()}
    assert not is_worker()


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_is_the_callers_own(tmp_path, jobs):
    tasks = {"bad": Task(fail, (tmp_path,)), "next": Task(note, (tmp_path, "next"), after=("bad",))}
    with pytest.raises(DataError, match=f"wrong in {tmp_path.name}"):
        run_tasks(tasks, jobs=jobs, title="t")
    assert not (tmp_path / "next").exists()


def test_a_name_that_nobody_makes_is_an_error(tmp_path):
    tasks = {"a": Task(note, (tmp_path, "a")), "b": Task(note, (tmp_path, "b"), after=("c",))}
    with pytest.raises(ValueError, match=r"\['b'\]"):
        run_tasks(tasks, jobs=2, title="t")


def test_nothing_to_do_starts_nothing():
    assert run_tasks({}, jobs=2, title="t") == {}


def test_a_killed_parent_takes_its_workers_along(tmp_path):
    code = (
        "from pathlib import Path\n"
        "from cspine_kit.core.tasks import Task, run_tasks\n"
        "from test_core_tasks import sleep_then_note, note\n"
        "if __name__ == '__main__':\n"
        f"    folder = Path({str(tmp_path)!r})\n"
        "    run_tasks({'s': Task(sleep_then_note, (folder,)),\n"
        "               'n': Task(note, (folder, 'n'))}, jobs=2, title='t')\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)])}
    with subprocess.Popen([sys.executable, str(script)], env=env) as parent:
        for _ in range(200):
            if (tmp_path / "started").exists():
                break
            time.sleep(0.1)
        parent.send_signal(signal.SIGKILL)
    time.sleep(6)
    assert (tmp_path / "started").exists()
    assert not (tmp_path / "finished").exists()

"""Maps and long tasks on a real two-node Ray cluster, one node of which dies half-way."""

import os
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from cspine_kit.core.errors import DataError, StudyError
from cspine_kit.core.execution import map_studies
from cspine_kit.core.tasks import Task, is_worker, run_tasks

TASKS = 12
MEMORY = 80 << 20


@pytest.fixture
def cluster(monkeypatch):
    ray.shutdown()  # of whoever connected before in this process ...
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)  # ... and of what that left behind: a mode that needs its token
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.second = made.add_node(num_cpus=1, object_store_memory=MEMORY)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def lose_second_node(cluster, when) -> threading.Thread:
    """Kill the second node as soon as `when()` holds."""

    def wait():
        while not when():
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=wait)
    killer.start()
    return killer


def note(log: Path, name: str, seconds: float) -> str:
    """Leave a line as the work begins and one as it ends."""
    node = ray.get_runtime_context().get_node_id()
    with log.open("a") as handle:
        handle.write(f"begun {name} {node}\n")
    time.sleep(seconds)
    with log.open("a") as handle:
        handle.write(f"ended {name} {node}\n")
    return f"{name} {is_worker()} {os.environ['OMP_NUM_THREADS']}"


def lines(log: Path, word: str) -> list[str]:
    return [x for x in log.read_text().splitlines() if x.startswith(word)] if log.exists() else []


def nodes(log: Path) -> set[str]:
    """Nodes where work has begun."""
    return {line.split()[2] for line in lines(log, "begun")}


@pytest.mark.slow
def test_a_dead_node_costs_its_work_once(cluster, tmp_path):
    log = tmp_path / "log"

    def work(item: int) -> int:
        if item == 7:
            raise StudyError("1.2.7", "always bad")
        note(log, str(item), 0.3)
        until = time.monotonic() + 60
        while item == 0 and len(nodes(log)) < 2 and time.monotonic() < until:
            time.sleep(0.1)  # a worker of the new node takes its time to start
        return item * item

    # Long tasks first: a chain on each node, one of them cut in its second link.
    tasks = {
        f"{chain}{k}": Task(
            note, (log, f"{chain}{k}", 0.6), after=(f"{chain}{k - 1}",) if k else ()
        )
        for k in range(3)
        for chain in "ab"
    }
    killer = lose_second_node(cluster, lambda: len(nodes(log)) == 2)
    results = run_tasks(tasks, title="chains", backend="ray")
    killer.join()
    assert results == {name: f"{name} True 1" for name in tasks}
    ended = [line.split()[1] for line in lines(log, "ended")]
    assert sorted(set(ended)) == sorted(tasks)
    assert all(
        ended.index(f"{chain}{k}") < ended.index(f"{chain}{k + 1}")
        for chain in "ab"
        for k in (0, 1)
    )
    begun = [line.split()[1] for line in lines(log, "begun")]
    assert len(begun) <= len(tasks) + 1, "only what the node had in hand ran again"

    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    cluster.wait_for_nodes()
    log.unlink()
    killer = lose_second_node(cluster, lambda: len(nodes(log)) == 2)
    items = {f"1.2.{i}": i for i in range(TASKS)}
    outcome = map_studies(work, items, backend="ray", title="ray")
    killer.join()
    expected = {uid: i * i for uid, i in items.items() if i != 7}
    assert outcome.results == expected and list(outcome.results) == list(expected)
    assert outcome.failures == {"1.2.7": "study 1.2.7: always bad"}

    def bad() -> None:
        raise DataError("what is wrong")

    with pytest.raises(DataError, match="what is wrong"):
        run_tasks({"a": Task(bad), "b": Task(bad, after=("a",))}, title="bad", backend="ray")

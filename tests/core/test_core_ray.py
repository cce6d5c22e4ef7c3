"""The same map on a real two-node Ray cluster, one node of which dies half-way."""

import os
import threading
import time

import pytest

from cspine_kit.core.errors import StudyError
from cspine_kit.core.execution import map_studies

ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'cspine-kit[ray]')")
TASKS = 24


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    memory = 80 << 20
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory}
    )
    made.second = made.add_node(num_cpus=1, object_store_memory=memory)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_dead_node_changes_nothing(cluster, tmp_path):
    def work(item: int) -> int:
        if item == 7:
            raise StudyError("1.2.7", "always bad")
        with (tmp_path / "log").open("a") as handle:
            handle.write(f"{item} {ray.get_runtime_context().get_node_id()}\n")
        time.sleep(0.3)
        return item * item

    items = {f"1.2.{i}": i for i in range(TASKS)}
    expected = {f"1.2.{i}": i * i for i in range(TASKS) if i != 7}

    def kill_half_way():
        while not (log := tmp_path / "log").exists() or len(log.read_text().split()) < TASKS:
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    outcome = map_studies(work, items, backend="ray", title="ray")
    killer.join()
    assert outcome.results == expected and list(outcome.results) == list(expected)
    assert outcome.failures == {"1.2.7": "study 1.2.7: always bad"}
    deadline = time.monotonic() + 30
    while sum(node["Alive"] for node in ray.nodes()) > 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert sum(node["Alive"] for node in ray.nodes()) == 1
    nodes = {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}
    assert len(nodes) == 2, "both nodes worked"

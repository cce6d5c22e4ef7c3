"""A strict part of the fault matrix, whose whole is tests/benchmarks/bench_kernel_faults.py."""

import shutil
import subprocess
from pathlib import Path

import cells_machine
import cells_models
import cells_studies
import faults
import pytest
from matrix import KINDS, MATRIX, STAGES

pytestmark = pytest.mark.slow

MOUNTS = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "mount -t tmpfs x /mnt"]

SHORT = [
    *(("listing", kind) for kind in ("damaged", "error", "hangs")),
    *(("headers", kind) for kind in ("missing", "hangs")),
    *(("pixels", kind) for kind in ("missing", "dies", "no room")),
    *(("bundle", kind) for kind in ("error", "dies")),
    *(("loading", kind) for kind in ("damaged", "missing", "error")),
    *(("networks", kind) for kind in ("damaged", "missing", "hangs", "dies", "no room")),
    *(("stack", kind) for kind in ("damaged", "missing", "error", "dies")),
    *(("writing", kind) for kind in ("damaged", "error", "dies")),
]


@pytest.fixture(scope="module", name="ground")
def _ground(run, tmp_path_factory) -> faults.Ground:
    """The tiny bundle and four sound studies, on one disk with the work."""
    work = tmp_path_factory.mktemp("faults")
    studies = tuple(
        Path(shutil.copytree(source, work / "studies" / source.name))
        for source in sorted((run / "competition" / "test_images").iterdir())
    )
    return faults.Ground(run / "oof" / "tiny" / "bundle", studies, work)


def accept(count: faults.Count) -> None:
    """The fault was tried, every run ended with a valid submission, nobody else paid."""
    assert count.tried > 0, f"{count.fault}: was not tried"
    assert count.valid == count.runs, f"{count.fault}: {count.remark}"
    assert count.lost == 0, f"{count.fault}: {count.remark}"


def test_every_cell_of_the_matrix_is_there():
    assert set(MATRIX) == {(stage, kind) for stage in STAGES for kind in KINDS}


@pytest.mark.parametrize(("stage", "kind"), SHORT)
def test_a_fault_costs_itself_alone(ground, stage, kind):
    accept(MATRIX[stage, kind](ground))


def test_random_bytes_cost_only_their_own_study(ground):
    accept(cells_studies.corrupted(ground, 20, seed=3))


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_a_file_of_the_bundle_costs_no_study(ground, harm):
    """The first six are config, manifest and weights of one member, and their copies."""
    accept(getattr(cells_models, f"bundle_{harm}")(ground, 6))


def test_a_killed_reading_process_costs_at_most_its_study(ground):
    accept(cells_machine.killed_workers(ground))


def test_a_full_disk_keeps_the_priors(ground):
    if subprocess.run(MOUNTS, capture_output=True, check=False).returncode:
        pytest.skip("mounts in a namespace are not allowed here")
    accept(cells_machine.full_disk(ground))


def test_a_clock_that_jumps_changes_nothing(ground):
    accept(cells_machine.clock_jumps(ground))


def test_the_count_itself_is_strict(ground):
    """Other rows, a missing study and no submission all count; nothing tried is no success."""
    ground.reference()
    result = ground.sound["run"]
    other = faults.Result(result.rows + 1e-3, result.events)
    assert ground.differing(result, ["1.1", "1.2"]) == []
    assert ground.differing(other, ["1.1", "1.2"]) == ["1.1", "1.2"]
    assert ground.differing(faults.Result(None, result.events), ["1.1"]) == ["1.1"]
    assert faults.count_rows("x", 1, ground, other, ["1.1"]).lost == 1
    assert faults.count_rows("x", 1, ground, result, ["1.1"], victims=["1.99"]).lost == 1
    assert faults.count_sources("x", 1, result, ["1.1", "1.99"]).lost == 1
    headers = result.events.studies.assign(source="header")
    fallen = faults.Result(result.rows, faults.KernelEvents(headers, {}, []))
    count = faults.count_sources("x", 1, fallen, ["1.1"])
    assert count.lost == 1 + len(headers), "a fallback, and all of them without a cause"
    competition = ground.competition("strict", 2)
    (competition / "out").mkdir()
    (competition / "out" / "submission.csv").write_text("row_id,fractured\n")
    broken = faults.read_result(competition, competition / "out" / "submission.csv")
    assert broken.rows is None and "missing rows" in broken.fault
    assert not faults.count_one("x", 1, broken, []).ok
    assert not faults.Count("x", 0, 1, 1, 0).ok
    good, bad = faults.Count("x", 1, 1, 1, 0), faults.Count("x", 1, 1, 1, 2, "why")
    assert faults.altogether("x", [good, bad]) == faults.Count("x", 2, 2, 2, 2, "why")

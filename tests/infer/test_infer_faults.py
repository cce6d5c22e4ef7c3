"""A short, strict part of the counted campaign (tests/benchmarks/bench_kernel_faults.py)."""

import shutil
import subprocess
from pathlib import Path

import faults
import pytest

MOUNTS = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "mount -t tmpfs x /mnt"]


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


def test_random_bytes_cost_only_their_own_study(ground):
    accept(faults.corrupted(ground, 20, spared=4, seed=3))


def test_files_that_vanish_cost_only_their_own_study(ground):
    accept(faults.vanishing(ground, 16))


def test_a_killed_worker_costs_at_most_its_study(ground):
    accept(faults.killed_workers(ground, 24, kills=2))


def test_a_batch_that_does_not_fit_is_halved(ground):
    accept(faults.memory_runs_out(ground, 3, "test_resnet"))


def test_nan_from_a_member_costs_no_study(ground):
    accept(faults.poisoned(ground, 2, "efficientnet"))


def test_a_full_disk_keeps_the_priors(ground):
    if subprocess.run(MOUNTS, capture_output=True, check=False).returncode:
        pytest.skip("mounts in a namespace are not allowed here")
    accept(faults.full_disk(ground, 20, 16, rows_fit=False))


def test_a_disk_that_is_full_for_a_while_costs_nothing(ground):
    accept(faults.disk_full_for_a_while(ground, 20))


def test_a_clock_that_jumps_changes_nothing(ground):
    accept(faults.clock_jumps(ground, 4))


def test_sigterm_leaves_finished_rows_and_no_helpers(ground):
    accept(faults.terminated(ground, 16, after=4))


def test_the_count_itself_is_strict(ground):
    """Other rows, a missing study and no submission all count; nothing tried is no success."""
    ground.reference()
    result = ground.sound["run"]
    other = faults.Result(result.rows + 1e-3, result.events)
    assert ground.differing(result, ["1.1", "1.2"]) == []
    assert ground.differing(other, ["1.1", "1.2"]) == ["1.1", "1.2"]
    assert ground.differing(faults.Result(None, result.events), ["1.1"]) == ["1.1"]
    competition = ground.competition("strict", 2)
    (competition / "out").mkdir()
    (competition / "out" / "submission.csv").write_text("row_id,fractured\n")
    broken = faults.read_result(competition, competition / "out" / "submission.csv")
    assert broken.rows is None and "missing rows" in broken.fault
    assert not faults.count_one("x", 1, broken, []).ok
    assert not faults.Count("x", 0, 1, 1, 0).ok

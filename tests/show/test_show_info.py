"""`cspine info`: what is stale when the config changed, and how fast the machine is."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cspine_kit.cli import main
from cspine_kit.core import execution
from cspine_kit.core.config import load_config, resolved_yaml
from cspine_kit.core.execution import measure_gflops, usable_cores
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.resolved import finish
from cspine_kit.vision.names import VERTEBRA, WEIGHTS_FILE

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path("configs/tiny.yaml")


@pytest.fixture(name="made")
def _made(tmp_path, monkeypatch) -> RunPaths:
    """A working folder in which every stage of the tiny config left its files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "base.yaml", tmp_path / "configs")
    shutil.copy(ROOT / "tests" / "tiny.yaml", tmp_path / "configs")
    monkeypatch.setattr("cspine_kit.show.info.measure_gflops", lambda: 12.34)
    config, paths = load_config(CONFIG), RunPaths(Path("oof/tiny"))
    submissions, folds = Path("submissions/tiny"), config.folds.n
    models = [
        paths.model(member, fold) / WEIGHTS_FILE
        for member in (VERTEBRA, *config.members)
        for fold in range(folds)
    ]
    in_order = [
        config.competition.dir / "train.csv",
        *(paths.table("slices"), paths.table("studies"), paths.folds, paths.table("coarse")),
        *(*models[:folds], paths.table("fine"), *models[folds:]),
        *(paths.table("oof_slices"), paths.stack / "scores.csv"),
        *(paths.bundle / "manifest.json", submissions / "submission.csv"),
        submissions / "results.csv",
    ]
    for second, file in enumerate(in_order):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        os.utime(file, (second, second))
    (paths.bundle / "config.yaml").write_text(resolved_yaml(config))
    finish(config, paths, "oof")
    finish(config, paths, "stack")
    return paths


def edit(old: str, new: str) -> None:
    text = CONFIG.read_text()
    assert old in text
    CONFIG.write_text(text.replace(old, new))


def info(capsys) -> dict:
    capsys.readouterr()
    assert main(["info", "--config", str(CONFIG), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def states(state: dict) -> dict[str, str]:
    return {name: stage["state"] for name, stage in state["stages"].items()}


def test_a_finished_run_is_done(made, capsys):
    state = info(capsys)
    assert set(states(state).values()) == {"done"}
    assert (state["config_changed"], state["changed_parts"], state["next"]) == (False, [], None)


VOLUMES = ("field_mm: 112}\nmodel", "field_mm: 113}\nmodel")
ROUNDS = ("rounds: 20", "rounds: 30")


@pytest.mark.parametrize(
    ("change", "part", "stale"),
    [
        (("test_efficientnet}", "test_efficientnet, epochs: 3}"), "members", ["oof", "bundle"]),
        (VOLUMES, "volumes.fine", ["oof", "bundle"]),
        (ROUNDS, "stack", ["stack", "bundle"]),
        (("kernel: cspine-kit-tiny", "kernel: other"), None, ["bundle"]),
    ],
)
def test_what_a_change_of_the_config_makes_stale(made, capsys, change, part, stale):
    edit(*change)
    state = info(capsys)
    assert [name for name, status in states(state).items() if status != "done"] == stale
    assert state["changed_parts"] == ([part] if part else [])
    assert state["config_changed"] is (part is not None)
    command = {"oof": "make oof", "stack": "make stack", "bundle": "make kernel"}[stale[0]]
    assert state["next"] == f"{command} CONFIG={CONFIG}"
    assert main(["info", "--config", str(CONFIG)]) == 0
    assert (f"did not end ({part})" in capsys.readouterr().out) is (part is not None)


READERS = [
    ["bundle"],
    ["kernel"],
    ["kernel", "--out", "there/rows.csv"],
    ["push", "--dry-run"],
    ["push"],
    ["score"],
    ["info"],
]


@pytest.mark.parametrize("verb", READERS, ids=" ".join)
def test_a_verb_that_only_reads_does_not_hide_that_the_config_changed(made, capsys, verb):
    edit(*ROUNDS)
    before = made.resolved_config.read_bytes()
    main([*verb, "--config", str(CONFIG)])
    assert made.resolved_config.read_bytes() == before
    assert info(capsys)["changed_parts"] == ["stack"]


@pytest.mark.parametrize("verb", [["index"], ["folds"], ["cache"], ["train", "--member", "x"]])
def test_a_verb_that_makes_a_part_never_says_that_all_is_made(made, capsys, verb):
    """The verbs fail here, as the competition is not whole: what they began counts as changed."""
    edit(*VOLUMES)
    assert main([*verb, "--config", str(CONFIG)]) == 1
    assert info(capsys)["changed_parts"] == ["volumes.fine"]
    edit(*reversed(VOLUMES))
    assert info(capsys)["changed_parts"] == ["volumes.fine"]


def test_a_stack_on_tables_of_an_older_config_says_so(made, caplog):
    edit(*VOLUMES)
    made.table("oof_slices").unlink()
    assert main(["stack", "--config", str(CONFIG)]) == 1
    assert (
        "not made from this config (volumes.fine); make oof brings them up to date" in caplog.text
    )


def test_a_run_folder_without_a_record_is_of_an_unfinished_run(made, capsys):
    made.resolved_config.unlink()
    state = info(capsys)
    assert state["config_changed"] is True and states(state)["oof"] == "stale"


def test_the_speed_of_the_machine_is_told_in_both_forms(made, capsys):
    assert info(capsys)["machine"] == {"cores": usable_cores(), "gflops": 12.3}
    assert main(["info", "--config", str(CONFIG)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert f"{usable_cores()} cores, 12 GFLOP/s (2048 x 2048 float32 product" in first


def test_gflops_are_operations_over_the_seconds_of_the_fastest_product(monkeypatch):
    clock = iter([0.0, 0.0, 1.0, 1.5, 1.6, 2.0, 2.25, 5.0, 6.0])
    monkeypatch.setattr(execution.time, "perf_counter", lambda: next(clock))
    assert measure_gflops(side=256, seconds=3.0) == pytest.approx(2 * 256**3 / 0.25 / 1e9)

"""Options that stand beside one another: obeyed, or refused by name before anything runs."""

import argparse
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from cspine_kit.cli import VERBS, main
from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.runs import read_json
from cspine_kit.infer import run as kernel_run

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ["--config", "configs/tiny.yaml"]
VALUES = {
    "--config": "configs/tiny.yaml",
    "--headers": "headers.parquet",
    "--labels": "train.csv",
    "--truth": "solution.csv",
    "FILE": "submission.csv",
    "--out": "there",
    "--difficulty": "easy",
    "--variety": "0.0",
    "--hostile": None,
    "--masked": "0.0",
    "--boxed": "0.0",
}
"""What is given for an option; 0, which is false and still given, for all others."""

NEEDED = {"phantom": ["--out", "there"]}
PAIRS = [
    (name, option, other)
    for name, verb in VERBS.items()
    for option, others in verb.apart.items()
    for other in others
]

VALUES |= dict.fromkeys(("--train", "--submit", "--wait", "--scores"), "")  # flags
NEEDED["push"] = ["--config", "configs/tiny.yaml"]


def spell(option: str) -> list[str]:
    """An option as it is typed."""
    value = VALUES.get(option, "0")
    return [part for part in (option if option.startswith("--") else None, value) if part]


@pytest.fixture(name="folder")
def _folder(tmp_path, monkeypatch) -> Path:
    """A working folder with the tiny config."""
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "base.yaml", tmp_path / "configs")
    shutil.copy(ROOT / "tests" / "tiny.yaml", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "option", "other"), PAIRS)
def test_two_options_that_do_not_go_together_are_both_named(folder, capsys, name, option, other):
    assert main([name, *NEEDED.get(name, []), *spell(option), *spell(other)]) == 1
    message = capsys.readouterr().err
    shown = f"{other} {VALUES.get(other, '0')}".strip()
    assert message.startswith(f"error: {name}: {shown} ")
    assert f"beside {option};" in message
    assert [path.name for path in folder.iterdir()] == ["configs"]


def test_what_was_given_can_be_told_from_what_was_not():
    """Options that are kept apart have no default that would look like something given."""
    for name, verb in VERBS.items():
        apart = {*verb.apart, *(other for others in verb.apart.values() for other in others)}
        parser = argparse.ArgumentParser()
        verb.arguments(parser)
        for option in apart:
            default = parser.get_default(option.lstrip("-").replace("-", "_").lower())
            assert default is None or default is False, f"{name} {option}"


@pytest.fixture(name="ran")
def _ran(folder, monkeypatch) -> list[dict]:
    """What `run_kernel` was called with; it writes a file and nothing else."""
    calls = []

    def fake(competition, bundle, out, *, hours=None):
        calls.append({"competition": competition, "bundle": bundle, "out": out, "hours": hours})
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f"{len(calls)}\n")
        return kernel_run.KernelReport(1, {"image": 1}, {}, 1.0)

    monkeypatch.setattr(kernel_run, "run_kernel", fake)
    return calls


OWN = {
    "competition": Path("competition"),
    "bundle": Path("oof/tiny/bundle"),
    "out": Path("submissions/tiny/submission.csv"),
    "hours": None,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hours": 1.5},
        {"out": Path("mine/rows.csv")},
        {"bundle": Path("other/bundle")},
        {"competition": Path("other/competition")},
        {"hours": 0.5, "out": Path("a.csv"), "bundle": Path("b"), "competition": Path("c")},
    ],
)
def test_the_kernel_of_a_config_obeys_what_is_given_beside_it(ran, changes):
    options = [part for name, value in changes.items() for part in (f"--{name}", str(value))]
    assert main(["kernel", *CONFIG, *options]) == 0
    assert ran == [OWN | changes]
    marker = read_json((OWN | changes)["out"].with_name("kernel.json"))
    assert marker["hours"] == changes.get("hours") and marker["rows"] == 1


def test_a_kernel_run_is_known_by_its_time_limit_and_its_out(ran, capsys):
    limits = [[], [], ["--hours", "1"], ["--hours", "1"], ["--hours", "2"], []]
    for options in limits:
        assert main(["kernel", *CONFIG, *options]) == 0
    assert [call["hours"] for call in ran] == [None, 1.0, 2.0, None]
    assert capsys.readouterr().out.count("is up to date") == 2
    for _ in range(2):
        assert main(["kernel", *CONFIG, "--out", "there/rows.csv"]) == 0
    assert len(ran) == 5 and Path("there/kernel.json").exists()
    assert main(["kernel", *CONFIG]) == 0
    assert len(ran) == 5, "the submission of the config itself is still up to date"


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "soon"])
def test_a_time_limit_leaves_some_time(folder, capsys, hours):
    with pytest.raises(SystemExit) as end:
        main(["kernel", *CONFIG, f"--hours={hours}"])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "--hours" in message and hours in message


def test_without_a_config_the_kernel_needs_all_three(folder, capsys):
    assert main(["kernel", "--bundle", "b", "--hours", "1"]) == 1
    assert "--competition, --bundle and --out, or --config" in capsys.readouterr().err


def test_a_real_kernel_run_lands_where_it_was_told_to(folder):
    """Nothing is mocked: an empty bundle gives priors for every row, there and nowhere else."""
    rows = [(f"1.2_{target}", "1.2", target) for target in TARGETS]
    table = pd.DataFrame(rows, columns=["row_id", "StudyInstanceUID", "prediction_type"])
    (folder / "asked").mkdir()
    table.to_csv(folder / "asked" / "test.csv", index=False)
    (folder / "empty").mkdir()
    options = ["--competition", "asked", "--bundle", "empty", "--out", "mine/rows.csv"]
    main(["kernel", *CONFIG, *options, "--hours", "0.5"])
    assert pd.read_csv("mine/rows.csv")["row_id"].tolist() == table["row_id"].tolist()
    log = [json.loads(line) for line in Path("mine/kernel_log.jsonl").read_text().splitlines()]
    assert log[-1]["event"] == "end" and log[-1]["sources"] == {"priors": 1}
    assert {path.name for path in folder.iterdir()} == {"configs", "asked", "empty", "mine"}

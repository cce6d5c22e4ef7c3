"""What a run will cost: sums that follow from the config, and speeds measured on this machine."""

import re
from pathlib import Path

import pytest

from cspine_kit.cli import main
from cspine_kit.core.config import load_config
from cspine_kit.show.plan import describe_plan
from cspine_kit.vision.compare.measure import Speed

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_hours_and_seconds_follow_from_speeds():
    config = load_config(CONFIGS / "rsna2022.yaml")
    slow = {name: Speed(10.0, 20.0) for name in config.networks}
    fast = {name: Speed(100.0, 200.0) for name in config.networks}
    hours, seconds = zip(
        *(_told(describe_plan(config, speeds)) for speeds in (slow, fast)), strict=True
    )
    assert hours[0] == pytest.approx(10 * hours[1], rel=0.05)
    assert seconds[0] == pytest.approx(10 * seconds[1], rel=0.01)
    shown = sum(
        network.shown(140.0 if name in config.members else 250.0)
        for name, network in config.networks.items()
    )
    assert seconds[0] == pytest.approx(5 * config.kernel.most_views * shown / 20.0, rel=0.01)


def _told(plan: str) -> tuple[float, float]:
    hours = re.search(r"total about ([\d.e+]+) ", plan)
    seconds = re.search(r"([\d.]+) s of networks per study in the kernel, of 21.6 s", plan)
    return float(hours[1]), float(seconds[1])


def test_a_plan_is_told_and_nothing_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = str(CONFIGS / "demo.yaml")
    assert main(["oof", "--config", config, "--plan"]) == 0
    assert "GPU h, assuming 150 training" in capsys.readouterr().out
    assert main(["oof", "--config", config, "--plan", "--measure", "1"]) == 0
    assert "h here, measured on this machine" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_measuring_goes_with_a_plan(capsys):
    assert main(["oof", "--config", str(CONFIGS / "demo.yaml"), "--measure"]) == 1
    assert "--measure goes with --plan" in capsys.readouterr().err

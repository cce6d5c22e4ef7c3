"""The time governor, on a clock that the test turns."""

import numpy as np
import pytest

from cspine_kit.core.config import load_config
from cspine_kit.infer.chains.governor import Costs, Effort, Governor, ladder

MEMBERS = {"strong": 3.0, "weak": 1.5}
"""Seconds per study, fold and view."""
VERTEBRA_S, READ_S, STACK_S = 1.0, 2.0, 0.2


@pytest.fixture(name="config")
def _config(tmp_path):
    text = (
        "base: base.yaml\nname: t\nmembers: {strong: {}, weak: {}}\n"
        "kernel: {views: 2, degrade: [views, folds, members, stride]}\n"
    )
    from pathlib import Path

    base = Path(__file__).resolve().parents[2] / "configs" / "base.yaml"
    (tmp_path / "base.yaml").write_text(base.read_text())
    (tmp_path / "t.yaml").write_text(text)
    return load_config(tmp_path / "t.yaml")


def cost(effort: Effort, length: float) -> Costs:
    share = effort.folds / effort.stride * length
    members = {m: MEMBERS[m] * effort.views * share for m in effort.members}
    return Costs(READ_S * length, VERTEBRA_S * share, members, STACK_S)


def drive(config, budget_share: float, drift: float = 1.0, together: int = 1):
    """Run a whole test set on a turned clock, so many studies at once; efforts, studies left to
    headers, time left."""
    studies, seed = 200, 0
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(0.4, 2.0, studies)
    now = [0.0]
    efforts = ladder(config, ("weak", "strong"))
    full = cost(efforts[0], 1.0)
    full_s = full.vertebra_s + sum(full.members_s.values())
    need = sum(lengths) * full_s + studies * STACK_S
    deadline = budget_share * need
    files = [round(300 * length) for length in lengths]
    governor = Governor(
        efforts, deadline_s=deadline, files=sum(files), studies=studies, clock=lambda: now[0]
    )
    chosen, headers = [], 0
    for i in range(0, studies, together):
        group = slice(i, i + together)
        given = governor.choose(files[group])
        slow = 1.0 + (drift - 1.0) * i / studies
        for effort, length, n in zip(given, lengths[group], files[group], strict=True):
            if effort is None:
                headers += 1
                continue
            costs = cost(effort, length * slow * rng.uniform(0.8, 1.25))
            compute = costs.vertebra_s + sum(costs.members_s.values()) + costs.stack_s
            now[0] += max(compute, costs.read_s)
            governor.measured(effort, n, costs)
            chosen.append(effort)
    return chosen, headers, deadline - now[0]


def test_the_ladder_gives_up_one_thing_after_the_other(config):
    efforts = ladder(config, ("weak", "strong"))
    both = ("strong", "weak")
    assert efforts == [
        Effort(2, 5, both),
        Effort(1, 5, both),
        Effort(1, 3, both),
        Effort(1, 2, both),
        Effort(1, 1, both),
        Effort(1, 1, ("strong",)),
        Effort(1, 1, ("strong",), 2),
    ]


def test_an_order_of_ones_own_is_followed(config):
    kernel = config.kernel.model_copy(update={"degrade": ("stride", "members")})
    efforts = ladder(config.model_copy(update={"kernel": kernel}), ("strong", "weak"))
    assert efforts[1:] == [
        Effort(2, 5, ("strong", "weak"), 2),
        Effort(2, 5, ("weak",), 2),
    ]


def test_enough_time_means_full_effort_for_everyone(config):
    chosen, headers, left = drive(config, 1.3)
    assert set(chosen) == {ladder(config)[0]} and len(chosen) == 200
    assert headers == 0 and left > 0


@pytest.mark.parametrize("share", [0.9, 0.5, 1 / 3, 0.12])
@pytest.mark.parametrize("drift", [1.0, 1.6])
@pytest.mark.parametrize("together", [1, 4])
def test_less_time_means_less_effort_but_networks_for_everyone(config, share, drift, together):
    chosen, headers, left = drive(config, share, drift, together)
    assert len(chosen) == 200 and headers == 0
    assert len(set(chosen)) > 1 and left > 0


@pytest.mark.parametrize("together", [1, 4])
def test_hardly_any_time_leaves_headers_for_the_rest(config, together):
    chosen, headers, left = drive(config, 0.04, together=together)
    assert chosen and headers
    assert len(chosen) + headers == 200 and left >= 0


def test_no_time_at_all_leaves_the_priors(config):
    efforts = ladder(config)
    governor = Governor(efforts, deadline_s=-1.0, files=100, studies=1, clock=lambda: 0.0)
    assert governor.choose([100]) == [None] and governor.left_s < 0


def test_two_devices_halve_the_time_that_networks_take(config):
    efforts = ladder(config)
    one, two = (
        Governor(efforts, deadline_s=1e9, files=300, studies=1, networks=n, readers=4)
        for n in (1, 2)
    )
    for governor in (one, two):
        governor.measured(efforts[0], 300, cost(efforts[0], 1.0))
    assert one.seconds(efforts[0], 300, 1) == pytest.approx(2 * two.seconds(efforts[0], 300, 1))


def test_a_member_without_a_measurement_counts_as_the_slowest_one(config):
    efforts = ladder(config)
    governor = Governor(efforts, deadline_s=1e9, files=300, studies=1)
    weak = Effort(1, 1, ("weak",))
    governor.measured(weak, 300, Costs(vertebra_s=1.0, members_s={"weak": 6.0}))
    both = Effort(1, 1, ("strong", "weak"))
    assert governor.seconds(both, 300, 1) == pytest.approx(1.1 * (1.0 + 6.0 + 6.0))
    governor.measured(both, 300, Costs(vertebra_s=1.0, members_s={"weak": 6.0, "strong": 2.0}))
    assert governor.seconds(both, 300, 1) == pytest.approx(1.1 * (1.0 + 6.0 + 2.0))


def test_reading_bounds_the_time_where_the_networks_are_fast(config):
    efforts = ladder(config)
    governor = Governor(efforts, deadline_s=1e9, files=300, studies=1)
    governor.measured(efforts[0], 300, Costs(read_s=30.0, vertebra_s=1.0, stack_s=0.1))
    assert governor.seconds(efforts[-1], 300, 1) == governor.seconds(efforts[0], 300, 1) > 30.0


def test_studies_chosen_for_together_share_the_time_that_is_left(config):
    efforts, now = ladder(config), [0.0]
    governor = Governor(efforts, deadline_s=10.0, files=1200, studies=4, clock=lambda: now[0])
    governor.measured(efforts[0], 300, cost(efforts[0], 1.0))
    least, one_s = efforts[-1], governor.seconds(efforts[-1], 300, 1)
    now[0] = 10.0 - 2.5 * one_s
    assert governor.choose([300] * 4) == [least, least, None, None]
    assert (governor.files, governor.studies, governor.latest) == (0, 0, None)
    governor.again(300)
    assert governor.choose([300]) != [None]

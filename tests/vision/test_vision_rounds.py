"""Rounds of pseudo-labels and further networks of the vertebra stage: names, keys, who learns what.

Networks are fakes. Eight studies in two folds, of which two of each fold have no mask.
"""

import numpy as np
import pandas as pd
import pytest
from fake_networks import fake_networks
from run_folder import tiny_config, write_run

from cspine_kit.core.tables import VERTEBRA_COLUMNS, read_table, write_table
from cspine_kit.vision.chain import FoldChain
from cspine_kit.vision.inputs import open_inputs
from cspine_kit.vision.lineage import read_lineage
from cspine_kit.vision.oof import run_oof
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.pseudo import pseudo_labels
from cspine_kit.vision.tasks.task import Lesson

UNMASKED = ("1.2.1", "1.2.3", "1.2.2", "1.2.4")


def with_rounds(n):
    config = tiny_config()
    stage = config.vertebra.model_copy(update={"rounds": n})
    return config.model_copy(update={"vertebra": stage})


@pytest.fixture(name="made")
def _made(monkeypatch):
    return fake_networks(monkeypatch)


@pytest.fixture(name="paths")
def _paths(tmp_path):
    paths = write_run(tmp_path / "run", 8)
    table = read_table(paths.table("studies"), "studies")
    table["has_mask"] = ~table["study_uid"].isin(UNMASKED)
    write_table(table, paths.table("studies"), "studies", "k2")
    slices = read_table(paths.table("slices"), "slices")
    masks = [c for c in slices if c.startswith(("mask_", "spine_"))]
    slices.loc[slices["study_uid"].isin(UNMASKED), masks] = np.nan
    write_table(slices, paths.table("slices"), "slices", "k3")
    return paths


def test_a_round_learns_from_unmasked_studies_of_its_own_chain(made, paths):
    run_oof(with_rounds(2), paths)
    names = ["vertebra", "vertebra_round_1", "vertebra_round_2"]
    assert [made.count_of("train", name) for name in names] == [2, 2, 2]
    for fold, held_out in ((0, "1357"), (1, "2468")):
        others = [f"1.2.{k}" for k in range(1, 9) if str(k) not in held_out]
        masked = [uid for uid in others if uid not in UNMASKED]
        assert read_lineage(paths.model("vertebra", fold)) == masked
        for name in (*names[1:], "a"):
            assert read_lineage(paths.model(name, fold)) == others
    made.clear()
    run_oof(with_rounds(2), paths)
    assert not made
    run_oof(with_rounds(3), paths)
    assert made.count_of("train", *names) == 0 and made.count_of("train", "vertebra_round_3") == 2


def test_rounds_do_not_change_the_key_of_those_before(paths):
    inputs = open_inputs(paths)
    plain, some = (FoldChain(with_rounds(n), paths, inputs, 0) for n in (0, 2))
    assert plain.model_key("vertebra") == some.model_key("vertebra")
    assert some.model_key("vertebra_round_1") != some.model_key("vertebra_round_2")
    uid = "1.2.5"
    assert plain.levels.key(uid) != some.levels.key(uid)
    assert list(some.config.stage) == ["vertebra_round_2"]


def test_a_second_network_speaks_beside_the_first(made, paths):
    config = tiny_config()
    run_oof(config, paths)
    made.clear()
    other = config.vertebra.model_copy(update={"seed": 5})
    both = config.model_copy(update={"vertebra_members": {"vertebra_b": other}})
    run_oof(both, paths)
    assert made.count_of("train", "vertebra") == 0 and made.count_of("train", "vertebra_b") == 2
    assert made.count_of("train", "a", "b") == 4, "levels have another key"
    rows = read_table(paths.table("vertebra"), "vertebra")
    assert rows.groupby("member")["study_uid"].nunique().to_dict() == {
        "vertebra": 8,
        "vertebra_b": 8,
    }
    for name in ("vertebra", "vertebra_b"):
        assert "vertebra_b" in both.networks and (paths.model(name, 0) / "studies.json").exists()


def test_pseudo_labels_are_soft_and_weigh_what_is_believed(tiny, make_volume, config):
    task = task_of(config.vertebra)
    volume = make_volume(0, n_slices=100)
    view = task.view(volume, None)
    z = volume.z_mm
    middle = z[0] - 30.0 - 16.0 * np.arange(7)
    rows = pd.DataFrame({"at_mm": z})
    rows[list(VERTEBRA_COLUMNS)] = 5.0 - 0.5 * np.abs(z[:, None] - middle)
    target, weight = pseudo_labels(view, rows)
    assert target.dtype == weight.dtype == np.float32
    assert target.min() >= 0.0 and target.max() <= 1.0 and 0.0 <= weight.min() <= 1.0
    center = [np.abs(view.at_mm - m).argmin() for m in middle]
    assert target[center, np.arange(7)].min() > 0.9 and weight[center, np.arange(7)].min() > 0.6
    edge = (target > 0.3) & (target < 0.7)
    assert edge.any() and weight[edge].max() < 0.45
    nothing = rows.assign(**dict.fromkeys(VERTEBRA_COLUMNS, -9.0))
    assert not any(part.any() for part in pseudo_labels(view, nothing))


def test_areas_and_the_thoracic_spine_are_learned_where_asked_for(paths):
    inputs = open_inputs(paths)
    config = tiny_config().vertebra.model_copy(update={"target": "area", "thoracic_loss": 0.2})
    task, uid = task_of(config), "1.2.5"
    view = task.view(inputs.volume(uid, "coarse"), None)
    slices = inputs.slices[uid].copy()
    slices["mask_C2"] = [0.0] * 3 + [50.0, 200.0, 100.0] + [0.0] * (len(slices) - 6)
    found = task.targets(view, Lesson(slices, inputs.studies.loc[uid]))
    assert found["visible"][:, 1].max() == 1.0 and 0.25 in found["visible"][:, 1].round(4)
    assert found["thoracic"].shape == (len(view), 1) and np.isnan(found["thoracic"]).all()
    assert task.outputs == {"visible": 7, "box": 4, "thoracic": 1}
    plain = task_of(tiny_config().vertebra)
    assert "thoracic" not in plain.outputs and set(
        plain.targets(view, Lesson(slices, inputs.studies.loc[uid]))
    ) == {"visible", "box", "weight"}

"""Options of the vertebra stage: rounds of pseudo-labels, further networks, targets, headers.

Networks are fakes. Eight studies in two folds, of which two of each fold have no mask.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fake_networks import fake_networks
from run_folder import tiny_config, write_run

from cspine_kit.core.config import PseudoMasksConfig
from cspine_kit.core.numbers import logit, sigmoid
from cspine_kit.core.tables import VERTEBRA_COLUMNS, read_table, write_table
from cspine_kit.show.networks import mask_truth, networks_table
from cspine_kit.vision.inputs.augment import augment_batch
from cspine_kit.vision.inputs.tables import open_inputs
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.oof.chain import FoldChain
from cspine_kit.vision.oof.lineage import read_lineage
from cspine_kit.vision.oof.run import run_oof
from cspine_kit.vision.predict import predict
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.pseudo import pseudo_labels
from cspine_kit.vision.tasks.task import Lesson
from cspine_kit.vision.tasks.vertebra import VertebraTask

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
    table = networks_table(with_rounds(2), paths)
    assert table["networks"].tolist() == names and table["studies"].tolist() == [4] * 3
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
    worth = networks_table(both, paths)
    assert worth["networks"].tolist() == ["vertebra", "vertebra_b", "vertebra + vertebra_b"]
    more = networks_table(both, paths, [["vertebra_b", "vertebra"]])
    assert more["networks"].iloc[2] == "vertebra_b + vertebra"
    shown = ["in_scan_right", "error_median_mm", "near"]
    assert more[shown].iloc[2].tolist() == pytest.approx(worth[shown].iloc[2].tolist())
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


def other_tools(paths, *uids):
    """Table `pseudo_slices`: masks of two slices a level where `write_run` has three."""
    slices = read_table(paths.table("slices"), "slices")
    rows = slices[slices["study_uid"].isin(uids)][["study_uid", "slice_idx"]].copy()
    for k in range(7):
        at = rows["slice_idx"]
        rows[f"mask_C{k + 1}"] = ((at // 3 == k) & (at % 3 < 2)).astype(float)
    rows = rows.assign(spine_y0_mm=40.0, spine_x0_mm=40.0, spine_y1_mm=80.0, spine_x1_mm=80.0)
    write_table(rows, paths.table("pseudo_slices"), "pseudo_slices", "k9")


def test_masks_by_other_tools_teach_with_a_weight_and_are_no_truth(made, paths, monkeypatch):
    config = tiny_config()
    run_oof(config, paths)
    before = read_table(paths.table("levels"), "levels")
    made.clear()
    other_tools(paths, "1.2.1")  # of fold 0: only chain 1 may learn from it
    masks = PseudoMasksConfig(dir="somewhere", weight=0.25)
    own = config.competition.model_copy(update={"pseudo_masks": masks})
    config = config.model_copy(update={"competition": own})
    lessons = {}
    monkeypatch.setattr(
        VertebraTask,
        "targets",
        lambda self, view, lesson: lessons.setdefault(view.volume.study_uid, lesson) and {},
    )
    run_oof(config, paths)
    assert made.count_of("train", "vertebra") == 1
    assert "1.2.1" in read_lineage(paths.model("vertebra", 1))
    assert "1.2.1" not in read_lineage(paths.model("vertebra", 0))
    assert {uid: lesson.weight for uid, lesson in lessons.items() if uid == "1.2.1"} == {
        "1.2.1": 0.25
    }
    assert lessons["1.2.1"].slices["mask_C1"].tolist()[:3] == [1.0, 1.0, 0.0]
    assert all(lesson.weight == 1.0 for uid, lesson in lessons.items() if uid != "1.2.1")
    chain = FoldChain(config, paths, open_inputs(paths), 0)
    assert "1.2.1" not in chain.masked_here, "nothing is scored on it"
    assert mask_truth(read_table(paths.table("slices"), "slices"))["study_uid"].nunique() == 4
    after = read_table(paths.table("levels"), "levels")
    assert after["confidence"].tolist() == before["confidence"].tolist()


def test_areas_and_the_thoracic_spine_are_learned_where_asked_for(paths):
    inputs = open_inputs(paths)
    config = tiny_config().vertebra.model_copy(update={"target": "area", "thoracic_loss": 0.2})
    task, uid = task_of(config), "1.2.5"
    view = task.view(inputs.volume(uid, "coarse"), None)
    slices = inputs.slices[uid].copy()
    slices["mask_C2"] = [0.0] * 3 + [0.25, 1.0, 0.5] + [0.0] * (len(slices) - 6)
    found = task.targets(view, Lesson(slices, inputs.studies.loc[uid]))
    assert found["visible"][:, 1].max() == 1.0 and 0.25 in found["visible"][:, 1].round(4)
    # A slice that shows the usual share of a level, by the network, is one that shows the level.
    said = {"visible": np.tile(logit(np.array([0.43, 0.22, 0.01, 0, 0, 0, 0])), (len(view), 1))}
    rows = task.rows(view, {**said, "box": np.zeros((len(view), 4))})
    probs = sigmoid(rows[list(VERTEBRA_COLUMNS)].to_numpy()[0])
    assert probs[:3] == pytest.approx([0.98, 0.51, 0.023], abs=0.005) and probs[3:].max() < 1e-6
    assert found["thoracic"].shape == (len(view), 1) and np.isnan(found["thoracic"]).all()
    assert task.outputs == {"visible": 7, "box": 4, "thoracic": 1}
    plain = task_of(tiny_config().vertebra)
    assert "thoracic" not in plain.outputs and set(
        plain.targets(view, Lesson(slices, inputs.studies.loc[uid]))
    ) == {"visible", "box", "weight"}


# ---- headers beside the image --------------------------------------------------------------------


@pytest.fixture(name="header", scope="module")
def _header(config):
    return config.vertebra.model_copy(update={"header": True, "size_px": 32})


def test_headers_tell_where_in_the_scan_a_slice_lies(header, make_volume):
    volume = make_volume(0, n_slices=101)
    view = task_of(header).view(volume, None)
    assert view.facts.shape == (len(view), 5)
    above, below, ratio, spacing, thickness = view.facts.T
    assert above + below == pytest.approx(np.full(len(view), 2.0))
    assert ratio == pytest.approx(above / 2.0, abs=1e-6) and above[0] == 0.0 and ratio[-1] == 1.0
    assert set(spacing) == set(thickness) == {np.float32(0.2)}
    plain = header.model_copy(update={"header": False})
    assert task_of(plain).view(volume, None).facts is None
    assert task_of(plain).sight != task_of(header).sight


def test_a_network_reads_headers_beside_the_stack(header, make_volume):
    task, volume = task_of(header), make_volume(0, n_slices=60)
    net = build_net(header, task.outputs, pretrained=False).eval()
    said = predict({0: net}, volume, None, 7)[0].require()
    other = replace(volume, z_mm=volume.z_mm - 40.0)
    alike = predict({0: net}, other, None, 7)[0].require()
    logits = list(VERTEBRA_COLUMNS)
    assert np.allclose(said[logits], alike[logits], atol=1e-4), "places count from the ends"
    longer = replace(volume, z_mm=np.r_[volume.z_mm[:-1], volume.z_mm[-1] - 300.0])
    changed = predict({0: net}, longer, None, 7)[0].require()
    assert not np.allclose(said[logits][:20], changed[logits][:20], atol=1e-3)
    stack = torch.zeros(2, 1, header.channels, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="reads facts beside the stack"):
        net(stack)


def test_facts_turn_with_a_stack_that_is_shown_from_the_feet(header):
    always = header.model_copy(update={"upside_down": 1.0})
    facts = torch.tensor([[0.5, 1.5, 0.25, 0.1, 0.2]])
    stack = torch.zeros(1, 1, header.channels, 32, 32, dtype=torch.uint8)
    batch = {"stack": stack, "facts": facts}
    turned = augment_batch(batch, always, torch.Generator().manual_seed(0))["facts"]
    assert turned.tolist()[0] == pytest.approx([1.5, 0.5, 0.75, 0.1, 0.2])
    never = header.model_copy(update={"upside_down": 0.0})
    assert augment_batch(batch, never, torch.Generator().manual_seed(0))["facts"] is facts

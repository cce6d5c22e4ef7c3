"""The member with one output, and units that are mixed in pairs."""

from pathlib import Path

import pytest
import torch

from cspine_kit.core.config import parse_config, read_config
from cspine_kit.core.config.changes import apply_changes
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS, check_table
from cspine_kit.vision.inputs.augment import augment_batch
from cspine_kit.vision.inputs.mixing import mix_pairs
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.predict import predict
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.plain import PlainTask
from cspine_kit.vision.tasks.slices import SlicesTask
from cspine_kit.vision.training.losses import batch_weights

SMALL = {"backbone": "tiny_cnn", "in_chans": 1, "field_mm": 38.4, "size_px": 16}
SMALL |= {"slice_step_mm": 4.0, "one_output": True}


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_one_output_says_the_same_of_every_level_and_its_levels_say_which(
    config, levels, make_volume, plane
):
    one = config.model.model_copy(update=SMALL | {"plane": plane})
    task, volume = task_of(one), make_volume(0)
    assert isinstance(task, PlainTask) and task.outputs == {"fracture": 1}
    net = build_net(one, task.outputs, pretrained=False).eval()
    rows = predict({0: net}, volume, levels, 8)[0].require()
    common = {"member": "a", "study_uid": volume.study_uid, "model_fold": 0, "fold": 0}
    check_table(rows.assign(**common), "oof_slices")
    assert (rows[list(FRACTURE_COLUMNS)].nunique(axis=1) == 1).all()
    shown = rows[list(VERTEBRA_COLUMNS)].to_numpy() > 0
    if plane == "axial":
        inside = levels["z_bottom_mm"].to_numpy() <= rows["at_mm"].to_numpy()[:, None]
        inside &= rows["at_mm"].to_numpy()[:, None] <= levels["z_top_mm"].to_numpy()
        assert (shown == inside).all()
    else:
        assert shown.all()


def test_it_learns_from_slices_of_which_all_levels_are_known(config):
    task = task_of(config.model.model_copy(update=SMALL))
    visible, fracture = torch.zeros(3, 7), torch.zeros(3, 7)
    fracture[:, 2] = 1.0
    visible[0, 2], visible[1, 3] = 1.0, 1.0
    visible[2, 5] = torch.nan
    batch = {"visible": visible, "fracture": fracture}
    assert float(batch_weights(task, batch)["fracture"]) == 2.0
    sure = {"fracture": torch.tensor([[20.0], [-20.0], [20.0]])}
    assert float(task.losses(sure, batch)["fracture"][0]) < 1e-6
    wrong = {"fracture": -sure["fracture"]}
    assert float(task.losses(wrong, batch)["fracture"][0]) > 10


def test_defaults_leave_networks_as_they_are(config):
    assert isinstance(task_of(config.model), SlicesTask)
    assert not isinstance(task_of(config.model), PlainTask)
    assert config.model.mixup == config.levels.mixup == config.volume.mixup == 0.0


def test_pairs_are_mixed_with_their_labels_and_unknown_stays_unknown():
    stack = torch.arange(6.0).reshape(6, 1, 1, 1, 1)
    visible = torch.eye(6, 7)
    visible[5, 0] = torch.nan
    batch = {"stack": stack, "visible": visible, "level": torch.arange(6)}
    mixed = mix_pairs(batch, 1.0, torch.Generator().manual_seed(0), 0, 6)
    for a, b in ((0, 1), (2, 3), (4, 5)):
        share = float(mixed["stack"][a, 0, 0, 0, 0]) - a
        assert 0 < share < 0.5
        assert float(mixed["stack"][b, 0, 0, 0, 0]) == pytest.approx(b - share, abs=1e-5)
        assert float(mixed["visible"][a, b]) == pytest.approx(share, abs=1e-5)
    assert torch.isnan(mixed["visible"][4:, 0]).all()
    assert torch.equal(mixed["level"], batch["level"])
    still = mix_pairs(batch, 0.0, torch.Generator().manual_seed(0), 0, 6)
    assert torch.equal(still["stack"], stack)
    # A part of the batch mixes as the whole does, but for a pair that is torn.
    part = {name: value[2:5] for name, value in batch.items()}
    own = mix_pairs(part, 1.0, torch.Generator().manual_seed(0), 2, 6)["stack"].ravel()
    assert torch.allclose(own[:2], mixed["stack"].ravel()[2:4]) and float(own[2]) == 4.0


def test_mixing_changes_units_but_not_the_sum_of_a_pair(config):
    batch = {"stack": torch.randint(0, 255, (4, 1, 3, 16, 16), dtype=torch.uint8)}
    plain, on = (config.model.model_copy(update={"mixup": m}) for m in (0.0, 1.0))
    one, two = (
        augment_batch(batch, c, torch.Generator().manual_seed(3))["stack"] for c in (plain, on)
    )
    assert not torch.equal(one, two)
    assert torch.allclose(one[:2].sum(0), two[:2].sum(0), atol=1e-2)


def test_a_member_that_cannot_mix_refuses_the_key():
    path = Path(__file__).resolve().parents[2] / "configs" / "hard-gpu.yaml"
    raw = read_config(path)
    assert parse_config(apply_changes(raw, {"members.*.mixup": 0.5}), path).members["seven"].mixup
    with pytest.raises(ConfigError, match="does nothing for kind 'boxes'"):
        parse_config(apply_changes(raw, {"members.boxed.mixup": 0.5}), path)

"""Where C1 to C7 lie as a second target: it moves with the stack, and validation asks for none."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cspine_kit.core.anatomy import LEVELS, N_LEVELS, TARGETS
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.tables import MASK_COLUMNS
from cspine_kit.data.volumes.volume import Held
from cspine_kit.vision.inputs.augment import augment_batch
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.nets.backbone import check_backbone
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.task import Lesson
from cspine_kit.vision.training.losses import batch_weights, loss_of

SMALL = {"backbone": "tiny_cnn", "in_chans": 3, "field_mm": 38.4, "size_px": 32}
SMALL |= {"slices_per_level": 3, "slice_step_mm": 4.0, "hidden": 8, "mask_loss": 0.5}


@pytest.fixture(name="data")
def _data(config, make_volume):
    """`data(kind, **changes)`: two studies, of which the second has no mask."""
    top = 90.0 - 10.0 * np.arange(N_LEVELS)
    place = {"z_top_mm": top, "z_bottom_mm": top - 10, "center_z_mm": top - 5, "present": True}
    levels = pd.DataFrame({"level": LEVELS, **place, "center_y_mm": 38.0, "center_x_mm": 38.0})

    def make(kind, **changes):
        own = getattr(config, kind) if kind != "slices" else next(iter(config.members.values()))
        keys = type(own).model_fields
        own = own.model_copy(update={k: v for k, v in (SMALL | changes).items() if k in keys})
        task, views = task_of(own), []
        for seed in (0, 1):
            volume = make_volume(seed)
            labels = np.where(volume.voxels.array > 200, 3, 0).astype(np.uint8)
            volume = replace(volume, mask=None if seed else Held(labels))
            slices = pd.DataFrame({"z_mm": volume.z_mm, **dict.fromkeys(MASK_COLUMNS, 1.0)})
            view = task.view(volume, levels)
            label = pd.Series(dict.fromkeys(TARGETS, 1.0))
            view.targets = task.targets(view, Lesson(slices, label))
            views.append(view)
        return StackDataset(views, own)

    return make


def stacked(samples):
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


@pytest.mark.parametrize("kind", ["slices", "levels", "study"])
def test_the_mask_is_learned_in_training_alone(data, kind):
    torch.manual_seed(0)
    found = data(kind)
    middle, last = found.rows.index((0, len(found.views[0]) // 2)), len(found) - 1
    batch = stacked([found[middle], found[last]])
    assert batch["mask_weight"].tolist() == [1.0, 0.0]
    assert batch["mask"][0].any() and not batch["mask"][1].any()
    task = task_of(found.config)
    net = build_net(found.config, task.heads, pretrained=False).train()
    outputs = net(batch["stack"])
    per_unit = found.views[0].per_unit
    assert outputs["mask"].shape == (2, per_unit, 4, 4)
    loss, weight = task.losses(outputs, batch)["mask"]
    assert float(weight) == 1.0 and float(loss.detach()) > 0
    whole = loss_of(task.losses(outputs, batch), batch_weights(task, batch))
    whole.backward()
    assert net.heads["mask"].weight.grad.abs().sum() > 0
    assert "mask" not in net.eval()(batch["stack"])
    assert "mask" not in task.losses(net(batch["stack"]), batch)
    plain = found.config.model_copy(update={"mask_loss": 0.0})
    assert "mask" not in StackDataset(found.views, plain)[0]
    assert "mask" not in build_net(plain, task.heads, pretrained=False).heads


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_the_mask_moves_with_the_stack(data, plane):
    """The disk of the volume is bright where the mask is set, before and after."""
    found = data("levels", plane=plane, slice_step_mm=3.6)
    batch = stacked([found[3]] * 8)
    config = found.config
    still = dict.fromkeys(type(config.augment).model_fields, 0.0)
    still |= {"flip_x": 0.5, "rotate_deg": 20.0, "shift_mm": 5.0}
    config = config.model_copy(update={"augment": config.augment.model_copy(update=still)})
    after = augment_batch(batch, config, torch.Generator().manual_seed(2))
    middle = after["stack"][:, :, 1]
    bright, marked = middle > middle.amax() / 2, after["mask"] > 0.5
    both = (bright & marked).sum() / (bright | marked).sum()
    assert both > 0.8 and not torch.equal(after["mask"], batch["mask"].float())


def test_a_backbone_without_a_map_is_an_error(config):
    member = config.levels.model_copy(update={"mask_loss": 0.1, "size_px": 224, "in_chans": 3})
    for name in ("tiny_cnn", "basic_cnn", "test_resnet", "convnext_atto", "mobilenetv3_large_100"):
        check_backbone(member.model_copy(update={"backbone": name, "pretrained": False}), "a")
    for name in ("vit_tiny_patch16_224", "alexnet"):
        wrong = member.model_copy(update={"backbone": name, "pretrained": False})
        with pytest.raises(ConfigError, match=rf"a\.mask_loss: '{name}' has no feature map"):
            check_backbone(wrong, "a")

"""Members in three dimensions: what they are built of, and that they say the same in any batch."""

import numpy as np
import pytest
import torch

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.errors import ConfigError
from cspine_kit.vision.check import check_config
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.nets.store import load_model, save_model, take_weights
from cspine_kit.vision.predict import predict
from cspine_kit.vision.tasks.kinds import task_of

SMALL = {"backbone": "tiny_3d", "slices_per_level": 5, "size_px": 16, "field_mm": 40.0, "hidden": 8}


@pytest.fixture(name="small")
def _small(config):
    return config.volume.model_copy(update=SMALL)


def test_the_kernel_says_what_the_out_of_fold_run_says(small, levels, make_volume, tmp_path):
    """The stored network, alone or beside others, in whatever batches."""
    net = build_net(small, task_of(small).heads, pretrained=False)
    save_model(net, tmp_path)
    volume = make_volume(0)
    one = predict({0: load_model(tmp_path)}, volume, levels, 64)[0]
    models = {k: load_model(tmp_path) for k in (0, 1)}
    other = predict(models, volume, levels, 5)[1]
    a, b = (said.scores["oof_levels"]["fracture"].to_numpy() for said in (one, other))
    assert np.abs(a - b).max() < 1e-5
    assert len(set(a.tolist())) == N_LEVELS


def test_a_wrong_backbone_is_refused_with_the_nearest(config, small):
    def built(**changes):
        member = small.model_copy(update=changes)
        check_config(config.model_copy(update={"members": {"block": member}}))

    built()
    with pytest.raises(ConfigError, match=r"members\.block\.backbone.*did you mean 'r3d_18'"):
        built(backbone="r3d_81")
    with pytest.raises(ConfigError, match="no pretrained weights of 'tiny_3d'"):
        built(pretrained=True)


def test_torchvisions_networks_take_any_number_of_windows(small):
    windows = ((-500, 1500), (-100, 400))
    config = small.model_copy(update={"backbone": "mc3_18", "windows": windows})
    torch.manual_seed(0)
    net = build_net(config, task_of(config).heads, pretrained=False).train()
    said = net(torch.randint(0, 255, (2, 5, 2, 16, 16), dtype=torch.uint8))
    assert said["level"].shape == (2, 1) and said["slice"].shape == (2, 5)
    sum(value.square().mean() for value in said.values()).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_masks_are_learned_on_the_map_of_every_plane(small):
    config = small.model_copy(update={"mask_loss": 0.1})
    net = build_net(config, task_of(config).heads, pretrained=False)
    stack = torch.zeros(2, 5, 1, 16, 16, dtype=torch.uint8)
    assert net.train()(stack)["mask"].shape[:2] == (2, 5)
    assert "mask" not in net.eval()(stack)


def test_it_starts_from_its_own_weights(small, tmp_path):
    net, other = (build_net(small, task_of(small).heads, pretrained=False) for _ in range(2))
    save_model(net, tmp_path)
    told = take_weights(other, tmp_path / "weights.safetensors")
    assert told.startswith(f"{len(net.state_dict())} of {len(net.state_dict())} tensors")

"""Every network of every shipped config can be built, run and trained for a step."""

from pathlib import Path

import pytest
import torch
from made_elsewhere import made_elsewhere
from torch.utils.data import default_collate

from cspine_kit.core.config import LevelsConfig, ModelConfig, load_config
from cspine_kit.core.errors import ConfigError
from cspine_kit.vision.check import check_config
from cspine_kit.vision.compare.measure import MadeUp
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.nets.heads import inputs_of
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.training.losses import batch_weights, loss_of

FOLDER = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = [*sorted(FOLDER.glob("*.yaml")), *sorted(FOLDER.glob("sources/*.yaml"))]
TINY_PX, LEAST_PX = 64, {"inception_v3": 96}
GRIDS = load_config(FOLDER / "demo.yaml")
"""Small ones: `configs/demo.yaml`."""


def networks() -> dict[str, ModelConfig]:
    """One of each (kind, backbone, channels) by where it stands; small pixels, few stacks."""
    found: dict[str, ModelConfig] = {}
    seen = set()
    for path in CONFIGS:
        for name, network in load_config(path).trained.items():
            small: dict[str, object] = {"pretrained": False}
            small["size_px"] = LEAST_PX.get(network.backbone, TINY_PX)
            if isinstance(network, LevelsConfig):
                small["slices_per_level"] = min(2, network.slices_per_level)
            kind = (network.kind, network.backbone, network.channels)
            if kind not in seen:
                seen.add(kind)
                found[f"{path.stem}-{name}"] = network.model_copy(update=small)
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_can_be_built(path, tmp_path, monkeypatch):
    config = load_config(path)
    made_elsewhere(config, tmp_path)
    monkeypatch.chdir(tmp_path)
    check_config(config)


def test_weights_of_a_run_that_was_not_made_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"members.seven.weights: oof/demo/.*make that run first"):
        check_config(load_config(FOLDER / "hard.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), networks().items(), ids=networks())
def test_one_step_forward_and_backward(name, config):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task = task_of(config)
    study = MadeUp.of(GRIDS)
    view = task.view(study.volumes[task.grid], study.levels)
    view.targets = task.targets(view, study.lesson)
    dataset = StackDataset([view], config)
    items = [len(dataset) // 3, len(dataset) // 2]
    batch = default_collate([dataset[item] for item in items])
    net = build_net(config, task.outputs, pretrained=False).train()
    outputs = net(*inputs_of(batch))
    loss = loss_of(task.losses(outputs, batch), batch_weights(task, batch))
    loss.backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in grads)
    assert len(grads) > 0.9 * len(list(net.parameters()))

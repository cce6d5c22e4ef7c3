"""Every network of every shipped config can be built, run and trained for a step."""

from pathlib import Path

import pytest
import torch

from cspine_kit.core.config import LevelsConfig, ModelConfig, StudyConfig, load_config
from cspine_kit.vision.check import check_config
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.training.losses import batch_weights, loss_of

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
TINY_PX = 64


def networks() -> dict[str, ModelConfig]:
    """One of each (kind, backbone, channels) by where it stands; small pixels, few stacks."""
    found: dict[str, ModelConfig] = {}
    seen = set()
    for path in CONFIGS:
        for name, network in load_config(path).networks.items():
            small: dict[str, object] = {"pretrained": False, "size_px": TINY_PX}
            if isinstance(network, LevelsConfig):
                small["slices_per_level"] = min(2, network.slices_per_level)
            kind = (network.kind, network.backbone, network.channels)
            if kind not in seen:
                seen.add(kind)
                found[f"{path.stem}-{name}"] = network.model_copy(update=small)
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_can_be_built(path):
    check_config(load_config(path))


@pytest.mark.parametrize(("name", "config"), networks().items(), ids=networks())
def test_one_step_forward_and_backward(name, config):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task = task_of(config)
    vertebrae = 7 if isinstance(config, StudyConfig) else 1
    stacks = vertebrae * (config.slices_per_level if isinstance(config, LevelsConfig) else 1)
    net = build_net(config, task.heads, pretrained=False).train()
    shape = (2, stacks, config.channels, TINY_PX, TINY_PX)
    batch = {"stack": torch.randint(0, 255, shape, dtype=torch.uint8)}
    judged = 7 if config.kind == "slices" else vertebrae
    batch |= {"fracture": torch.eye(2, judged), "overall": torch.tensor([[1.0], [0.0]])}
    batch["present"] = torch.ones(2, judged)
    seen = 7 if config.kind in ("slices", "vertebra") else stacks
    batch |= {"visible": torch.ones(2, seen), "box": torch.ones(2, 4), "box_weight": torch.ones(2)}
    outputs = net(batch.pop("stack"))
    loss = loss_of(task.losses(outputs, batch), batch_weights(task, batch))
    loss.backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in grads)
    assert len(grads) > 0.9 * len(list(net.parameters()))

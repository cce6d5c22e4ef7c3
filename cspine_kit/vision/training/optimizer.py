"""What moves the weights: AdamW with groups, OneCycle, an average of the weights.

In: a network, its config. Out: optimizer, schedule, average. Example::

    from cspine_kit.vision.nets.kinds import build_net

    net = build_net(config.vertebra, {"visible": 7}, pretrained=False)
    optimizer, schedule = optimizer_of(net, config.vertebra, steps=100)
    average_of(net, config.vertebra, steps=100).decay           # 0.8: a twentieth of 100 steps
"""

import torch
from timm.optim._param_groups import param_groups_weight_decay
from timm.utils.model_ema import ModelEmaV3

from cspine_kit.core.config import ModelConfig
from cspine_kit.vision.nets.heads import Network

AVERAGED_SHARE = 0.05
"""The average reaches back over at most this share of all steps: it must not remember the
beginning of a short training."""


def optimizer_of(
    model: Network, config: ModelConfig, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.OneCycleLR]:
    """AdamW over backbone and heads with a learning rate each, norms and biases without decay, and
    the OneCycle schedule of all. What does not ask for gradients stands outside.

    Args:
        model: what learns.
        config: its rates.
        steps: that the schedule spans.
    """
    rates = ((model.backbone, config.lr), (model.heads, config.head_lr or config.lr))
    groups = [
        {**group, "lr": lr}
        for part, lr in rates
        for group in param_groups_weight_decay(
            part, config.weight_decay, no_weight_decay_list=_undecayed(part)
        )
        if group["params"]
    ]
    # One kernel for all tensors: of a small network a step in a loop costs as much as a layer.
    optimizer = torch.optim.AdamW(groups, fused=True)
    total = steps + 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[float(group["lr"]) for group in groups],
        total_steps=total,
        # torch divides by the length of the rise less one step; such a training only falls.
        pct_start=0.0 if config.warmup * total == 1.0 else config.warmup,
    )
    return optimizer, schedule


def _undecayed(part: torch.nn.Module) -> set[str]:
    """Other weights that a backbone's author does not decay (position embeddings)."""
    named = getattr(part, "no_weight_decay", None)
    return set(named()) if callable(named) else set()


def average_of(model: Network, config: ModelConfig, steps: int) -> ModelEmaV3:
    """The moving average that is kept: it warms up, and its reach follows the steps there are."""
    decay = min(config.ema_decay, max(0.0, 1.0 - 1.0 / (AVERAGED_SHARE * steps)))
    return ModelEmaV3(model, decay=decay, use_warmup=True)

"""What a fold model takes on the disk while it is trained.

In: the networks that it consists of. Out: 10^9 bytes. Example::

    most_gb([config.vertebra])          # a checkpoint of it twice, and its weights
"""

from collections.abc import Iterable

import torch

from cspine_kit.core.config import ModelConfig
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.tasks.kinds import task_of

CHECKPOINT_BYTES, WEIGHT_BYTES = 16, 4
"""Of a weight: a checkpoint holds it, its average and AdamW's two moments."""


def most_gb(networks: Iterable[ModelConfig]) -> float:
    """The most that networks take that are trained one after the other, in 10^9 bytes.

    A checkpoint is written beside the one before it; of finished networks the weights stay.
    """
    sizes = [_weights(network) for network in networks]
    return (WEIGHT_BYTES * sum(sizes) + 2 * CHECKPOINT_BYTES * max(sizes)) / 1e9


def _weights(config: ModelConfig) -> int:
    """How many numbers a network's state holds; nothing of it is computed."""
    with torch.device("meta"):
        net = build_net(config, task_of(config).outputs, pretrained=False)
    return sum(tensor.numel() for tensor in net.state_dict().values())

"""The network of every kind of task.

In: a network's section of the config, its task's heads. Out: a `Network`. Example::

    build_net(config.vertebra, {"visible": 7, "box": 4}, pretrained=False)
"""

from cspine_kit.core.config import LevelsConfig, ModelConfig, SegmentConfig
from cspine_kit.vision.nets.heads import Network, SliceModel
from cspine_kit.vision.nets.sequence import SequenceModel
from cspine_kit.vision.nets.unet import UNet


def build_net(config: ModelConfig, heads: dict[str, int], *, pretrained: bool) -> Network:
    """A new network.

    Raises:
        DataError: pretrained weights cannot be had.
    """
    net: type[Network] = SequenceModel if isinstance(config, LevelsConfig) else SliceModel
    if isinstance(config, SegmentConfig):
        net = UNet
    return net(config, heads, pretrained=pretrained)

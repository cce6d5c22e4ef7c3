"""The network of every kind of task.

In: a network's section of the config, its task's heads. Out: a `Network`. Example::

    build_net(config.vertebra, {"visible": 7, "box": 4}, pretrained=False)
"""

from cspine_kit.core.config import (
    BoxesConfig,
    LevelsConfig,
    ModelConfig,
    SegmentConfig,
    VolumeConfig,
)
from cspine_kit.vision.nets.backbone import is_backbone
from cspine_kit.vision.nets.heads import Network, SliceModel
from cspine_kit.vision.nets.lesion import LesionModel
from cspine_kit.vision.nets.sequence import SequenceModel
from cspine_kit.vision.nets.unet import UNet
from cspine_kit.vision.nets.volume3d import NAMES, VolumeModel

NETS: dict[type[ModelConfig], type[Network]] = {
    VolumeConfig: VolumeModel,
    LevelsConfig: SequenceModel,
    BoxesConfig: LesionModel,
    SegmentConfig: UNet,
}
"""By kind, the more special one first; of others a `SliceModel`."""


def is_known(config: ModelConfig) -> bool:
    """True where a network's backbone can be built without asking a hub or a folder."""
    name = config.backbone
    return name in NAMES if isinstance(config, VolumeConfig) else is_backbone(name)


def build_net(config: ModelConfig, heads: dict[str, int], *, pretrained: bool) -> Network:
    """A new network.

    Raises:
        DataError: pretrained weights cannot be had.
    """
    net = next((net for kind, net in NETS.items() if isinstance(config, kind)), SliceModel)
    return net(config, heads, pretrained=pretrained)

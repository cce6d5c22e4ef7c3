"""What only this room can say of a config, said before any work: backbones, weights, this machine.

In: a config. Out: nothing, or an error. Example: `check_config(config)`.
"""

from cspine_kit.core.config import Config, VolumeConfig
from cspine_kit.core.errors import ConfigError
from cspine_kit.vision.names import VERTEBRA
from cspine_kit.vision.nets.backbone import check_backbone
from cspine_kit.vision.nets.volume3d import check_volume
from cspine_kit.vision.training.settings import check_training


def check_config(config: Config) -> None:
    """Refuse networks that cannot be built and trainings that this machine cannot do.

    Raises:
        ConfigError: names the key, and the nearest valid choice.
    """
    check_training(config.training)
    for name, network in config.networks.items():
        holder = "members" if name in config.members else "vertebra_members"
        place = name if name == VERTEBRA else f"{holder}.{name}"
        if isinstance(network, VolumeConfig):
            check_volume(network, place)
        else:
            check_backbone(network, place)
        if network.weights_file is not None and not network.weights_file.exists():
            raise ConfigError(
                f"{place}.weights: {network.weights_file} is not there; where it is another run's "
                "(oof/<name>/models/...), make that run first"
            )

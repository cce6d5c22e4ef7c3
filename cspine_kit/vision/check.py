"""What only this room can say of a config, said before any work: backbones, weights, this machine.

In: a config. Out: nothing, or an error. Example: `check_config(config)`.
"""

from pathlib import Path

from cspine_kit.core.config import Config, ModelConfig, VolumeConfig
from cspine_kit.core.errors import ArtifactError, ConfigError
from cspine_kit.vision.names import VERTEBRA
from cspine_kit.vision.nets.backbone import check_backbone
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.nets.store import take_weights
from cspine_kit.vision.nets.volume3d import check_volume
from cspine_kit.vision.tasks.kinds import task_of
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
        if network.weights_file is not None:
            _check_weights(network, network.weights_file, f"{place}.weights")


def _check_weights(network: ModelConfig, file: Path, place: str) -> None:
    """Refuse weights to start from that are not there or fit another network."""
    if not file.exists():
        raise ConfigError(
            f"{place}: {file} is not there; where it is another run's "
            "(oof/<name>/models/...), make that run first"
        )
    try:
        take_weights(build_net(network, task_of(network).outputs, pretrained=False), file)
    except ArtifactError as error:
        raise ConfigError(f"{place}: {error}") from error

"""Files that a shipped config takes from another run, which a test has not made.

In: a config, a folder. Out: untrained weights in every such place below it. Example::

    made_elsewhere(load_config(CONFIGS / "hard.yaml"), tmp_path)
    monkeypatch.chdir(tmp_path)
"""

from pathlib import Path

from safetensors.torch import save_file

from cspine_kit.core.config import Config
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.tasks.kinds import task_of


def made_elsewhere(config: Config, folder: Path) -> None:
    """Stand in for the weights that the config's networks start from; the kit's own are there."""
    for network in config.networks.values():
        file = network.weights_file
        if file is not None and not file.is_absolute():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            net = build_net(network, task_of(network).outputs, pretrained=False)
            save_file(net.state_dict(), folder / file)

"""Pretrained weights that travel: found offline where they were laid out, or refused beforehand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from cspine_kit.core.errors import ConfigError
from cspine_kit.vision.nets.pretrained import needed

OFFLINE = """
import os, sys
from pathlib import Path
from cspine_kit.vision.nets.pretrained import lay_out
os.environ.update(lay_out({"timm/test_resnet.r160_in1k": Path(sys.argv[1])}, Path(sys.argv[2])))
from cspine_kit.vision.nets.backbone import _create
network, _ = _create("test_resnet", 5, pretrained=True)
print({float(v) for p in network.layer1.parameters() for v in p.flatten()})
"""


def test_timm_finds_laid_out_weights_and_asks_no_hub(tmp_path):
    """In one process, as a session trains on one GPU."""
    network = timm.create_model("test_resnet", pretrained=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.25)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    root = str(Path(__file__).resolve().parents[2])
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    env = {**os.environ, **nowhere, "PYTHONPATH": root, "HF_HOME": str(tmp_path / "elsewhere")}
    command = [sys.executable, "-c", OFFLINE, str(tmp_path / "w.safetensors"), str(tmp_path / "h")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{0.25}"


def test_what_has_to_travel_is_named_or_refused(config, tmp_path):
    def with_vertebra(**changes: object):
        vertebra = config.vertebra.model_copy(update={"weights": None} | changes)
        return config.model_copy(update={"vertebra": vertebra})

    assert needed(config) == {}
    found = needed(with_vertebra(backbone="test_resnet.r160_in1k", pretrained=True))
    assert found == {"test_resnet.r160_in1k": "timm/test_resnet.r160_in1k"}
    start = {"pretrained": True, "weights": tmp_path / "own.safetensors"}
    assert needed(with_vertebra(**start)) == {}
    with pytest.raises(ConfigError, match=r"the pretrained weights of googlenet are not"):
        needed(with_vertebra(backbone="googlenet", pretrained=True))

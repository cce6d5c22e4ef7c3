"""A study whose vertebrae are bright disks of known size, and small model configs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from whole_view import whole_view

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.config import Config, ModelConfig, load_config
from cspine_kit.data.volumes.curve import HuCurve
from cspine_kit.data.volumes.lattice import Lattice
from cspine_kit.data.volumes.volume import Held, Volume
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.nets.heads import SliceModel
from cspine_kit.vision.tasks.vertebra import VertebraTask

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="session")
def config() -> Config:
    """The demo's config, its vertebra stage from nothing and of five planes."""
    demo = load_config(CONFIGS / "demo.yaml")
    vertebra = demo.vertebra.model_copy(update={"weights": None, "in_chans": 5})
    return demo.model_copy(update={"vertebra": vertebra})


@pytest.fixture(scope="session")
def tiny(config) -> ModelConfig:
    """A network that trains in seconds."""
    changes = {"backbone": "test_resnet", "epochs": 3, "batch_size": 8, "slices_per_study": 12}
    return next(iter(config.members.values())).model_copy(
        update=changes | {"size_px": 32, "field_mm": 76.8, "lr": 0.005}
    )


@pytest.fixture()
def models(config) -> dict[str, SliceModel]:
    """Three vertebra networks, untrained; the first two see the same patches."""
    small = {"backbone": "test_resnet", "size_px": 32}
    configs = [config.vertebra.model_copy(update=small | {"field_mm": f}) for f in (96, 96, 64)]
    torch.manual_seed(1)
    nets = [SliceModel(c, VertebraTask.heads, pretrained=False).eval() for c in configs]
    return dict(zip("abc", nets, strict=True))


def make_volume(seed: int, n_slices: int = 40, side: int = 64) -> Volume:
    """A (n, side, side) volume, 2 mm slices, in which a disk marks the middle third."""
    rng = np.random.default_rng(seed)
    voxels = rng.integers(20, 60, (n_slices, side, side)).astype(np.uint8)
    y, x = np.mgrid[:side, :side]
    disk = (y - 32) ** 2 + (x - 32) ** 2 < 8**2
    voxels[n_slices // 3 : 2 * n_slices // 3, disk] = 220
    return Volume(
        study_uid=f"1.{seed}",
        voxels=Held(voxels),
        z_mm=100.0 - 2.0 * np.arange(n_slices),
        step_mm=2.0,
        lattice=Lattice((2 * side, 2 * side), (0.6, 0.6), (side, side)),
        corner=(0, 0),
        curve=HuCurve(((-500, 0), (1500, 255))),
    )


@pytest.fixture(name="make_volume", scope="session")
def _make_volume():
    """`make_volume(seed, n_slices=40, side=64)`."""
    return make_volume


@pytest.fixture(scope="session")
def four(tiny) -> StackDataset:
    """Four studies; dropout, augmentation and a BatchNorm at work: 6 steps in each of 2 epochs."""
    config = tiny.model_copy(update={"epochs": 2, "drop_rate": 0.3})
    views = []
    for seed in range(4):
        volume = make_volume(seed)
        visible = np.zeros((len(volume.z_mm), 7), np.float32)
        visible[10:30, seed] = 1
        targets = {"visible": visible, "fracture": np.full_like(visible, seed % 2)}
        views.append(whole_view(volume, config, **targets))
    return StackDataset(views, config)


@pytest.fixture(name="levels")
def _levels() -> pd.DataFrame:
    """Seven levels of 10 mm in the middle of `make_volume`."""
    top = 90.0 - 10.0 * np.arange(N_LEVELS)
    place = {"z_top_mm": top, "z_bottom_mm": top - 10, "center_z_mm": top - 5}
    middle = {"center_y_mm": 38.0, "center_x_mm": 38.0}
    return pd.DataFrame({"level": LEVELS, "present": True, **place, **middle})

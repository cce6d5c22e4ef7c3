"""A batch in pieces, on two processes or without memory for it gives one batch's weights."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folder import write_run
from safetensors.torch import load_file
from torch import nn
from whole_view import whole_view

from cspine_kit.core.config import load_config
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.names import WEIGHTS_FILE
from cspine_kit.vision.nets import heads
from cspine_kit.vision.training import step
from cspine_kit.vision.training.loop import train_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class LayerNormNet(nn.Module):
    """A convolution, a LayerNorm and a linear layer: no statistics of a batch."""

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 8, 5, stride=4)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 12)

    def forward(self, pixels):
        features = self.conv(pixels).relu().mean(dim=(2, 3))
        return self.linear(self.norm(features)).tanh()


def build(config, *, pretrained):
    return LayerNormNet(config.in_chans), 12


def dataset(make_volume):
    """Four studies whose slices show from none to seven levels: every piece weighs differently."""
    first = next(iter(load_config(CONFIGS / "demo.yaml").members.values()))
    config = first.model_copy(
        update={
            **{"epochs": 2, "batch_size": 8, "slices_per_study": 8, "drop_rate": 0.0},
            **{"size_px": 32, "field_mm": 76.8, "clip_norm": 0.5, "lr": 0.01},
        }
    )
    views = []
    for seed in range(4):
        volume = make_volume(seed)
        rows, rng = np.arange(len(volume.z_mm)), np.random.default_rng(seed)
        visible = (rng.random((len(rows), 7)) < rng.random((len(rows), 1)) ** 2).astype(np.float32)
        fracture = np.tile((rng.random(7) < 0.4).astype(np.float32), (len(rows), 1))
        targets = {"visible": visible, "fracture": fracture}
        views.append(whole_view(volume, config, **targets))
    return StackDataset(views, config)


def fit(data, folder, **changes):
    """Weights after two epochs of the LayerNorm network."""
    torch.set_num_threads(1)
    original, heads.create_backbone = heads.create_backbone, build
    training = load_config(CONFIGS / "demo.yaml").training.model_copy(update=changes)
    try:
        train_model(data, data.config, folder, key="k", training=training, seed=3, title="t")
    finally:
        heads.create_backbone = original


def gap(one: Path, other: Path) -> float:
    """The largest difference between the weights of two trainings."""
    a, b = load_file(one / WEIGHTS_FILE), load_file(other / WEIGHTS_FILE)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(name="whole", scope="module")
def _whole(tmp_path_factory, make_volume) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fit(dataset(make_volume), folder)
    return folder


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulated_parts_give_the_weights_of_the_whole_batch(whole, tmp_path, make_volume, parts):
    fit(dataset(make_volume), tmp_path, accumulate=parts)
    assert gap(whole, tmp_path) < 1e-6


def test_a_batch_without_memory_is_halved_with_the_same_result(
    whole, tmp_path, make_volume, monkeypatch, caplog
):
    sizes, forward = [], heads.SliceModel.forward

    def hungry(self, stack):
        sizes.append(len(stack))
        if len(stack) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, stack)

    monkeypatch.setattr(heads.SliceModel, "forward", hungry)
    fit(dataset(make_volume), tmp_path)
    assert gap(whole, tmp_path) < 1e-6
    assert sizes[:3] == [8, 4, 2] and set(sizes[3:]) == {2}
    assert "the batch is computed in 4 parts from here on" in caplog.text


def test_memory_for_not_even_one_stack_is_an_error(tmp_path, make_volume, monkeypatch):
    def hungry(self, stack):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(heads.SliceModel, "forward", hungry)
    with pytest.raises(torch.OutOfMemoryError):
        fit(dataset(make_volume), tmp_path)


def test_a_mean_of_means_would_be_seen(whole, tmp_path, make_volume, monkeypatch):
    """Dividing every piece by its own weight, as is usual, gives other weights."""
    usual = lambda terms, weights: sum(s / w.clamp_min(1) for s, w in terms.values()) / 2  # noqa: E731
    monkeypatch.setattr(step, "loss_of", usual)
    fit(dataset(make_volume), tmp_path, accumulate=2)
    assert gap(whole, tmp_path) > 1e-4


def on_two(code: str) -> list[str]:
    """Run code in two processes as `accelerate launch` starts them; what each wrote to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                **{"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                "PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path]),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=500)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(said)[-4000:]
    return said


FIT = """
from pathlib import Path
from conftest import make_volume
from test_vision_step import dataset, fit
for parts in (1, 2):
    fit(dataset(make_volume), Path({folder!r}) / str(parts), accumulate=parts)
"""


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one_and_the_main_one_tells(whole, tmp_path):
    said = on_two(FIT.format(folder=str(tmp_path)))
    assert gap(whole, tmp_path / "1") < 1e-6
    assert gap(whole, tmp_path / "2") < 1e-6
    assert "t:" in said[0] and "t:" not in said[1], "only the main process draws a bar"


SHORT = """
import torch
from pathlib import Path
from conftest import make_volume
from cspine_kit.vision.nets import heads
from cspine_kit.vision.training.processes import is_main
from test_vision_step import dataset, fit
forward = heads.SliceModel.forward
def hungry(self, stack):
    if len(stack) > 2 and not is_main():
        raise torch.OutOfMemoryError("CUDA out of memory")
    return forward(self, stack)
heads.SliceModel.forward = hungry
fit(dataset(make_volume), Path({folder!r}))
"""


@pytest.mark.slow
def test_a_process_short_of_memory_halves_the_parts_of_both(whole, tmp_path):
    said = on_two(SHORT.format(folder=str(tmp_path)))
    assert gap(whole, tmp_path) < 1e-6
    assert all("no memory for 4 stacks at once" in text for text in said)


TRAIN = """
import logging
from pathlib import Path
from run_folder import tiny_config
from cspine_kit.core.paths import RunPaths
from cspine_kit.vision.oof import run as oof
from cspine_kit.vision.training.processes import is_main
make = oof.Attempts.make
def noted(self, *arguments):
    logging.warning("rows of %s made by %s", self.member, is_main())
    make(self, *arguments)
oof.Attempts.make = noted
paths = RunPaths(Path({folder!r}))
oof.train_member(tiny_config(), paths, "a", 0)
try:
    oof.run_oof(tiny_config(), paths)
except Exception as error:
    logging.warning("%s", error)
"""


@pytest.mark.slow
def test_two_processes_train_a_member_and_what_it_stands_on(tmp_path):
    paths = write_run(tmp_path / "run", 8)
    said = on_two(TRAIN.format(folder=str(paths.root)))
    assert "rows of vertebra made by True" in said[0] and "rows of" not in said[1]
    for name in ("vertebra", "a"):
        files = {path.name for path in paths.model(name, 0).iterdir()}
        wanted = {WEIGHTS_FILE, "model.json", "history.csv", "left_out.json", "run.json"}
        assert wanted <= files and not {f for f in files if f.endswith(".tmp")}
    assert all("accelerate launch `cspine train`" in text for text in said), "oof is for one"

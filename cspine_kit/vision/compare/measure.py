"""How fast this machine trains and runs the networks of a config, before there is any data.

In: a config. Out: a `Speed` for each network. Example::

    speeds = measure_speeds(config, steps=1)
    speeds["vertebra"].train_per_s > 0.0, speeds["vertebra"].predict_per_s > 0.0

Every network makes real steps (forward, backward, optimizer, augmentation) on patches of a made-up
study of the config's own grids, and judges that study as the kernel would. What is not in it:
loading volumes from disk, which workers do beside the steps.
"""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch.utils.data import default_collate
from tqdm import tqdm

from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.config import Config, ModelConfig, TrainingConfig
from cspine_kit.core.tables import BOX_COLUMNS, MASK_COLUMNS, SPINE_BOX_COLUMNS
from cspine_kit.data.centers import LEVEL_EXTENT_MM, LEVEL_PITCH_MM
from cspine_kit.data.levels import MODEL
from cspine_kit.data.volumes.curve import HuCurve
from cspine_kit.data.volumes.lattice import Lattice
from cspine_kit.data.volumes.volume import Held, Volume
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.passes import Drawn, run_model
from cspine_kit.vision.predict import devices
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.task import Lesson
from cspine_kit.vision.training.optimizer import optimizer_of
from cspine_kit.vision.training.settings import precision
from cspine_kit.vision.training.step import Stepper

WARM_STEPS = 2
"""Steps before the clock starts: the first ones plan and allocate."""

SLICE_MM, BEYOND_MM = 0.8, 45.0


@dataclass(frozen=True)
class Speed:
    """Patches per second of one network on this machine: training steps, and judging a study."""

    train_per_s: float
    predict_per_s: float


@dataclass(frozen=True)
class MadeUp:
    """A study of noise with seven vertebrae in it, on the grids of a config."""

    volumes: dict[str, Volume]
    levels: pd.DataFrame
    lesson: Lesson

    @classmethod
    def of(cls, config: Config) -> "MadeUp":
        """With masks, and a fractured C2 with a box on each of its slices."""
        centers = -BEYOND_MM - np.append(0.0, LEVEL_PITCH_MM).cumsum()
        count = int((2 * BEYOND_MM + LEVEL_PITCH_MM.sum()) / SLICE_MM)
        z_mm = -SLICE_MM * np.arange(count, dtype=np.float64)
        nearest = 1 + np.abs(z_mm[:, None] - centers).argmin(axis=1)
        grids = config.volumes
        side = grids.coarse.field_mm
        rng = np.random.default_rng(0)
        volumes = {}
        for name, grid in (("coarse", grids.coarse), ("fine", grids.fine)):
            px = grid.side_px
            frame = (round(side / grid.spacing_mm),) * 2
            corner = (frame[0] - px) // 2
            mask = np.zeros((len(z_mm), px, px), np.uint8)
            third = slice(px // 3, 2 * px // 3)
            mask[:, third, third] = nearest[:, None, None]
            volumes[name] = Volume(
                study_uid="1.0",
                voxels=Held(rng.integers(0, 256, mask.shape, dtype=np.uint8)),
                z_mm=z_mm,
                step_mm=SLICE_MM,
                lattice=Lattice.of(frame, (grid.spacing_mm,) * 2, grid.spacing_mm),
                corner=(corner, corner),
                curve=HuCurve.of(grids.curve),
                mask=Held(mask),
            )
        half = LEVEL_EXTENT_MM / 2
        levels = pd.DataFrame(
            {
                "level": list(LEVELS),
                "present": True,
                "z_top_mm": centers + half,
                "z_bottom_mm": centers - half,
                "center_z_mm": centers,
                "center_y_mm": side / 2,
                "center_x_mm": side / 2,
                "confidence": 1.0,
                "source": MODEL,
            }
        )
        shown = np.abs(z_mm[:, None] - centers) <= half
        slices = pd.DataFrame(100.0 * shown, columns=list(MASK_COLUMNS)).assign(z_mm=z_mm)
        slices[list(SPINE_BOX_COLUMNS)] = np.array([1, 1, 2, 2]) * side / 3
        pitch = grids.fine.spacing_mm
        boxed = shown[:, [LEVELS.index("C2")]]
        slices[list(BOX_COLUMNS)] = np.where(
            boxed, np.array([2, 2, 1, 1]) * side / pitch / 5, np.nan
        )
        label = pd.Series({t: float(t in ("C2", TARGETS[-1])) for t in TARGETS})
        return cls(volumes, levels, Lesson(slices, label))


def measure_speeds(config: Config, steps: int) -> dict[str, Speed]:
    """Patches per second of every network of a config, by its name.

    Args:
        config: its batch sizes and precision count.
        steps: of the optimizer that are timed for each.

    Raises:
        RuntimeError: not even single units of a network fit the memory.
    """
    study = MadeUp.of(config)
    found = {}
    for name, network in tqdm(config.trained.items(), desc="measuring", unit="network"):
        found[name] = _speed(network, study, config.training, config.kernel.batch_size, steps)
    return found


def _speed(
    config: ModelConfig, study: MadeUp, training: TrainingConfig, batch_size: int, steps: int
) -> Speed:
    here = Accelerator(mixed_precision=precision(training), cpu=not torch.cuda.is_available())
    task = task_of(config)
    view = task.view(study.volumes[task.grid], study.levels)
    view.targets = task.targets(view, study.lesson)
    dataset = StackDataset([view], config)
    items = (list(range(len(dataset))) * config.batch_size)[: config.batch_size]
    batch = {
        key: value.to(here.device)
        for key, value in default_collate([dataset[item] for item in items]).items()
    }
    model = build_net(config, task.outputs, pretrained=False)
    model = model.to(here.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = here.prepare(optimizer_of(model, config, steps + WARM_STEPS)[0])
    stepper = Stepper(here, model.train(), optimizer, task, config, training.accumulate)
    for seed in range(WARM_STEPS):
        stepper(batch, seed)
    _settle()
    start = time.perf_counter()
    for seed in range(steps):
        stepper(batch, WARM_STEPS + seed)
    _settle()
    trained = steps * len(items) * view.per_unit / (time.perf_counter() - start)
    model.eval()
    start = time.perf_counter()
    run_model(model, Drawn([view], config.windows, batch_size, devices()[0]))
    return Speed(trained, len(view.patches) / (time.perf_counter() - start))


def _settle() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()

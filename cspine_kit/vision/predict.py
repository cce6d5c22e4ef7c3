"""From a volume and trained networks to rows: the one path of out-of-fold run and kernel.

In: loaded networks, a volume of one study, its levels. Out: rows of each network, or why not.
Example::

    member, *_ = ensemble.config.members
    said = predict({0: ensemble.models[member, 0]}, fine, own_levels, batch_size=16)
    said[0].require().columns[:4]         # plane, position, slice_idx, at_mm

Networks that look at the same patches share them: each is drawn once, while the first network is at
work on those before it.
"""

import logging
import os
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from cspine_kit.core.config import Config
from cspine_kit.core.errors import StudyError
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.volumes.patch import Windows
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.inputs.augment import mirrored, mirrored_outputs
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.nets.heads import Network
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.task import Task

Outputs = dict[str, torch.Tensor]
Name = TypeVar("Name", bound=Hashable)

log = logging.getLogger(__name__)

PLAIN = (False,)
"""Views of a patch: only as it is, not mirrored."""

SIZES = 4
"""Sizes of a last batch on a GPU: a quarter of a whole one, half, three quarters, all."""


def set_device_threads(config: Config, usual: int | None = None) -> str:
    """Set torch's thread count and name the device; the count decides the order of CPU sums.

    Args:
        config: its `execution.threads` counts where it is not 0.
        usual: threads where it is 0; by default the usable cores.
    """
    torch.set_num_threads(config.execution.threads or usual or usable_cores())
    return devices()[0]


def devices() -> list[str]:
    """Every GPU that torch can use, or the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{i}" for i in range(count)] or ["cpu"]


def visible_gpus() -> list[str]:
    """Each GPU that torch can use, as CUDA_VISIBLE_DEVICES names it; none on a CPU."""
    found = [device for device in devices() if device != "cpu"]
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return named[: len(found)] if named != [""] else [str(k) for k in range(len(found))]


def is_out_of_memory(error: Exception) -> bool:
    """True for what torch raises where a GPU or the CPU has no room for a batch."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text


def forward(
    model: Network, batch: torch.Tensor, *facts: torch.Tensor, half: bool = False
) -> Outputs:
    """Head outputs (float32) of one batch on its device; halves of it where memory is too short.

    Args:
        model: on the batch's device.
        batch: units, uint8 (b, patches, channels, rows, cols).
        facts: of their headers (b, n), where the model reads them.
        half: in half precision.
    """
    try:
        with torch.autocast(batch.device.type, torch.float16, enabled=half):
            outputs = model(batch, *facts)
        return {name: value.float() for name, value in outputs.items()}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(batch) == 1:
            raise
    # Outside the handler, so that the failed attempt's tensors are gone.
    if batch.device.type == "cuda":
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    log.warning("%s: no memory for a batch of %d, halved", model.config.backbone, len(batch))
    first, second = (
        forward(model, batch[part], *(f[part] for f in facts), half=half)
        for part in (slice(None, middle), slice(middle, None))
    )
    return {name: torch.cat([first[name], second[name]]) for name in first}


class Drawn:
    """Batches of a view, each drawn once, ahead of whoever looks at them, and kept for the next.

    On a GPU the last batch is filled up with air to one of a few sizes: cuDNN plans every size of a
    batch anew, which takes as long as hundreds of patches.

    Args:
        view: at least one unit.
        windows: of the networks.
        batch_size: patches at once at most, but for a single unit of more.
        device: where the batches go.
    """

    def __init__(
        self,
        view: StudyView,
        windows: Windows,
        batch_size: int,
        device: str,
    ) -> None:
        self._device = device
        self._placed: dict[int, tuple[torch.Tensor, ...]] = {}
        self.count = len(view)
        batch_size = max(1, batch_size // view.per_unit)
        on_gpu = device != "cpu"
        least = max(1, batch_size // SIZES) if on_gpu else 1

        def draw(rows: range) -> tuple[torch.Tensor, ...]:
            parts = [[view.drawn(row, windows) for row in rows]]
            if view.facts is not None:
                parts.append([view.facts[row] for row in rows])
            empty = -len(rows) % least
            filled = [np.stack([*part, *[np.zeros_like(part[0])] * empty]) for part in parts]
            batch = tuple(torch.from_numpy(part) for part in filled)
            return tuple(part.pin_memory() for part in batch) if on_gpu else batch

        self._pool = ThreadPoolExecutor(1)
        self._waiting: list[Future[tuple[torch.Tensor, ...]]] = [
            self._pool.submit(draw, range(start, min(start + batch_size, self.count)))
            for start in range(0, self.count, batch_size)
        ]
        self._pool.shutdown(wait=False)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        for k, waiting in enumerate(self._waiting):
            if k not in self._placed:
                parts = waiting.result()
                self._placed[k] = tuple(p.to(self._device, non_blocking=True) for p in parts)
            yield self._placed[k]

    def stop(self) -> None:
        """Draw no more."""
        self._pool.shutdown(cancel_futures=True)


@torch.inference_mode()
def run_model(
    model: Network, batches: Drawn, *, views: Sequence[bool] = PLAIN
) -> dict[str, FloatArray]:
    """Outputs of every head for every unit, {head: (n, ...)} float64.

    On a GPU in half precision, anew in single precision where that overflows.

    Args:
        model: on the device of the batches.
        batches: of one study.
        views: of each patch, mirrored left to right or not; outputs of several are averaged.
            Networks of which a head speaks of left and right see it as it is.

    Raises:
        ArithmeticError: the network gave NaN or infinity.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    views = PLAIN if task_of(model.config).sided else views
    for half in (True, False) if on_gpu else (False,):
        parts = []
        for batch, *facts in batches:
            seen = [_seen(model, batch, *facts, half=half, mirror=mirror) for mirror in views]
            parts.append({n: torch.stack([one[n] for one in seen]).mean(dim=0) for n in seen[0]})
        joined = {n: torch.cat([part[n] for part in parts])[: batches.count] for n in parts[0]}
        found = {name: value.double().cpu().numpy() for name, value in joined.items()}
        if all(np.isfinite(value).all() for value in found.values()):
            return found
    bad = [name for name, value in found.items() if not np.isfinite(value).all()]
    raise ArithmeticError(f"{model.config.backbone} gave NaN in {', '.join(map(repr, bad))}")


def _seen(
    model: Network, batch: torch.Tensor, *facts: torch.Tensor, half: bool, mirror: bool
) -> Outputs:
    """Outputs of one view of a batch."""
    if not mirror:
        return forward(model, batch, *facts, half=half)
    outputs = forward(model, mirrored(batch, model.config), *facts, half=half)
    return mirrored_outputs(outputs, model.config)


@dataclass(frozen=True)
class Said:
    """What one network says of a study, or the error that kept it from it; and its seconds.

    `scores`: rows of other tables than that of slices, by their names.
    """

    rows: pd.DataFrame | None
    error: Exception | None
    seconds: float
    scores: dict[str, pd.DataFrame] = field(default_factory=dict)

    def require(self) -> pd.DataFrame:
        """The rows.

        Raises:
            Exception: what went wrong.
        """
        if self.rows is None:
            raise self.error or ValueError("neither rows nor an error")
        return self.rows


def predict(
    models: Mapping[Name, Network],
    volume: Volume,
    levels: pd.DataFrame | None,
    batch_size: int,
    *,
    views: Sequence[bool] = PLAIN,
    stride: int = 1,
) -> dict[Name, Said]:
    """What each network says of one study; one that fails costs no other.

    Args:
        models: by any name, all on one device and of one grid.
        volume: the study's volume of that grid.
        levels: its seven levels; None for the vertebra stage.
        batch_size: patches at once; halved where memory does not suffice.
        views: of each patch (`run_model`).
        stride: steps between slices; above 1 only where the kernel's time runs short.
    """
    alike: dict[str, dict[Name, Task]] = {}
    for name, model in models.items():
        task = task_of(model.config)
        alike.setdefault(task.sight, {})[name] = task
    said: dict[Name, Said] = {}
    for tasks in alike.values():
        mine = {name: (models[name], task) for name, task in tasks.items()}
        said |= _predict_alike(
            mine, volume, levels, batch_size=batch_size, views=views, stride=stride
        )
    return {name: said[name] for name in models}


def _predict_alike(
    models: dict[Name, tuple[Network, Task]],
    volume: Volume,
    levels: pd.DataFrame | None,
    *,
    batch_size: int,
    views: Sequence[bool],
    stride: int,
) -> dict[Name, Said]:
    """`predict` of networks that see the same patches; the first one bears the time of drawing."""
    start = time.monotonic()
    model, task = next(iter(models.values()))
    try:
        view = task.view(volume, levels, stride)
    except Exception as error:  # noqa: BLE001 - whoever asked decides what it costs
        return {name: Said(None, error, time.monotonic() - start) for name in models}
    device = str(next(model.parameters()).device)
    batches = Drawn(view, model.config.windows, batch_size, device)
    said: dict[Name, Said] = {}
    for name, (one, its) in models.items():
        rows: pd.DataFrame | None = None
        scores: dict[str, pd.DataFrame] = {}
        fault: Exception | None = None
        try:
            outputs = run_model(one, batches, views=views)
            rows, scores = its.rows(view, outputs), its.scores(view, outputs)
        except ArithmeticError as error:
            fault = StudyError(volume.study_uid, str(error))
        except Exception as error:  # noqa: BLE001 - the other networks still speak
            fault = error
        said[name] = Said(rows, fault, time.monotonic() - start, scores)
        start = time.monotonic()
    batches.stop()
    return said

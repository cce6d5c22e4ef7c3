"""From volumes and trained networks to rows: the one path of out-of-fold run and kernel.

In: loaded networks, volumes of one or several studies, their levels. Out: rows of each network, or
why not. Example::

    member, *_ = ensemble.config.members
    said = predict({0: ensemble.models[member, 0]}, fine, own_levels, batch_size=16)
    said[0].require().columns[:4]         # plane, position, slice_idx, at_mm

Networks that look at the same patches share them: each is drawn once, while the first network is at
work on those before it. Studies that are asked together share batches, and nothing else: one that
fails costs no other.
"""

import os
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pandas as pd
import torch

from cspine_kit.core.config import Config
from cspine_kit.core.errors import StudyError
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.nets.heads import Network
from cspine_kit.vision.passes import PLAIN, Drawn, is_finite, run_model
from cspine_kit.vision.tasks.kinds import task_of

Name = TypeVar("Name", bound=Hashable)
Asked = tuple[Volume, pd.DataFrame | None]
"""A study: its volume of the networks' grid, and its seven levels; None for the vertebra stage."""


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
    """What each network says of one study (`predict_all`); one that fails costs no other.

    Args:
        models: by any name, all on one device and of one grid.
        volume: the study's volume of that grid.
        levels: its seven levels; None for the vertebra stage.
        batch_size: patches at once; halved where memory does not suffice.
        views: of each patch (`run_model`).
        stride: steps between slices; above 1 only where the kernel's time runs short.
    """
    [said] = predict_all(models, [(volume, levels)], batch_size, views=views, stride=stride)
    return said


def predict_all(
    models: Mapping[Name, Network],
    studies: Sequence[Asked],
    batch_size: int,
    *,
    views: Sequence[bool] = PLAIN,
    stride: int = 1,
) -> list[dict[Name, Said]]:
    """What each network says of each study; a network or study that fails costs no other.

    Args:
        models: by any name, all on one device and of one grid.
        studies: they share batches.
        batch_size: patches at once; halved where memory does not suffice.
        views: of each patch (`run_model`).
        stride: steps between slices; above 1 only where the kernel's time runs short.

    Returns:
        For each study what each network says, with its share of the seconds, by units.
    """
    alike: dict[str, dict[Name, Network]] = {}
    for name, model in models.items():
        alike.setdefault(task_of(model.config).sight, {})[name] = model
    found: list[dict[Name, Said]] = [{} for _ in studies]
    for mine in alike.values():
        said = _predict_alike(mine, studies, batch_size=batch_size, views=views, stride=stride)
        for k, part in enumerate(said):
            found[k] |= part
    return [{name: said[name] for name in models} for said in found]


def _predict_alike(
    models: Mapping[Name, Network],
    studies: Sequence[Asked],
    *,
    batch_size: int,
    views: Sequence[bool],
    stride: int,
    spent_s: float = 0.0,
) -> list[dict[Name, Said]]:
    """`predict_all` of networks that see the same patches; the first bears the time of drawing, and
    `spent_s` that were spent before."""
    start = time.monotonic() - spent_s
    first = next(iter(models.values()))
    task = task_of(first.config)
    said: list[dict[Name, Said]] = [{} for _ in studies]
    seen: dict[int, StudyView] = {}
    for k, (volume, levels) in enumerate(studies):
        try:
            seen[k] = task.view(volume, levels, stride)
        except Exception as error:  # noqa: BLE001 - whoever asked decides what it costs
            said[k] = dict.fromkeys(models, Said(None, error, 0.0))
    if not seen:
        return said
    units = sum(map(len, seen.values()))
    shares = {k: len(view) / units for k, view in seen.items()}
    device = str(next(first.parameters()).device)
    batches = Drawn(list(seen.values()), first.config.windows, batch_size, device)
    left = dict(models)
    for name, model in models.items():
        try:
            outputs = run_model(model, batches, views=views)
            told = {
                k: _told(model, view, {head: value[rows] for head, value in outputs.items()})
                for (k, view), rows in zip(seen.items(), batches.studies, strict=True)
            }
        except Exception as error:  # noqa: BLE001 - the other networks still speak
            if len(seen) > 1:
                break
            told = dict.fromkeys(seen, Said(None, error, 0.0))
        spent = time.monotonic() - start
        for k, one in told.items():
            said[k][name] = replace(one, seconds=spent * shares[k])
        del left[name]
        start = time.monotonic()
    batches.stop()
    if left:
        # One study may be to blame, in drawing too: from here on each is asked alone.
        spent = time.monotonic() - start
        for k, share in shares.items():
            [alone] = _predict_alike(
                left,
                [studies[k]],
                batch_size=batch_size,
                views=views,
                stride=stride,
                spent_s=spent * share,
            )
            said[k] |= alone
    return said


def _told(model: Network, view: StudyView, outputs: dict[str, FloatArray]) -> Said:
    """What a network's outputs say of a study; seconds are not known here."""
    bad = [name for name, value in outputs.items() if not is_finite(value)]
    if bad:
        what = f"{model.config.backbone} gave NaN in {', '.join(map(repr, bad))}"
        return Said(None, StudyError(view.volume.study_uid, what), 0.0)
    task = task_of(model.config)
    try:
        return Said(task.rows(view, outputs), None, 0.0, task.scores(view, outputs))
    except Exception as error:  # noqa: BLE001 - it costs this network's word on this study
        return Said(None, error, 0.0)

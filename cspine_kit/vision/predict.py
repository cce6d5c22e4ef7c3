"""From a volume and trained networks to slice rows: the one path of out-of-fold run and kernel.

In: volumes, loaded models. Out: rows of the `vertebra` and `oof_slices` tables for one study.
Example::

    rows = predict_vertebra(ensemble.models["vertebra", 0], volume, batch_size=16)
    levels = decode_study(rows)
    member, *_ = ensemble.config.members
    slices = predict_fracture(ensemble.models[member, 0], fine, levels, 16, views=1)
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch

from cspine_kit.core.anatomy import AXIAL
from cspine_kit.core.config import Config, ModelConfig
from cspine_kit.core.errors import StudyError
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.tables import FRACTURE_COLUMNS, SPINE_BOX_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.levels import decode_levels
from cspine_kit.data.spine import shows_spine, spine_centers
from cspine_kit.data.volumes.patch import draw, from_shares
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.dataset import StudyView, spaced_slices, study_view
from cspine_kit.vision.nets.heads import SliceModel

Outputs = dict[str, torch.Tensor]

log = logging.getLogger(__name__)

VERTEBRA_ROWS_VERSION, FRACTURE_ROWS_VERSION = 1, 1
"""Raised when the same network would give other rows of the same volume: another choice or cut of
slices, other means over views."""


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


def vertebra_view(volume: Volume, config: ModelConfig, stride: int = 1) -> StudyView:
    """What the vertebra stage sees: the middle of a coarse volume, slices a step apart."""
    rows = spaced_slices(volume.z_mm, config.slice_step_mm * stride)
    return study_view(volume, rows, np.tile(volume.middle_mm, (len(rows), 1)), config)


def fracture_view(
    volume: Volume, levels: pd.DataFrame, config: ModelConfig, stride: int = 1
) -> StudyView:
    """What a member sees of a fine volume: the slices of C1..C7, along the spine.

    Raises:
        StudyError: no slice lies inside the levels.
    """
    rows = spaced_slices(volume.z_mm, config.slice_step_mm * stride)
    rows = rows[shows_spine(levels, volume.z_mm[rows])]
    if len(rows) == 0:
        raise StudyError(volume.study_uid, "no slice lies inside the decoded levels")
    return study_view(volume, rows, spine_centers(levels, volume.z_mm[rows]), config)


def _batches(view: StudyView, model: SliceModel, batch_size: int) -> Iterator[torch.Tensor]:
    """Stacks (b, channels, size, size) uint8; the next batch is drawn while one is used."""
    windows = model.config.windows

    def drawn(start: int) -> torch.Tensor:
        patches = view.patches[start : start + batch_size]
        return torch.from_numpy(np.stack([draw(view.volume, patch, windows) for patch in patches]))

    starts = range(0, len(view), batch_size)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(drawn, starts[0])
        for start in starts[1:]:
            batch, following = following.result(), pool.submit(drawn, start)
            yield batch
        yield following.result()


def is_out_of_memory(error: Exception) -> bool:
    """True for what torch raises where a GPU or the CPU has no room for a batch."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text


def forward(model: SliceModel, batch: torch.Tensor) -> Outputs:
    """Head outputs of one batch, float64 on the CPU: half precision on a GPU, halves of the batch
    where memory does not suffice, single precision where half precision overflows."""
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    try:
        placed = batch.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.float16, enabled=on_gpu):
            outputs = model(placed)
        if on_gpu and not all(bool(value.isfinite().all()) for value in outputs.values()):
            outputs = model(placed)
        return {name: value.double().cpu() for name, value in outputs.items()}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(batch) == 1:
            raise
    # Outside the handler, so that the failed attempt's tensors are gone.
    if on_gpu:
        torch.cuda.empty_cache()
    half = len(batch) // 2
    log.warning("%s: no memory for a batch of %d, halved", model.config.backbone, len(batch))
    first, second = forward(model, batch[:half]), forward(model, batch[half:])
    return {name: torch.cat([first[name], second[name]]) for name in first}


@torch.inference_mode()
def run_model(
    model: SliceModel, view: StudyView, batch_size: int, *, views: int = 1
) -> dict[str, FloatArray]:
    """Outputs of every head for every chosen slice, {head: (n, width)} float64.

    Args:
        model: on the device where it is to run.
        view: the slices, at least one.
        batch_size: slices at once; halved where memory does not suffice.
        views: 1 as the slice is; 2 averages its outputs with those of the slice mirrored left to
            right (only for heads that do not speak of left and right).

    Raises:
        StudyError: the network gave NaN or infinity.
    """
    parts: dict[str, list[FloatArray]] = {}
    for batch in _batches(view, model, batch_size):
        outputs = forward(model, batch)
        if views == 2:
            mirrored = forward(model, batch.flip(-1))
            outputs = {name: (value + mirrored[name]) / 2 for name, value in outputs.items()}
        for name, part in outputs.items():
            parts.setdefault(name, []).append(part.numpy())
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    for name, value in joined.items():
        if not np.isfinite(value).all():
            raise StudyError(view.volume.study_uid, f"{model.config.backbone} gave NaN in {name!r}")
    return joined


def predict_vertebra(
    model: SliceModel, volume: Volume, batch_size: int, *, stride: int = 1
) -> pd.DataFrame:
    """Visibility logits and the spine box (mm) of the slices `stride` steps apart."""
    view = vertebra_view(volume, model.config, stride)
    outputs = run_model(model, view, batch_size)
    boxes = [
        from_shares(volume, patch, shares.reshape(2, 2)[:, ::-1]).reshape(4)
        for patch, shares in zip(view.patches, outputs["box"], strict=True)
    ]
    rows = pd.DataFrame(outputs["visible"], columns=list(VERTEBRA_COLUMNS))
    rows[list(SPINE_BOX_COLUMNS)] = np.array(boxes)
    rows.insert(0, "position", view.slice_idx)
    rows.insert(1, "at_mm", view.at_mm)
    return rows


def decode_study(rows: pd.DataFrame) -> pd.DataFrame:
    """Seven ordered levels from the vertebra rows of one study (`data.levels.decode_levels`)."""
    columns = (["at_mm"], VERTEBRA_COLUMNS, SPINE_BOX_COLUMNS)
    at, logits, boxes = (rows[list(names)].to_numpy() for names in columns)
    return decode_levels(at[:, 0], logits, boxes)


def predict_fracture(
    model: SliceModel,
    volume: Volume,
    levels: pd.DataFrame,
    batch_size: int,
    *,
    views: int,
    stride: int = 1,
) -> pd.DataFrame:
    """Visibility and fracture logits of the slices of C1..C7.

    Args:
        model: a fracture model.
        volume: the study's fine one.
        levels: its seven levels.
        batch_size: slices at once.
        views: of each slice (`run_model`).
        stride: steps between slices; above 1 only where the kernel's time runs short.
    """
    view = fracture_view(volume, levels, model.config, stride)
    outputs = run_model(model, view, batch_size, views=views)
    rows = pd.DataFrame(
        np.column_stack([outputs["visible"], outputs["fracture"]]),
        columns=[*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS],
    )
    place = {"plane": AXIAL, "position": view.slice_idx, "slice_idx": view.slice_idx}
    place |= {"at_mm": view.at_mm}
    return pd.concat([pd.DataFrame(place), rows], axis=1)

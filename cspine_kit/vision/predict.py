"""From a volume and trained networks to slice rows: the one path of out-of-fold run and kernel.

In: a `Volume`, loaded models. Out: rows of the `vertebra` and `oof_slices` tables for one study.
Example::

    rows = predict_vertebra(ensemble.models["vertebra", 0], volume, batch_size=16)
    levels = decode_study(rows)
    member, *_ = config.members
    slices = predict_fracture(ensemble.models[member, 0], volume, levels, 16, views=1)
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch

from cspine_kit.core.anatomy import AXIAL
from cspine_kit.core.config import Config
from cspine_kit.core.errors import StudyError
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.tables import FRACTURE_COLUMNS, SPINE_BOX_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.levels import decode_levels
from cspine_kit.data.spine import shows_spine, spine_centers
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.dataset import StudyView, crop_side_px, spaced_slices
from cspine_kit.vision.model import SliceModel

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


def vertebra_view(volume: Volume, model_step_mm: float) -> StudyView:
    """What the vertebra stage sees: the whole cached field, slices a step apart."""
    rows = spaced_slices(volume.z_mm, model_step_mm)
    middle = (np.array(volume.voxels.shape[1:], dtype=np.float64) - 1) / 2
    return StudyView(volume, rows, np.tile(middle, (len(rows), 1)))


def fracture_view(volume: Volume, levels: pd.DataFrame, step_mm: float) -> StudyView:
    """What the fracture stage sees: the slices of C1..C7, cropped along the spine.

    Raises:
        StudyError: no slice lies inside the levels.
    """
    rows = spaced_slices(volume.z_mm, step_mm)
    rows = rows[shows_spine(levels, volume.z_mm[rows])]
    if len(rows) == 0:
        raise StudyError(volume.study_uid, "no slice lies inside the decoded levels")
    centers = volume.to_px(spine_centers(levels, volume.z_mm[rows]))
    return StudyView(volume, rows, centers)


def _batches(view: StudyView, model: SliceModel, batch_size: int) -> Iterator[torch.Tensor]:
    """Stacks (b, in_chans, size, size) uint8 in order; the next batch is cut while one is used."""

    def cut(start: int) -> torch.Tensor:
        rows = range(start, min(start + batch_size, len(view)))
        return torch.from_numpy(np.stack([view.stack(r, model.config) for r in rows]))

    starts = range(0, len(view), batch_size)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(cut, starts[0])
        for start in starts[1:]:
            batch, following = following.result(), pool.submit(cut, start)
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
    view = vertebra_view(volume, model.config.slice_step_mm * stride)
    outputs = run_model(model, view, batch_size)
    side = crop_side_px(volume, model.config)
    corners = np.array([view.corner_px(row, side) for row in range(len(view))])
    x0, y0, x1, y1 = (outputs["box"] * side).T
    first = volume.to_mm(np.column_stack([y0, x0]) + corners)
    last = volume.to_mm(np.column_stack([y1, x1]) + corners)
    rows = pd.DataFrame(outputs["visible"], columns=list(VERTEBRA_COLUMNS))
    rows[list(SPINE_BOX_COLUMNS)] = np.column_stack([first, last])
    rows.insert(0, "position", view.slice_idx)
    rows.insert(1, "at_mm", volume.z_mm[view.slice_idx])
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
        volume: the study.
        levels: its seven levels.
        batch_size: slices at once.
        views: of each slice (`run_model`).
        stride: steps between slices; above 1 only where the kernel's time runs short.
    """
    view = fracture_view(volume, levels, model.config.slice_step_mm * stride)
    outputs = run_model(model, view, batch_size, views=views)
    rows = pd.DataFrame(
        np.column_stack([outputs["visible"], outputs["fracture"]]),
        columns=[*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS],
    )
    place = {"plane": AXIAL, "position": view.slice_idx, "slice_idx": view.slice_idx}
    place |= {"at_mm": volume.z_mm[view.slice_idx]}
    return pd.concat([pd.DataFrame(place), rows], axis=1)

"""From a volume and trained networks to slice rows: the one path of out-of-fold run and kernel.

In: a `Volume`, loaded models. Out: rows of the `vertebra` and `oof_slices` tables for one study.
Example::

    rows = predict_vertebra(model, volume)
    crops = decode_study(rows, volume)
    slices = predict_fracture(model, volume, crops)
"""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cspine_kit.core.config import Config
from cspine_kit.core.errors import StudyError
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.tables import FRACTURE_COLUMNS, SPINE_BOX_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.crops import crop_centers, decode_levels, spine_slices
from cspine_kit.data.volumes import Volume
from cspine_kit.vision.dataset import StudyView, crop_side_px, spaced_slices
from cspine_kit.vision.model import SliceModel

FloatArray = NDArray[np.float64]


def set_device_threads(config: Config) -> torch.device:
    """Set torch's thread count and name the device; the count decides the order of CPU sums."""
    torch.set_num_threads(config.execution.threads or usable_cores())
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_native_px(volume: Volume, cached_px: FloatArray) -> FloatArray:
    """Cached (n, 2) y, x pixel positions in the pixels of the DICOM files."""
    return np.asarray(volume.offset_px) + cached_px * np.asarray(volume.zoom)


def to_cached_px(volume: Volume, native_px: FloatArray) -> FloatArray:
    """Native (n, 2) y, x pixel positions in the pixels of the cached volume."""
    return (native_px - np.asarray(volume.offset_px)) / np.asarray(volume.zoom)


def vertebra_view(volume: Volume, model_step_mm: float) -> StudyView:
    """What the vertebra stage sees: the whole cached field, slices a step apart."""
    rows = spaced_slices(volume.z_mm, model_step_mm)
    middle = (np.array(volume.voxels.shape[1:], dtype=np.float64) - 1) / 2
    return StudyView(volume, rows, np.tile(middle, (len(rows), 1)))


def fracture_view(volume: Volume, crops: pd.DataFrame, step_mm: float) -> StudyView:
    """What the fracture stage sees: the slices of C1..C7, cropped along the spine.

    Raises:
        StudyError: no slice lies inside the levels.
    """
    rows = spine_slices(crops, spaced_slices(volume.z_mm, step_mm))
    if len(rows) == 0:
        raise StudyError(volume.study_uid, "no slice lies inside the decoded levels")
    centers = to_cached_px(volume, crop_centers(crops, volume.z_mm[rows]))
    return StudyView(volume, rows, centers)


@torch.inference_mode()
def run_model(model: SliceModel, view: StudyView, batch_size: int) -> dict[str, FloatArray]:
    """Outputs of every head for every chosen slice, {head: (n, width)} float64.

    Raises:
        StudyError: the network gave NaN or infinity.
    """
    device = next(model.parameters()).device
    parts: dict[str, list[FloatArray]] = {}
    for start in range(0, len(view), batch_size):
        rows = range(start, min(start + batch_size, len(view)))
        batch = torch.from_numpy(np.stack([view.stack(r, model.config) for r in rows]))
        for name, value in model(batch.to(device)).items():
            parts.setdefault(name, []).append(value.double().cpu().numpy())
    outputs = {name: np.concatenate(values) for name, values in parts.items()}
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise StudyError(view.volume.study_uid, f"{model.config.backbone} gave NaN in {name!r}")
    return outputs


def predict_vertebra(model: SliceModel, volume: Volume, batch_size: int) -> pd.DataFrame:
    """Visibility logits and the spine box (native pixels) of the slices a step apart."""
    view = vertebra_view(volume, model.config.slice_step_mm)
    outputs = run_model(model, view, batch_size)
    side = crop_side_px(volume, model.config)
    corners = np.array([view.corner_px(row, side) for row in range(len(view))])
    x0, y0, x1, y1 = (outputs["box"] * side).T
    first = to_native_px(volume, np.column_stack([y0, x0]) + corners)
    last = to_native_px(volume, np.column_stack([y1, x1]) + corners)
    rows = pd.DataFrame(outputs["visible"], columns=list(VERTEBRA_COLUMNS))
    rows[list(SPINE_BOX_COLUMNS)] = np.column_stack([first, last])
    rows.insert(0, "slice_idx", view.slice_idx)
    return rows


def decode_study(rows: pd.DataFrame, volume: Volume) -> pd.DataFrame:
    """Seven ordered levels from the vertebra rows of one study (`data.crops.decode_levels`)."""
    idx = rows["slice_idx"].to_numpy()
    return decode_levels(
        volume.z_mm[idx],
        rows[list(VERTEBRA_COLUMNS)].to_numpy(),
        rows[list(SPINE_BOX_COLUMNS)].to_numpy(),
        idx,
    )


def predict_fracture(
    model: SliceModel, volume: Volume, crops: pd.DataFrame, batch_size: int
) -> pd.DataFrame:
    """Visibility and fracture logits of the slices of C1..C7."""
    view = fracture_view(volume, crops, model.config.slice_step_mm)
    outputs = run_model(model, view, batch_size)
    rows = pd.DataFrame(
        np.column_stack([outputs["visible"], outputs["fracture"]]),
        columns=[*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS],
    )
    rows.insert(0, "z_mm", volume.z_mm[view.slice_idx])
    rows.insert(0, "slice_idx", view.slice_idx)
    return rows

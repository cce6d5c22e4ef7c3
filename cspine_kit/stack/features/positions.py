"""What slice positions along the table say about a scan's protocol.

In: positions, study by study. Out: one value per study and feature. Example::

    >>> z_mm, studies = np.array([9.0, 7.0, 5.0, 8.0, 7.5]), Segments(np.array([0, 3]), 5)
    >>> position_features(z_mm, studies, alone_mm=np.ones(2))["step"].round(3).tolist()
    [2.0, 0.5]
"""

import numpy as np

from cspine_kit.core.numbers import FloatArray, IntArray
from cspine_kit.stack.features.segments import Segments


def decimals(values: FloatArray) -> FloatArray:
    """Digits after the point that a scanner wrote (float32): a site's handwriting, 0..6."""
    digits = np.full(values.shape, 6.0)
    for n in range(5, -1, -1):
        exact = np.abs(values - np.round(values, n)) < 1e-6 * np.maximum(1.0, np.abs(values))
        digits[exact] = n
    return digits


def position_features(
    z_mm: FloatArray, studies: Segments, alone_mm: FloatArray, slice_idx: IntArray | None = None
) -> dict[str, FloatArray]:
    """What slice positions along the table say about a scan's protocol, one value per study.

    Args:
        z_mm: (n,) finite positions, in order (either way) inside each study.
        studies: which rows belong together.
        alone_mm: slice distance of each study, used where it has one slice only.
        slice_idx: native index of each row where slices are left out: gaps are per native slice.
    """
    first = studies.starts
    gap = np.zeros(len(z_mm))
    gap[1:] = np.abs(np.diff(z_mm))
    if slice_idx is not None:
        gap[1:] /= np.maximum(np.diff(slice_idx), 1)
    alone = studies.counts == 1
    gap[first] = np.where(alone, alone_mm, gap[np.minimum(first + 1, len(z_mm) - 1)])
    span = np.maximum(studies.max(gap) + 1.0, 1.0)
    step = studies.quantile(studies.sorted(gap / span[studies.of_row]), 0.5) * span
    irregular = (np.abs(gap - step[studies.of_row]) > 0.05).astype(np.float64)
    low, high = studies.min(z_mm), studies.max(z_mm)
    return {
        "step": step,
        "step_min": studies.min(gap),
        "step_max": studies.max(gap),
        "irregular": studies.mean(irregular),
        "extent": high - low,
        "z_min": low,
        "z_max": high,
        "z_middle": (low + high) / 2.0,
        "z_tenths": np.abs(z_mm[first] - np.round(z_mm[first])),
        "z_decimals": studies.mean(decimals(z_mm)),
    }

"""Ordered levels of one study from per-slice scores, and where a crop of the spine lies.

In: visibility logits and spine boxes on some slices of one study. Out: the seven rows of the
`crops` table and a crop center for any slice. Example::

    crops = decode_levels(z_mm, logits, boxes, slice_idx)       # C1..C7, always seven rows
    centers = crop_centers(crops, z_mm[rows])                    # (n, 2) native pixels

The decode is one pass of dynamic programming: going down, a slice belongs to nothing, then C1, ...,
C7, then nothing again; levels never come back, and the path that explains most visibility wins.
That is what makes levels ordered whatever the network says.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.errors import DataError

FloatArray = NDArray[np.float64]

LEVEL_PITCH_MM: FloatArray = np.array([0.0, 12.0, 23.0, 16.0, 15.0, 14.0, 15.0])
LEVEL_EXTENT_MM: FloatArray = np.array([27.0, 46.0, 27.0, 27.0, 28.0, 28.0, 32.0])
"""Distance of a level's center below the one above it, and the length over which slices show it:
medians of 60 masked studies of the competition. They only place levels that no slice shows."""

LOGIT_LIMIT = 5.0
"""Log-odds beyond this say no more: one overconfident slice cannot outvote its neighbors."""

SKIP_COST = 8.0
"""Log-odds paid per level that a path leaves out between two it visits."""

NECK_PROBABILITY = 0.05
"""A scan in which no slice shows any level with this probability is not taken for a neck."""

SURE_LOGIT = 2.0
"""Logits of a scan whose best one lies below this are lifted to it before decoding: a network far
from what it was trained on is unsure everywhere, yet still right about where. Confidence stays raw.
"""

MIN_CONFIDENCE = 0.2
"""A level whose own slices show it with a lower mean probability counts as unseen."""


def _sigmoid(logits: FloatArray) -> FloatArray:
    return 1.0 / (1.0 + np.exp(-logits))


def decode_path(logits: FloatArray) -> NDArray[np.int64]:
    """Best ordered state of every slice.

    Args:
        logits: (n, 7) visibility log-odds, cranial slice first.

    Returns:
        (n,) with 0 = above C1, 1..7 = C1..C7, 8 = below C7.
    """
    n_states = len(LEVELS) + 2
    scores = np.clip(np.asarray(logits, dtype=np.float64), -LOGIT_LIMIT, LOGIT_LIMIT)
    emission = np.zeros((len(scores), n_states))
    emission[:, 1:-1] = scores
    # What a path leaves out costs all that speaks for it: C1's ring lies around C2's dens, and
    # without this a path could take C2 for both. Out of view above or below nothing speaks.
    evidence = np.concatenate([[0.0], np.maximum(scores, 0.0).sum(axis=0), [0.0]])
    before = np.concatenate([[0.0], np.cumsum(evidence)[:-1]])
    after = evidence.sum() - before - evidence
    states = np.arange(n_states)
    jump = states[None, :] - states[:, None]
    skipped = before[None, :] - before[:, None] - evidence[:, None]
    inside = (states[:, None] >= 1) & (states[None, :] < n_states - 1)
    cost = np.where(jump > 1, skipped + np.where(inside, SKIP_COST * (jump - 1), 0.0), 0.0)
    cost[jump < 0] = np.inf
    best = emission[0] - before
    back = np.zeros((len(scores), n_states), dtype=np.int64)
    for i in range(1, len(scores)):
        candidates = best[:, None] - cost
        back[i] = candidates.argmax(axis=0)
        best = candidates.max(axis=0) + emission[i]
    path = np.empty(len(scores), dtype=np.int64)
    path[-1] = int((best - after).argmax())
    for i in range(len(scores) - 1, 0, -1):
        path[i - 1] = back[i, path[i]]
    return path


def _place_unseen(center: FloatArray, seen: NDArray[np.bool_]) -> FloatArray:
    """Centers (7,) mm with unseen levels put between or beyond the seen ones at typical pitches."""
    typical = -np.cumsum(LEVEL_PITCH_MM)
    known = np.flatnonzero(seen)
    placed = center.copy()
    for level in np.flatnonzero(~seen):
        above, below = known[known < level], known[known > level]
        if len(above) and len(below):
            a, b = above[-1], below[0]
            share = (typical[level] - typical[a]) / (typical[b] - typical[a])
            placed[level] = center[a] + share * (center[b] - center[a])
        else:
            anchor = above[-1] if len(above) else below[0]
            placed[level] = center[anchor] + typical[level] - typical[anchor]
    return placed


def decode_levels(
    z_mm: FloatArray,
    logits: FloatArray,
    boxes: FloatArray,
    slice_idx: NDArray[np.int64],
) -> pd.DataFrame:
    """The seven levels of one study.

    Args:
        z_mm: (n,) positions of the scored slices, descending (cranial first).
        logits: (n, 7) visibility log-odds.
        boxes: (n, 4) spine box y0, x0, y1, x1 in native pixels.
        slice_idx: (n,) native index of the scored slices, ascending.

    Returns:
        Seven rows: level, z0, z1 (first and last native slice that shows the level, inclusive),
        center_z_mm, center_y_px, center_x_px, confidence in [0, 1], source ("model", or
        "interpolated" where no slice shows the level).

    Raises:
        DataError: no slice, or a scan that shows no level at all.
    """
    if len(z_mm) == 0:
        raise DataError("no slice to decode levels from")
    if _sigmoid(logits.max()) < NECK_PROBABILITY:
        raise DataError("no slice shows a cervical level; is this a scan of the neck?")
    lifted = logits + max(0.0, SURE_LOGIT - float(logits.max()))
    path, visible, raw = decode_path(lifted), _sigmoid(lifted), _sigmoid(logits)
    own_of = [np.flatnonzero(path == level + 1) for level in range(len(LEVELS))]
    shown = np.array([visible[own, k].mean() if len(own) else 0.0 for k, own in enumerate(own_of)])
    # At least the level of the best slice is seen: a path through it always pays.
    seen = shown >= min(MIN_CONFIDENCE, shown.max())
    confidence = np.zeros(len(LEVELS))
    center, own_center = np.zeros(len(LEVELS)), np.zeros(len(LEVELS))
    yx = np.zeros((len(LEVELS), 2))
    middle = np.column_stack([boxes[:, [0, 2]].mean(axis=1), boxes[:, [1, 3]].mean(axis=1)])
    z0, z1 = np.zeros(len(LEVELS), dtype=np.int64), np.zeros(len(LEVELS), dtype=np.int64)
    for level in np.flatnonzero(seen):
        own = own_of[level]
        confidence[level] = raw[own, level].mean()
        own_center[level] = z_mm[own].mean()
        first, last = own[0], own[-1]
        # Levels overlap on axial slices, the path does not: widen to all neighbors that show it.
        while first > 0 and visible[first - 1, level] > 0.5:
            first -= 1
        while last < len(z_mm) - 1 and visible[last + 1, level] > 0.5:
            last += 1
        z0[level], z1[level] = slice_idx[first], slice_idx[last]
        weight = visible[first : last + 1, level] + 1e-6
        center[level] = np.average(z_mm[first : last + 1], weights=weight)
        yx[level] = np.average(middle[first : last + 1], axis=0, weights=weight)
    if (np.diff(center[seen]) >= 0).any():
        center = own_center
    center = _place_unseen(center, seen)
    for level in np.flatnonzero(~seen):
        nearest = np.flatnonzero(seen)[np.abs(np.flatnonzero(seen) - level).argmin()]
        yx[level] = yx[nearest]
        away = np.abs(z_mm - center[level])
        inside = np.flatnonzero(away <= max(LEVEL_EXTENT_MM[level] / 2, away.min()))
        z0[level], z1[level] = slice_idx[inside[0]], slice_idx[inside[-1]]
    return pd.DataFrame(
        {
            "level": list(LEVELS),
            "z0": z0,
            "z1": z1,
            "center_z_mm": center,
            "center_y_px": yx[:, 0],
            "center_x_px": yx[:, 1],
            "confidence": confidence,
            "source": np.where(seen, "model", "interpolated"),
        }
    )


def crop_centers(crops: pd.DataFrame, z_mm: FloatArray) -> FloatArray:
    """Crop centers (n, 2) y, x in native pixels at positions `z_mm`, following the seven levels."""
    ordered = crops.sort_values("center_z_mm")
    z = ordered["center_z_mm"].to_numpy()
    columns = [np.interp(z_mm, z, ordered[c]) for c in ("center_y_px", "center_x_px")]
    return np.column_stack(columns)


def spine_slices(crops: pd.DataFrame, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those candidate slices that lie between the first slice of C1 and the last of C7."""
    first, last = int(crops["z0"].min()), int(crops["z1"].max())
    inside: NDArray[np.int64] = candidates[(candidates >= first) & (candidates <= last)]
    return inside

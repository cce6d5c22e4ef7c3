"""The ordered decode: seven levels of one study from per-slice scores, and which are not there.

In: visibility logits and spine boxes on some slices of one study. Out: the seven rows of the
`levels` table. Example::

    >>> z_mm = -2.0 * np.arange(100)                            # from the head down
    >>> middle = -40.0 - 16.0 * np.arange(7)                    # of C1..C7
    >>> logits = 4.0 - 0.4 * np.abs(z_mm[:, None] - middle)
    >>> boxes = np.tile([40.0, 40.0, 80.0, 80.0], (100, 1))
    >>> levels = decode_levels(z_mm, logits, boxes)
    >>> levels.loc[[0, 6], ["level", "z_top_mm", "z_bottom_mm"]].values.tolist()
    [['C1', -32.0, -48.0], ['C7', -128.0, -144.0]]
    >>> decode_levels(z_mm[40:], logits[40:], boxes[40:])["present"].tolist()
    [False, False, False, True, True, True, True]

Where the centers lie is what `data.centers` says. A level that the scan does not show has its place
all the same, outside of the scan or at its end: only its `present` says that nobody is to look.
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.errors import DataError
from cspine_kit.core.numbers import BoolArray, FloatArray, sigmoid
from cspine_kit.data.centers import LEVEL_EXTENT_MM, place_centers

DECODE_VERSION = 3
"""Raised when the same rows would give other levels."""

MODEL, INTERPOLATED, ABSENT = "model", "interpolated", "absent"
"""Where a level's place comes from: its own slices, its neighbors, or nothing: it is not there."""

FINDER, FINDER_INTERPOLATED = "finder", "finder_interpolated"
"""The same of levels by a network that learned from synthetic scans alone, from no real mask."""

COUNTED = (INTERPOLATED, FINDER_INTERPOLATED)
"""Sources of levels that no slice shows though they must be there."""

PRESENT = 0.5
"""A level that the scan shows with this probability is there."""

MIN_SEEN = 0.2
"""A level whose own slices show it with a lower mean probability is placed by its neighbors."""

SURE_LOGIT = 2.0
"""Logits of a scan that shows some level are lifted to this at their best before decoding: a
network far from what it was trained on is unsure everywhere, yet still right about where."""

FREE_LIFT = 1.0
UNSEEN_LOGIT, UNSEEN_SHARE = -2.0, 0.75
"""By this at most, or as far as this share of the logits stays below that: a level is seen on few
slices of a scan, and what looks a little like every level everywhere is none of them."""

NECK_PROBABILITY = 0.05
"""A scan in which no slice shows any level with this probability is not taken for a neck."""


def _is_neck(logits: FloatArray) -> bool:
    return bool(sigmoid(logits.max(), limit=np.inf) >= NECK_PROBABILITY)


def _lifted(logits: FloatArray) -> FloatArray:
    """Logits as they are decoded: as they are where some slice shows a level for sure."""
    if not _is_neck(logits):
        return logits
    room = UNSEEN_LOGIT - float(np.quantile(logits, UNSEEN_SHARE))
    return logits + max(0.0, min(SURE_LOGIT - float(logits.max()), max(room, FREE_LIFT)))


def decode_visible(z_mm: FloatArray, logits: FloatArray) -> FloatArray:
    """(n, 7) probabilities that each scored slice shows each level, by all slices together.

    Args:
        z_mm: (n,) positions of the scored slices, descending (cranial first).
        logits: (n, 7) visibility log-odds.
    """
    return decode_beliefs(z_mm, logits)[0]


def decode_beliefs(z_mm: FloatArray, logits: FloatArray) -> tuple[FloatArray, float]:
    """`decode_visible`, and the chain's mean belief in the levels that it finds present.

    Returns:
        (n, 7) probabilities; [0, 1], 0 where no level is present.
    """
    if not _is_neck(logits):
        return np.zeros(logits.shape), 0.0
    centers = place_centers(z_mm, _lifted(logits))
    present = centers.shown >= PRESENT
    return centers.visible, float(centers.sure[present].mean()) if present.any() else 0.0


def _own_rows(z_mm: FloatArray, visible: FloatArray, center: float, extent: float) -> slice:
    """Rows that show a level: around its center as far as it is visible, else its usual extent."""
    away = np.abs(z_mm - center)
    nearest = int(away.argmin())
    first = last = nearest
    if visible[nearest] > 0.5:
        while first > 0 and visible[first - 1] > 0.5 and away[first - 1] <= extent:
            first -= 1
        while last < len(z_mm) - 1 and visible[last + 1] > 0.5 and away[last + 1] <= extent:
            last += 1
    else:
        inside = np.flatnonzero(away <= max(extent / 2, away[nearest]))
        first, last = int(inside[0]), int(inside[-1])
    return slice(first, last + 1)


def _in_plane(
    visible: FloatArray, boxes: FloatArray, own: list[slice], seen: BoolArray
) -> dict[str, FloatArray]:
    """Columns center_y_mm and center_x_mm: the middles of the boxes on a level's own slices, or on
    those of the nearest level that is seen."""
    middle = np.column_stack([boxes[:, [0, 2]].mean(axis=1), boxes[:, [1, 3]].mean(axis=1)])
    yx = np.array(
        [
            np.average(middle[rows], axis=0, weights=visible[rows, k] + 1e-6)
            for k, rows in enumerate(own)
        ]
    )
    known = np.flatnonzero(seen)
    for level in np.flatnonzero(~seen) if len(known) else ():
        yx[level] = yx[known[np.abs(known - level).argmin()]]
    return {"center_y_mm": yx[:, 0], "center_x_mm": yx[:, 1]}


def by_finder(levels: pd.DataFrame) -> pd.DataFrame:
    """Levels of `decode_levels` that say that they come from a finder."""
    told = {MODEL: FINDER, INTERPOLATED: FINDER_INTERPOLATED}
    return levels.assign(source=levels["source"].replace(told))


def decode_levels(z_mm: FloatArray, logits: FloatArray, boxes: FloatArray) -> pd.DataFrame:
    """The seven levels of one study.

    Args:
        z_mm: (n,) positions of the scored slices, descending (cranial first).
        logits: (n, 7) visibility log-odds.
        boxes: (n, 4) spine box y0, x0, y1, x1 in mm of the study's frame.

    Returns:
        Seven rows: level, present, z_top_mm, z_bottom_mm (of the first and the last scored slice
        that shows the level: z_bottom_mm <= z <= z_top_mm are its slices; of an absent level its
        usual length), center_z_mm, center_y_mm, center_x_mm, confidence in [0, 1] (the chain's
        belief that the scan shows it and that its center is right to half a vertebra, which
        `data.confidence` calibrates; 0 where it is absent), source (`MODEL`, `INTERPOLATED` or
        `ABSENT`).

    Raises:
        DataError: no slice.
    """
    if len(z_mm) == 0:
        raise DataError("no slice to decode levels from")
    neck = _is_neck(logits)
    lifted = _lifted(logits)
    centers = place_centers(z_mm, lifted)
    visible = sigmoid(lifted, limit=np.inf)
    extents = LEVEL_EXTENT_MM * centers.size
    own = [
        _own_rows(z_mm, visible[:, k], center, extent)
        for k, (center, extent) in enumerate(zip(centers.center_mm, extents, strict=True))
    ]
    present = (centers.shown >= PRESENT) & neck
    seen = present & (np.array([visible[rows, k].mean() for k, rows in enumerate(own)]) >= MIN_SEEN)
    top, bottom = centers.center_mm + extents / 2, centers.center_mm - extents / 2
    return pd.DataFrame(
        {
            "level": list(LEVELS),
            "present": present,
            "z_top_mm": np.where(present, [z_mm[rows.start] for rows in own], top),
            "z_bottom_mm": np.where(present, [z_mm[rows.stop - 1] for rows in own], bottom),
            "center_z_mm": centers.center_mm,
            **_in_plane(visible, boxes, own, seen),
            "confidence": np.where(present, centers.sure, 0.0),
            "source": np.select([seen, present], [MODEL, INTERPOLATED], ABSENT),
        }
    )

"""The annotators: boxes around fractures, with their margins, gaps and habits.

In: the damage of a study, its file order. Out: rows [x, y, width, height, file number].
Example::

    damage = np.zeros((20, 64, 64), np.uint8)
    damage[8:12, 30:40, 30:34] = 5                    # C5 is broken on four slices
    boxes = draw_boxes(rng, damage, range(20), pixel_mm=0.35)

As in the competition there is at most one box per slice, no level is named, about half of the
studies have slices skipped in between, and about a third of the rows have fractions of pixels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MARGIN_X_MM, MARGIN_Y_MM = (2.0, 10.0), (0.5, 7.5)
GAPS_SHARE = 0.46
FRACTION_SHARE = 0.37


def draw_boxes(
    rng: np.random.Generator,
    damage: NDArray[np.uint8],
    file_order: Sequence[int],
    *,
    pixel_mm: float,
) -> list[list[float]]:
    """Boxes of one study.

    Args:
        rng: draws the annotator's habits.
        damage: level labels along broken faces, (z, y, x).
        file_order: slice index of file 1, 2, ...
        pixel_mm: size of a pixel.

    Returns:
        Rows [x, y, width, height, file number] in pixels, by file number.
    """
    margin_x, margin_y = (rng.uniform(*m) / pixel_mm for m in (MARGIN_X_MM, MARGIN_Y_MM))
    fractions = rng.random() < FRACTION_SHARE
    skipping = rng.uniform(0.2, 0.75) if rng.random() < GAPS_SHARE else 0.0
    trim = rng.uniform(0.0, 0.22, 2)
    hurt = [(n, i) for n, i in enumerate(file_order, start=1) if damage[i].any()]
    first, last = round(trim[0] * len(hurt)), len(hurt) - round(trim[1] * len(hurt))
    boxes: list[list[float]] = []
    for number, index in hurt[first : max(last, first + 1)]:
        if boxes and rng.random() < skipping:
            continue
        rows, cols = np.nonzero(damage[index])
        wobble = rng.normal(0, 0.08, 4)
        x0 = cols.min() - margin_x * (1 + wobble[0])
        y0 = rows.min() - margin_y * (1 + wobble[1])
        x1 = cols.max() + 1 + margin_x * (1 + wobble[2])
        y1 = rows.max() + 1 + margin_y * (1 + wobble[3])
        x0, x1 = np.clip((x0, x1), 0, damage.shape[2])
        y0, y1 = np.clip((y0, y1), 0, damage.shape[1])
        box = [float(v) for v in (x0, y0, x1 - x0, y1 - y0)]
        digits = 5 if fractions else 0
        boxes.append([*(round(v, digits) for v in box), number])
    return boxes

"""What boxes say of the patches of a training study: where a fracture is, and where surely none.

In: a `StudyView` of axial patches, a `Lesson`. Out: boxes in mm, and slices that are sound.
Example::

    from cspine_kit.vision.tasks.kinds import task_of
    from cspine_kit.vision.tasks.task import Lesson

    label = studies.set_index("study_uid").loc[uid]
    lesson = Lesson(slices[slices["study_uid"] == uid], label)
    view = task_of(config.levels).view(fine, own_levels)
    boxes, sound = known_boxes(view, lesson, np.ones((len(view.patches), 7), np.float32))

Annotators left gaps between boxed slices. So a slice without a box says that there is no fracture
only where none of the vertebrae that it shows is broken; of others nothing is known.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.numbers import BoolArray
from cspine_kit.core.tables import BOX_COLUMNS
from cspine_kit.data.volumes.patch import to_shares
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.nets.heads import LESIONS
from cspine_kit.vision.tasks.shown import native_rows
from cspine_kit.vision.tasks.task import Lesson, Targets

BOXES = "boxes"
"""Name of the target that `drawn_boxes` draws."""

SOUND = 0.1
"""A slice that shows less than this of every broken vertebra shows no fracture."""


def known_boxes(
    view: StudyView, lesson: Lesson, visible: NDArray[np.float32]
) -> tuple[NDArray[np.float32], BoolArray]:
    """Boxes (patches, 4) y0, x0, y1, x1 in mm, NaN where there is none; and (patches,) where there
    is surely none.

    Args:
        view: axial patches.
        lesson: its boxes and labels.
        visible: (patches, 7) how far each shows C1..C7, NaN where nobody knows.
    """
    box = _boxes_mm(native_rows(view, lesson.slices), view.volume)
    labels = lesson.label[list(LEVELS)].to_numpy(dtype=np.float32)
    seen = np.nan_to_num(visible) * np.where(view.present, labels, 1.0)
    sound = (seen.max(axis=1) < SOUND) & np.isfinite(visible).all(axis=1)
    return box, sound & np.isnan(box).any(axis=1)


def lesion_targets(view: StudyView, lesson: Lesson, visible: NDArray[np.float32]) -> Targets:
    """`BOXES` (n, patches, 4) of each unit in mm, and (n, patches) 1 where the map of fractures is
    known: a box, or surely nothing."""
    box, sound = known_boxes(view, lesson, visible)
    known = (np.isfinite(box).all(axis=1) | sound).astype(np.float32)
    return {
        BOXES: box.reshape(len(view), view.per_unit, -1),
        f"{LESIONS}_weight": known.reshape(len(view), view.per_unit),
    }


def drawn_boxes(view: StudyView, unit: int) -> NDArray[np.uint8]:
    """(patches, rows, cols) 1 inside the box of each patch of a unit, of which `lesion_targets`
    are known."""
    patches = view.of_unit(unit)
    drawn = np.zeros((len(patches), *patches[0].size_px), np.uint8)
    for plane, patch, box in zip(drawn, patches, view.targets[BOXES][unit], strict=True):
        if np.isfinite(box).all():
            shares = to_shares(view.volume, patch, box.reshape(2, 2).astype(np.float64))
            low, high = (shares * patch.size_px).clip(0, patch.size_px)
            (y0, x0), (y1, x1) = np.floor(low).astype(int), np.ceil(high).astype(int)
            plane[y0:y1, x0:x1] = 1
    return drawn


def _boxes_mm(slices: pd.DataFrame, volume: Volume) -> NDArray[np.float32]:
    """(n, 4) y0, x0, y1, x1 in mm of boxes in pixels of the study's own frame."""
    x, y, width, height = slices[list(BOX_COLUMNS)].to_numpy(np.float64).T
    pitch_y, pitch_x = volume.lattice.pitch_mm
    # Edges lie between pixels, half a pixel before the center of the first one.
    corners = [(y, pitch_y), (x, pitch_x), (y + height, pitch_y), (x + width, pitch_x)]
    return np.stack([(at - 0.5) * pitch for at, pitch in corners], axis=1).astype(np.float32)

"""The vertebra stage by slices that learn how much of a level they show, not whether any.

In: its section of the config. Out: as of `VertebraTask`. Example::

    task = AreaTask(config.vertebra.model_copy(update={"target": "area"}))
    view = task.view(volume, None)
    outputs = {name: rng.normal(size=(len(view), n)) for name, n in task.heads.items()}
    task.rows(view, outputs).columns[2:4].tolist()      # vertebra_C1, vertebra_C2

The ordered decode asks whether a level is there. A slice shows 0.43 of a level's largest section on
average, so log-odds of areas, taken for those of presence, would let every level be absent.
"""

from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.numbers import FloatArray, logit, sigmoid
from cspine_kit.core.tables import MASK_COLUMNS
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.tasks.shown import native_rows
from cspine_kit.vision.tasks.task import Lesson, Outputs
from cspine_kit.vision.tasks.vertebra import VertebraTask, stage_rows

USUAL_SHARE = 0.43
"""Of a level's largest section on the slices that show it: 0.39 (C5) to 0.51 (C1) in phantoms'
masks."""

SUREST = 0.98


class AreaTask(VertebraTask):
    """Visibility: binary cross-entropy to the level's share of its largest section."""

    rows_version: ClassVar[int] = 3

    def shown(self, view: StudyView, lesson: Lesson) -> NDArray[np.float32]:
        """(n, 7) shares of each level's largest section, from the mask."""
        return native_rows(view, lesson.slices)[list(MASK_COLUMNS)].to_numpy(np.float32)

    def rows(self, view: StudyView, outputs: Outputs) -> pd.DataFrame:
        """Table `vertebra`: log-odds that a level is there, and the spine's box in mm."""
        return stage_rows(view, presence(outputs["visible"]), outputs["box"])


def presence(areas: FloatArray) -> FloatArray:
    """Log-odds that a level is there, of those of its share: the usual share is as good as sure."""
    return logit(np.minimum(sigmoid(areas) / USUAL_SHARE, SUREST))

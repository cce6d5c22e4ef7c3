"""A view of every slice of a volume, around its middle.

In: a volume, a network's config, targets. Out: a `StudyView`. Example::

    view = whole_view(make_volume(0), tiny, visible=np.zeros((40, 7), np.float32))
"""

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.config import ModelConfig
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.inputs.views import StudyView, study_view


def whole_view(volume: Volume, config: ModelConfig, **targets: NDArray[np.float32]) -> StudyView:
    """All slices in order."""
    rows = np.arange(len(volume.z_mm))
    view = study_view(volume, rows, np.tile(volume.middle_mm, (len(rows), 1)), config)
    view.targets = targets
    return view

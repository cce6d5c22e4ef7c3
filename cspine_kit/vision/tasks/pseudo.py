"""Pseudo-labels: what a network says of a study without a mask, as targets and their weights.

In: a `StudyView`, rows of table `vertebra` of the same study by the round before. Out: soft
visibility of C1..C7 on each patch, and how far it is to be believed. Example::

    from cspine_kit.vision.tasks.kinds import task_of

    task = task_of(config.vertebra)
    view = task.view(volume, None)
    outputs = {name: rng.normal(size=(len(view), n)) for name, n in task.heads.items()}
    target, weight = pseudo_labels(view, task.rows(view, outputs))
    target.shape == weight.shape == (len(view), 7)

The targets are the ordered decode's marginals: the network's own slips are put right by what all
slices of the scan say together. A slice where the decode wavers counts little, a study whose levels
it does not believe in counts little everywhere, and one that shows none counts nothing.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.tables import VERTEBRA_COLUMNS
from cspine_kit.data.levels import decode_beliefs
from cspine_kit.vision.inputs.views import StudyView

Float32 = NDArray[np.float32]


def pseudo_labels(view: StudyView, rows: pd.DataFrame) -> tuple[Float32, Float32]:
    """Targets and weights, (n, 7) each, in [0, 1].

    Args:
        view: n axial patches.
        rows: from the head down.
    """
    at_mm = rows["at_mm"].to_numpy(np.float64)
    visible, trust = decode_beliefs(at_mm, rows[list(VERTEBRA_COLUMNS)].to_numpy(np.float64))
    target = np.stack([np.interp(-view.at_mm, -at_mm, own) for own in visible.T], axis=1)
    weight = trust * np.abs(2.0 * target - 1.0)
    return target.astype(np.float32), weight.astype(np.float32)

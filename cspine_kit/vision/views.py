"""What a network sees of one study: a patch of parallel planes for each place it judges.

In: a `Volume`, the slices to look at, centers in mm. Out: a `StudyView`. Example::

    rows = spaced_slices(volume.z_mm, 4.0)
    centers = np.tile(volume.middle_mm, (len(rows), 1))
    view = study_view(volume, rows, centers, config.vertebra)
    view.drawn(0, config.vertebra.windows)           # (planes x windows, size_px, size_px)

Training, out-of-fold prediction and the kernel draw the same patches by the same function.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.config import ModelConfig
from cspine_kit.core.numbers import FloatArray, IntArray
from cspine_kit.data.volumes.curve import Grey
from cspine_kit.data.volumes.patch import Patch, draw, parallel
from cspine_kit.data.volumes.volume import Volume, nearest_slices


def spaced_slices(z_mm: FloatArray, step_mm: float) -> IntArray:
    """Slices about `step_mm` apart (all of them where they lie further apart than that).

    Args:
        z_mm: (nz,) descending positions.
        step_mm: of a grid of whole multiples of it, so that the choice depends on the scan alone
            and not on which of its slices a volume keeps.

    Returns:
        Ascending slice indices; the nearest slice to each point of the grid.
    """
    first, last = np.floor(z_mm[0] / step_mm), np.ceil(z_mm[-1] / step_mm)
    grid = step_mm * np.arange(first, last - 0.5, -1.0)
    return np.unique(nearest_slices(z_mm, grid if len(grid) else z_mm[:1]))


@dataclass
class StudyView:
    """Chosen slices of a study, and a patch for each.

    `indices` are those of the volume. `targets` holds per-slice arrays for training.
    """

    volume: Volume
    indices: IntArray
    patches: list[Patch]
    targets: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def at_mm(self) -> FloatArray:
        """z of the chosen slices, descending."""
        return self.volume.z_mm[self.indices]

    @property
    def slice_idx(self) -> IntArray:
        """Native index of the chosen slices (of the first one where several were averaged)."""
        return self.volume.first_slice + self.volume.group * self.indices

    def drawn(self, row: int, windows: Sequence[Sequence[float]]) -> Grey:
        """What a network sees at one place, uint8 (planes x windows, rows, cols)."""
        return draw(self.volume, self.patches[row], windows)


def study_view(
    volume: Volume, indices: IntArray, centers_mm: FloatArray, config: ModelConfig
) -> StudyView:
    """Axial patches of a network around chosen slices.

    Args:
        volume: the study.
        indices: (n,) of its slices.
        centers_mm: (n, 2) y, x of their middles.
        config: of the network.
    """
    field_mm, size_px = (config.field_mm,) * 2, (config.size_px,) * 2
    offsets = parallel(config.in_chans, config.stack_step_mm)
    patches = [
        Patch("axial", (float(z), float(y), float(x)), field_mm, size_px, offsets)
        for z, (y, x) in zip(volume.z_mm[indices], centers_mm, strict=True)
    ]
    return StudyView(volume, indices, patches)

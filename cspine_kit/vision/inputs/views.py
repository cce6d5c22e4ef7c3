"""What a network sees of one study: units that it judges at once, each of one or more patches.

In: a `Volume`, the slices to look at, centers in mm. Out: a `StudyView`. Example::

    rows = spaced_slices(volume.z_mm, 4.0)
    centers = np.tile(volume.middle_mm, (len(rows), 1))
    view = study_view(volume, rows, centers, config.vertebra)
    view.drawn(0, config.vertebra.windows)           # (1, planes x windows, size_px, size_px)

Training, out-of-fold prediction and the kernel draw the same patches by the same function.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import LevelsConfig, MemberConfig, ModelConfig, SlicesConfig
from cspine_kit.core.errors import StudyError
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray, sigmoid
from cspine_kit.data.spine import inside_levels, neck_middle
from cspine_kit.data.volumes.curve import Grey
from cspine_kit.data.volumes.patch import Background, Patch, Plane, Windows, draw, parallel
from cspine_kit.data.volumes.volume import Volume, nearest_slices

FACT_NAMES = ("above", "below", "ratio", "spacing", "thickness")

EDGE_MM = 2.0
"""A slice this far beyond a level's end shows it with a probability of 0.27."""

SURE = 30.0
"""Log-odds that are as good as certain."""

CENTER_COLUMNS = ("center_z_mm", "center_y_mm", "center_x_mm")


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
    """Units of a study: a slice, the slices of a vertebra, all seven vertebrae.

    Attributes:
        volume: the study.
        indices: of its slices, one for each axial patch; none in other planes.
        patches: of the first unit, of the second, ...
        per_unit: patches of each unit.
        present: (7,) which of C1..C7 the scan holds.
        shown: (patches, 7) logits of which levels they show, where a task takes them from levels.
        facts: (n, `FACT_NAMES`) what headers say of each unit, or (n, 7) levels; None where nobody
            asks.
        targets: for training, an array for each target with a row for each unit.
        half: of the training studies, 0 or 1, where a training asks for halves.
    """

    volume: Volume
    indices: IntArray
    patches: list[Patch]
    targets: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    per_unit: int = 1
    shown: FloatArray = field(default_factory=lambda: np.zeros((0, len(LEVELS))))
    present: BoolArray = field(default_factory=lambda: np.ones(len(LEVELS), dtype=np.bool_))
    facts: NDArray[np.float32] | None = None
    half: int = 0

    def __len__(self) -> int:
        return len(self.patches) // self.per_unit

    @property
    def at_mm(self) -> FloatArray:
        """z of the chosen slices."""
        return self.volume.z_mm[self.indices]

    @property
    def slice_idx(self) -> IntArray:
        """Native index of the chosen slices (of the first one where several were averaged)."""
        return self.volume.slice_idx[self.indices]

    @property
    def plane(self) -> Plane:
        """Of all patches."""
        return self.patches[0].plane

    @property
    def offsets_mm(self) -> FloatArray:
        """How far from its center the middle plane of each standing patch lies."""
        return np.array([patch.offsets_mm[len(patch.offsets_mm) // 2] for patch in self.patches])

    def of_unit(self, unit: int) -> list[Patch]:
        """Patches of one unit."""
        return self.patches[unit * self.per_unit : (unit + 1) * self.per_unit]

    def drawn(self, unit: int, windows: Windows) -> Grey:
        """What a network sees of one unit, uint8 (patches, planes x windows, rows, cols)."""
        return np.stack([draw(self.volume, patch, windows) for patch in self.of_unit(unit)])


def header_facts(volume: Volume, indices: IntArray) -> NDArray[np.float32]:
    """What headers say of slices of a whole scan (source document B), each about 0 to 3.

    Args:
        volume: of the whole scan.
        indices: (n,) of its slices.

    Returns:
        (n, `FACT_NAMES`): decimeters below the top and above the bottom, the share of the scan
        above, the distance of native slices and the thickness that was averaged in centimeters.
    """
    z = volume.z_mm[indices]
    above, below = volume.z_mm[0] - z, z - volume.z_mm[-1]
    ratio = above / np.maximum(above + below, 1.0)
    scan = np.tile([volume.step_mm / volume.group / 10.0, volume.step_mm / 10.0], (len(z), 1))
    return np.column_stack([above / 100.0, below / 100.0, ratio, scan]).astype(np.float32)


def level_facts(levels: pd.DataFrame, z_mm: FloatArray) -> NDArray[np.float32]:
    """Probabilities that slices show C1..C7, by where vertebra model k's ordered decode puts them.

    Args:
        levels: the study's seven levels.
        z_mm: (n,) of the slices.

    Returns:
        (n, 7); 0.5 at a level's ends, as good as 0 where the scan does not show it.
    """
    return sigmoid(inside_levels(levels, z_mm) / EDGE_MM, limit=SURE).astype(np.float32)


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
    offsets, background = parallel(config.in_chans, config.stack_step_mm), _background(config)
    patches = [
        Patch("axial", (float(z), float(y), float(x)), field_mm, size_px, offsets, background)
        for z, (y, x) in zip(volume.z_mm[indices], centers_mm, strict=True)
    ]
    return StudyView(volume, indices, patches)


def _background(config: ModelConfig) -> Background:
    return config.background if isinstance(config, MemberConfig) else "keep"


def standing_view(
    volume: Volume, levels: pd.DataFrame, config: SlicesConfig, *, stride: int
) -> StudyView:
    """Sagittal or coronal patches around the middle of C1 to C7, a step apart.

    Args:
        volume: the study.
        levels: its seven levels.
        config: of the network.
        stride: steps between patches.

    Raises:
        StudyError: the scan shows none of them.
    """
    levels = levels[levels["present"]]
    if levels.empty:
        raise StudyError(volume.study_uid, "no level lies inside the scan")
    step = config.slice_step_mm * stride
    across = parallel(2 * int(config.across_mm // step) + 1, step)
    z, (y, x) = neck_middle(levels), levels[list(CENTER_COLUMNS[1:])].mean()
    field_mm, size_px = (config.field_mm,) * 2, (config.size_px,) * 2
    planes = parallel(config.in_chans, config.stack_step_mm)
    middle = (z, float(y), float(x))
    patches = [
        Patch(
            *(config.plane, middle, field_mm, size_px, tuple(offset + p for p in planes)),
            background=config.background,
        )
        for offset in across
    ]
    return StudyView(volume, np.zeros(0, np.int64), patches)


def present_levels(levels: pd.DataFrame) -> BoolArray:
    """(7,) whether the scan shows C1, C2, ..."""
    return levels.set_index("level").loc[list(LEVELS), "present"].to_numpy(dtype=np.bool_)


def level_view(
    volume: Volume, levels: pd.DataFrame, config: LevelsConfig, *, stride: int, vertebrae: int
) -> StudyView:
    """Stacks of every vertebra, spread around its center along the normal of the network's plane.

    A vertebra that the scan does not hold is looked at where the nearest one is that it holds.

    Args:
        volume: the study.
        levels: its seven levels.
        config: of the network.
        stride: of so many stacks one is drawn, over the same length.
        vertebrae: that the network judges at once.
    """
    field_mm, size_px = (config.field_mm,) * 2, (config.size_px,) * 2
    planes = parallel(config.in_chans, config.stack_step_mm)
    count = -(-config.slices_per_level // stride)
    spread = np.linspace(config.spread_mm, -config.spread_mm, count) if count > 1 else [0.0]
    ordered, present = levels.set_index("level").loc[list(LEVELS)], present_levels(levels)
    places = ordered[[*CENTER_COLUMNS, "z_top_mm", "z_bottom_mm"]].to_numpy(np.float64)
    patches = []
    for z, y, x, top, bottom in places[_nearest_present(present)].tolist():
        for offset in map(float, spread):
            if config.plane == "axial":
                middle, offsets = (z + offset, y, x), planes
            else:
                middle, offsets = (z, y, x), tuple(offset + plane for plane in planes)
            place = (config.plane, middle, field_mm, size_px, offsets)
            patches.append(Patch(*place, config.background, (top, bottom)))
    at = np.array([patch.center_mm[0] for patch in patches])
    axial = config.plane == "axial"
    indices = nearest_slices(volume.z_mm, at) if axial else np.zeros(0, np.int64)
    return StudyView(volume, indices, patches, per_unit=vertebrae * count, present=present)


def _nearest_present(present: BoolArray) -> IntArray:
    """For each level itself, or the nearest one that is there; at least one is."""
    there = np.flatnonzero(present)
    gaps = np.abs(np.arange(len(present))[:, None] - there)
    nearest: IntArray = there[gaps.argmin(axis=1)]
    return nearest

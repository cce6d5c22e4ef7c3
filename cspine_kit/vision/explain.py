"""Grad-CAM: where in its patches a network looked when it spoke of a vertebra.

In: loaded networks, a study's volume, levels and the slices to explain. Out: a `Heat` for each
network, level and slice. Example::

    member, *_ = ensemble.config.members
    models = {(member, 0): ensemble.models[member, 0]}
    at = int(fine.first_slice + 20)
    heats = study_heat(models, fine, {0: own_levels}, {"C3": [at]})
    [heat.map.shape for heat in heats]           # one of (rows, columns) of its patch, 0 to 1

Selvaraju et al., Grad-CAM (ICCV 2017), by the package grad-cam: the last map of features, weighted
with the mean gradient of the level's logit. A map says where a network looked, at the resolution of
its last features; it does not say that it was right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from cspine_kit.core.anatomy import AXIAL, LEVELS
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.numbers import IntArray
from cspine_kit.data.volumes.patch import Patch
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.nets.volume3d import VolumeModel
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.levels import LevelsTask
from cspine_kit.vision.tasks.task import Task

LEVEL_HEADS = ("fracture", "study", "level")
"""Heads that speak of vertebrae, the first that a network has: of all seven, or of its own unit."""


@dataclass(frozen=True)
class Heat:
    """Where one network looked on one axial patch.

    `map`: float32 (rows, columns) of the patch, 0 to 1; `slice_idx`: native slice at its center;
    `plane`: what the network sees.
    """

    member: str
    fold: int
    level: str
    slice_idx: int
    patch: Patch
    map: NDArray[np.float32]
    plane: str = AXIAL


class _Spoken(nn.Module):
    """A network as grad-cam wants one: from images to the logit of one level of each unit."""

    def __init__(
        self, model: nn.Module, unit: tuple[int, ...], level: int, facts: Sequence[torch.Tensor]
    ) -> None:
        super().__init__()
        self.model, self.unit, self.level, self.facts = model, unit, level, facts
        self.in_3d = isinstance(model, VolumeModel)

    def images(self, units: torch.Tensor) -> torch.Tensor:
        """What gets a map of its own: each image, or all planes of a unit as one in 3D."""
        return units.transpose(1, 2) if self.in_3d else units.flatten(0, -4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        units = images.transpose(1, 2) if self.in_3d else images.reshape(-1, *self.unit)
        outputs: dict[str, torch.Tensor] = self.model(units, *self.facts)
        said = outputs[next(name for name in LEVEL_HEADS if name in outputs)]
        return said[:, self.level if said.shape[1] > 1 else 0]


class _Itself:
    """grad-cam's target of a network with a single output."""

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        return output


def last_map(model: nn.Module, *batch: torch.Tensor) -> tuple[nn.Module, bool]:
    """The last layer of a network that gives a map of features, and whether channels come last.

    Args:
        model: in evaluation mode.
        batch: what it is called with: a stack and, where it reads some, facts.

    Raises:
        ArtifactError: none does.
    """
    if isinstance(model, VolumeModel):
        return model.backbone, False
    found: list[tuple[nn.Module, bool]] = []

    def note(layer: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            last = output.shape[1] == output.shape[2] < output.shape[3]
            sides = output.shape[1:3] if last else output.shape[2:]
            if min(sides) > 1:
                found.append((layer, last))

    # Maps behind the backbone, of boxes, have no part in what is said of a vertebra.
    seeing = getattr(model, "backbone", model)
    leaves = [m for m in seeing.modules() if not list(m.children())]
    handles = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        with torch.no_grad():
            model(*batch)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ArtifactError("this network has no map of features that Grad-CAM could show")
    return found[-1]


def _maps(
    model: nn.Module, units: NDArray[np.uint8], level: int, *facts: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Heat of every image of some units, (images, rows, columns); in 3D on one scale in a unit."""
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError as error:
        raise ArtifactError(
            "heat needs grad-cam, which is not installed; pip install 'cspine-kit[show]'"
        ) from error
    device = next(model.parameters()).device
    batch, *beside = (torch.from_numpy(part).to(device) for part in (units, *facts))
    layer, last = last_map(model, batch[:1], *(part[:1] for part in beside))
    spoken = _Spoken(model, units.shape[1:], level, beside)
    turn = (lambda found: found.permute(0, 3, 1, 2)) if last else None
    # cuDNN has no gradient of a sequence in evaluation mode; torch's own kernels do.
    plain = torch.backends.cudnn.flags(enabled=False)
    with plain, torch.enable_grad(), GradCAM(spoken, [layer], reshape_transform=turn) as cam:
        heat = cam(spoken.images(batch), [_Itself()] * len(units))
    model.zero_grad(set_to_none=True)
    return np.asarray(heat, dtype=np.float32).reshape(-1, *units.shape[-2:])


def _speaking(task: Task, view: StudyView, level: int, slices: Sequence[int]) -> IntArray:
    """Patches of a view that speak of a level on some slices: its own ones, else those of the
    slices, else all, which stand and show the whole neck."""
    count = len(view.patches)
    if isinstance(task, LevelsTask):
        return np.flatnonzero(np.arange(count) * len(LEVELS) // count == level)
    if view.plane == AXIAL:
        return np.flatnonzero(np.isin(view.slice_idx, list(slices)))
    return np.arange(count if len(slices) else 0)


def _lying(
    patches: Sequence[Patch], maps: NDArray[np.float32], z_mm: float
) -> tuple[Patch, NDArray[np.float32]]:
    """What maps of standing planes say of an axial plane at z: their rows there, side by side."""
    first = patches[0]
    down = int(np.floor((0.5 - (z_mm - first.center_mm[0]) / first.field_mm[0]) * maps.shape[1]))
    lines = maps[:, down] if 0 <= down < maps.shape[1] else np.zeros_like(maps[:, 0])
    middles = np.array([np.mean(patch.offsets_mm) for patch in patches])
    planes = np.unique(np.concatenate([patch.offsets_mm for patch in patches]))
    gap = float(np.diff(planes).min()) if len(planes) > 1 else first.field_mm[1] / lines.shape[1]
    reach = float(np.ptp(planes)) + gap
    _, y, x = first.center_mm
    across = (lines.shape[0], reach), (lines.shape[1], first.field_mm[1])
    if first.plane == "sagittal":
        (columns, width), (rows, height) = across
        y_x, turned = (y, x - float(middles.mean())), lines.T
    else:
        (rows, height), (columns, width) = across
        y_x, turned = (y - float(middles.mean()), x), lines
    return Patch("axial", (z_mm, *y_x), (height, width), (rows, columns)), turned


def study_heat(
    models: Mapping[tuple[str, int], Any],
    volume: Volume,
    levels: Mapping[int, pd.DataFrame],
    wanted: Mapping[str, Sequence[int]],
) -> list[Heat]:
    """Where networks looked on some slices, level by level.

    Networks that see standing planes tell of a slice by the row of their maps that crosses it, over
    the whole width that their planes take up. Those in three dimensions tell of each plane that
    they see, on one scale within a vertebra.

    Args:
        models: by member and fold.
        volume: the fine volume of the study.
        levels: the seven levels of each fold.
        wanted: native slices by level.

    Raises:
        ArtifactError: grad-cam is not installed, or a network has no map of features.
    """
    heats: list[Heat] = []
    for (member, fold), model in models.items():
        if fold not in levels:
            continue
        task = task_of(model.config)
        view = task.view(volume, levels[fold])
        for level, slices in wanted.items():
            shown = _speaking(task, view, LEVELS.index(level), slices)
            units = np.unique(shown // view.per_unit)
            if not len(units):
                continue
            drawn = np.stack([view.drawn(int(u), model.config.windows) for u in units])
            seen = (units[:, None] * view.per_unit + np.arange(view.per_unit)).ravel()
            facts = [] if view.facts is None else [view.facts[units]]
            maps = _maps(model, drawn, LEVELS.index(level), *facts)[np.isin(seen, shown)]
            patches = [view.patches[p] for p in shown]
            if view.plane == AXIAL:
                own = zip(view.slice_idx[shown], patches, maps, strict=True)
                heats += [Heat(member, fold, level, int(at), patch, m) for at, patch, m in own]
                continue
            for at in slices:
                k = int(np.clip((at - volume.first_slice) // volume.group, 0, len(volume.z_mm) - 1))
                patch, lying = _lying(patches, maps, float(volume.z_mm[k]))
                heats.append(Heat(member, fold, level, int(at), patch, lying, view.plane))
    return heats

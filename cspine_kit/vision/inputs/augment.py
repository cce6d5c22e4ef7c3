"""Random changes of a training batch, on its device, so that stacks and spine boxes stay in step.

In: a batch with "stack" uint8 (b, patches, c, h, w) and optionally "box" (b, 4). Out: the same,
changed. Example::

    shape = (2, 1, config.vertebra.in_chans, 48, 48)
    batch = {"stack": torch.zeros(shape, dtype=torch.uint8)}
    changed = augment_batch(batch, config.vertebra, torch.Generator().manual_seed(1))

All patches of a unit change alike. One affine resampling for the whole batch. Where several
processes share a batch, each draws the numbers of the whole one and uses its part: what a stack
looks like does not depend on who has it.
"""

import math

import torch
from torch.nn import functional as F

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.config import (
    BoxesConfig,
    LevelsConfig,
    ModelConfig,
    SlicesConfig,
    StageConfig,
    StudyConfig,
)
from cspine_kit.vision.inputs.mixing import mixed, uniform
from cspine_kit.vision.nets.heads import FACTS, LESIONS, MASK


def is_sagittal(config: ModelConfig) -> bool:
    """True where left and right lie along the normal of a network's planes."""
    return isinstance(config, SlicesConfig | LevelsConfig) and config.plane == "sagittal"


def mirrored(stack: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Units (b, patches, channels, h, w) with left and right exchanged."""
    if not is_sagittal(config):
        return stack.flip(-1)
    b, patches, channels, *size = stack.shape
    planes = stack.reshape(b * patches, config.in_chans, -1, *size).flip(1)
    return _backward(planes.reshape(b, patches, channels, *size), config)


def from_the_feet(stack: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Axial units (b, patches, channels, h, w) with their planes in reverse."""
    b, patches, channels, *size = stack.shape
    planes = stack.reshape(b, patches, config.in_chans, -1, *size).flip(2)
    return planes.reshape(b, patches, channels, *size)


def mirrored_outputs(
    outputs: dict[str, torch.Tensor], config: ModelConfig
) -> dict[str, torch.Tensor]:
    """What a network says of mirrored units, in the order of the units as they were."""
    if isinstance(config, BoxesConfig):
        left, above, right, below = outputs["extent"].flip(-1).unbind(dim=1)
        extent = torch.stack([right, above, left, below], dim=1)
        return {**outputs, "center": outputs["center"].flip(-1), "extent": extent}
    if not (is_sagittal(config) and isinstance(config, LevelsConfig)):
        return outputs
    turned = {name: _backward(outputs[name], config) for name in ("slice", "visible")}
    return {**outputs, **turned}


def _backward(patches: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """(b, patches, ...) with the patches of every vertebra in reverse."""
    vertebrae = N_LEVELS if isinstance(config, StudyConfig) else 1
    b, _, *rest = patches.shape
    return patches.reshape(b, vertebrae, -1, *rest).flip(2).reshape(patches.shape)


def random_affine(
    n: int, config: ModelConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 2, 3) maps from output to input positions, both in -1..1 (x, y) over the crop, and which
    of the units are mirrored (n,)."""
    augment = config.augment
    angle = uniform(n, math.radians(augment.rotate_deg), generator)
    zoom = 1.0 + uniform(n, augment.scale, generator)
    shift = torch.stack(
        [uniform(n, 2.0 * augment.shift_mm / config.field_mm, generator) for _ in range(2)], dim=1
    )
    mirror = uniform(n, 0.5, generator) + 0.5 < augment.flip_x
    inside = mirror & (not is_sagittal(config))
    flip = torch.where(inside, -1.0, 1.0)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rows = torch.stack([torch.stack([cos * flip, -sin], 1), torch.stack([sin * flip, cos], 1)], 1)
    return torch.cat([rows, shift[:, :, None]], dim=2), mirror


def move_boxes(boxes: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Boxes (n, 4) x0, y0, x1, y1 as shares of the crop, after `affine`; corners' bounding box."""
    x0, y0, x1, y1 = (2.0 * boxes - 1.0).unbind(dim=1)
    corners = torch.stack(
        [torch.stack(c, dim=1) for c in ((x0, y0), (x1, y0), (x0, y1), (x1, y1))], dim=1
    )
    back = torch.linalg.inv(affine[:, :, :2])
    moved = (corners - affine[:, None, :, 2]) @ back.transpose(1, 2)
    shares = (moved.clamp(-1.0, 1.0) + 1.0) / 2.0
    return torch.cat([shares.amin(dim=1), shares.amax(dim=1)], dim=1)


def augment_batch(
    batch: dict[str, torch.Tensor],
    config: ModelConfig,
    generator: torch.Generator,
    *,
    first: int = 0,
    total: int | None = None,
) -> dict[str, torch.Tensor]:
    """Flip, rotate, shift, scale, brightness, contrast and noise, each drawn anew per sample.

    Args:
        batch: "stack" uint8 (b, patches, c, h, w) and targets; "box", "mask", "lesions" and
            "labels" move with it, and "facts" turn with it.
        config: strengths, and the field that turns millimeters into shares.
        generator: of the batch's device.
        first: where this part lies in the batch that the numbers are drawn for ...
        total: ... and how many units that has; this part is all of it by default.

    Returns:
        The batch with "stack" float32 in 0..255 (the networks take both) and "box" replaced.
    """
    stack, augment = batch["stack"], config.augment
    n = total or len(stack)
    part = slice(first, first + len(stack))
    affine, mirror = (drawn[part] for drawn in random_affine(n, config, generator))
    if is_sagittal(config):
        stack = torch.where(mirror[:, None, None, None, None], mirrored(stack, config), stack)
    if isinstance(config, StageConfig) and config.upside_down > 0:
        turned = uniform(n, 0.5, generator)[part] + 0.5 < config.upside_down
        stack = torch.where(turned[:, None, None, None, None], from_the_feet(stack, config), stack)
        if FACTS in batch:
            facts = batch[FACTS]
            other = torch.cat([facts[:, [1, 0]], 1.0 - facts[:, 2:3], facts[:, 3:]], dim=1)
            batch = {**batch, FACTS: torch.where(turned[:, None], other, facts)}
    flat = stack.flatten(1, 2)
    grid = F.affine_grid(affine, list(flat.shape), align_corners=False)
    value = F.grid_sample(flat.float(), grid, padding_mode="zeros", align_corners=False)
    masks = value
    gain = 1.0 + uniform(n, augment.contrast, generator)[part]
    offset = 255.0 * uniform(n, augment.brightness, generator)[part]
    value = value * gain[:, None, None, None] + offset[:, None, None, None]
    if augment.noise > 0:
        strength = 127.5 * (augment.noise + uniform(n, augment.noise, generator)[part])
        shape = (n, *flat.shape[1:])
        noise = torch.randn(shape, generator=generator, device=generator.device)[part]
        value = value + noise * strength[:, None, None, None]
    if "spine" in config.windows:  # a mask moves, and has no grey values to change
        channels = [window == "spine" for window in config.windows]
        is_mask = torch.tensor(channels, device=value.device).repeat(flat.shape[1] // len(channels))
        value = torch.where(is_mask[:, None, None], masks, value)
    changed = {**batch, "stack": value.clamp(0.0, 255.0).view(stack.shape)}
    for name in (name for name in (MASK, LESIONS) if name in batch):
        drawn = batch[name].float()
        if is_sagittal(config):
            drawn = torch.where(mirror[:, None, None, None], _backward(drawn, config), drawn)
        changed[name] = F.grid_sample(drawn, grid, padding_mode="zeros", align_corners=False)
    if "labels" in batch:
        labels = batch["labels"].float()[:, None]
        moved = F.grid_sample(labels, grid, mode="nearest", align_corners=False)
        changed["labels"] = moved[:, 0]
    if "box" in batch:
        changed["box"] = move_boxes(batch["box"], affine)
    return mixed(changed, config, generator, first, n)

"""Random changes of a training batch, on its device, so that stacks and spine boxes stay in step.

In: a batch with "stack" uint8 (b, c, h, w) and optionally "box" (b, 4). Out: the same, changed.
Example::

    batch = {"stack": torch.zeros(2, 3, 48, 48, dtype=torch.uint8)}
    changed = augment_batch(batch, config.model, torch.Generator().manual_seed(1))

One affine resampling for the whole batch. Where several processes share a batch, each draws the
numbers of the whole one and uses its part: what a stack looks like does not depend on who has it.
"""

import math

import torch
from torch.nn import functional as F

from cspine_kit.core.config import ModelConfig


def _uniform(n: int, reach: float, generator: torch.Generator) -> torch.Tensor:
    """(n,) drawn evenly from -reach..reach, on the generator's device."""
    return (2.0 * torch.rand(n, generator=generator, device=generator.device) - 1.0) * reach


def random_affine(n: int, config: ModelConfig, generator: torch.Generator) -> torch.Tensor:
    """(n, 2, 3) maps from output to input positions, both in -1..1 (x, y) over the crop."""
    augment = config.augment
    angle = _uniform(n, math.radians(augment.rotate_deg), generator)
    zoom = 1.0 + _uniform(n, augment.scale, generator)
    shift = torch.stack(
        [_uniform(n, 2.0 * augment.shift_mm / config.field_mm, generator) for _ in range(2)], dim=1
    )
    flip = torch.where(_uniform(n, 0.5, generator) + 0.5 < augment.flip_x, -1.0, 1.0)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rows = torch.stack([torch.stack([cos * flip, -sin], 1), torch.stack([sin * flip, cos], 1)], 1)
    return torch.cat([rows, shift[:, :, None]], dim=2)


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
        batch: "stack" uint8 (b, c, h, w) and targets; "box" moves with the stack.
        config: strengths, and the field that turns millimeters into shares.
        generator: of the batch's device.
        first: where this part lies in the batch that the numbers are drawn for ...
        total: ... and how many stacks that has; this part is all of it by default.

    Returns:
        The batch with "stack" float32 in 0..255 (the networks take both) and "box" replaced.
    """
    stack, augment = batch["stack"], config.augment
    n = total or len(stack)
    part = slice(first, first + len(stack))
    affine = random_affine(n, config, generator)[part]
    grid = F.affine_grid(affine, list(stack.shape), align_corners=False)
    value = F.grid_sample(stack.float(), grid, padding_mode="zeros", align_corners=False)
    gain = 1.0 + _uniform(n, augment.contrast, generator)[part]
    offset = 255.0 * _uniform(n, augment.brightness, generator)[part]
    value = value * gain[:, None, None, None] + offset[:, None, None, None]
    if augment.noise > 0:
        strength = 127.5 * (augment.noise + _uniform(n, augment.noise, generator)[part])
        shape = (n, *stack.shape[1:])
        noise = torch.randn(shape, generator=generator, device=generator.device)[part]
        value = value + noise * strength[:, None, None, None]
    changed = {**batch, "stack": value.clamp(0.0, 255.0)}
    if "box" in batch:
        changed["box"] = move_boxes(batch["box"], affine)
    return changed

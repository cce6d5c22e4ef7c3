"""Random changes of a training batch, on the device, so that stacks and spine boxes stay in step.

In: a batch with "stack" uint8 (b, c, h, w) and optionally "box" (b, 4). Out: the same, changed.
Example::

    batch = {"stack": torch.zeros(2, 3, 48, 48, dtype=torch.uint8)}
    changed = augment_batch(batch, config.model, torch.Generator().manual_seed(1))

One affine resampling for the whole batch, where the batch lies. Random numbers, a noise image for
each sample among them, are drawn on the CPU by the training loop, also for a GPU: all devices see
the same ones.
"""

import math

import torch
from torch.nn import functional as F

from cspine_kit.core.config import ModelConfig


def _uniform(n: int, reach: float, generator: torch.Generator) -> torch.Tensor:
    """(n,) drawn evenly from -reach..reach."""
    return (2.0 * torch.rand(n, generator=generator) - 1.0) * reach


def random_affine(n: int, config: ModelConfig, generator: torch.Generator) -> torch.Tensor:
    """(n, 2, 3) maps from output to input positions, both in -1..1 (x, y) over the crop."""
    augment = config.augment
    angle = _uniform(n, math.radians(augment.rotate_deg), generator)
    zoom = 1.0 + _uniform(n, augment.scale, generator)
    shift = torch.stack(
        [_uniform(n, 2.0 * augment.shift_mm / config.field_mm, generator) for _ in range(2)], dim=1
    )
    flip = torch.where(torch.rand(n, generator=generator) < augment.flip_x, -1.0, 1.0)
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
    batch: dict[str, torch.Tensor], config: ModelConfig, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Flip, rotate, shift, scale, brightness, contrast and noise, each drawn anew per sample.

    Args:
        batch: "stack" uint8 (b, c, h, w) and targets; "box" moves with the stack.
        config: strengths, and the field that turns millimeters into shares.
        generator: of the CPU, whatever the device, so that all devices draw the same.

    Returns:
        The batch with "stack" float32 in 0..255 (the networks take both) and "box" replaced.
    """
    stack = batch["stack"]
    n, device = len(stack), stack.device
    augment = config.augment
    affine = random_affine(n, config, generator).to(device)
    grid = F.affine_grid(affine, list(stack.shape), align_corners=False)
    value = F.grid_sample(stack.float(), grid, padding_mode="zeros", align_corners=False)
    gain = 1.0 + _uniform(n, augment.contrast, generator).to(device)
    offset = 255.0 * _uniform(n, augment.brightness, generator).to(device)
    value = value * gain[:, None, None, None] + offset[:, None, None, None]
    if augment.noise > 0:
        strength = 255.0 * augment.noise * torch.rand(n, generator=generator)
        noise = torch.randn(stack.shape, generator=generator) * strength[:, None, None, None]
        value = value + noise.to(device)
    changed = {**batch, "stack": value.clamp(0.0, 255.0)}
    if "box" in batch:
        changed["box"] = move_boxes(batch["box"], affine)
    return changed

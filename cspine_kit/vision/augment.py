"""Random changes of training stacks, on tensors, so that stack and spine box stay in step.

In: a uint8 stack (c, h, w) and optionally a box. Out: the same, changed. Example::

    transform = make_transform(config.augment, mm_per_px=1.2)
    stack, box = transform(tv_tensors.Image(stack), box)

Randomness is torch's global generator: seeded per epoch by the trainer, per worker by the loader.
"""

import torch
from torch import nn
from torchvision.transforms import v2

from cspine_kit.core.config import AugmentConfig


class Intensity(nn.Module):
    """Gain, offset and noise on a uint8 stack of any channel count (torchvision's need 1 or 3)."""

    def __init__(self, config: AugmentConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, stack: torch.Tensor, *boxes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Change `stack` (c, h, w) uint8; boxes pass through."""
        draws = torch.rand(3)
        gain = 1.0 + self.config.contrast * float(2 * draws[0] - 1)
        offset = 255.0 * self.config.brightness * float(2 * draws[1] - 1)
        value = stack.float() * gain + offset
        if self.config.noise > 0:
            value += torch.randn(stack.shape) * (255.0 * self.config.noise * float(draws[2]))
        return value.clamp_(0, 255).to(torch.uint8), *boxes


def make_transform(config: AugmentConfig, mm_per_px: float, size_px: int) -> v2.Compose:
    """Flip, rotate, shift, scale and intensity changes for stacks of `size_px` pixels a side."""
    shift = min(1.0, config.shift_mm / mm_per_px / size_px)
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(config.flip_x),
            v2.RandomAffine(
                degrees=config.rotate_deg,
                translate=(shift, shift),
                scale=(1.0 - config.scale, 1.0 + config.scale),
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
            Intensity(config),
        ]
    )

"""A backbone and named linear heads: the network of every kind that looks at one stack at a time.

In: a `ModelConfig` and head widths. Out: a module from uint8 stacks to a dict of head outputs.
Example::

    model = SliceModel(config.model, {"visible": 7, "box": 4}, pretrained=False)
    model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))["box"].shape     # (2, 4)
"""

import torch
from torch import nn

from cspine_kit.core.config import ModelConfig
from cspine_kit.vision.nets.backbone import create_backbone

PIXEL_MEAN, PIXEL_STD = 0.449, 0.226
"""ImageNet statistics averaged over color channels, for any number of channels."""


class SliceModel(nn.Module):
    """Backbone, dropout and one linear layer per head."""

    def __init__(self, config: ModelConfig, heads: dict[str, int], *, pretrained: bool) -> None:
        super().__init__()
        self.config = config
        self.widths = dict(heads)
        self.backbone, width = create_backbone(config, pretrained=pretrained)
        self.drop = nn.Dropout(config.drop_rate)
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in heads.items()})

    def forward(self, stack: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map stacks (b, channels, h, w) in 0..255 to {head: (b, width)} logits or shares."""
        dtype = next(self.parameters()).dtype
        pixels = (stack.to(dtype) / 255.0 - PIXEL_MEAN) / PIXEL_STD
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        features = self.drop(self.backbone(pixels))
        outputs = {name: head(features) for name, head in self.heads.items()}
        if "any_fracture" in outputs:
            # A break looks alike at every level: one shared score learns from all of them, where
            # seven separate ones would see a handful of positives each.
            outputs["fracture"] = outputs["fracture"] + outputs.pop("any_fracture")
        return outputs

"""A U-Net on a timm encoder: the level of every pixel, and from it the levels that a slice shows.

In: a `SegmentConfig`. Out: a module from uint8 stacks to a dict of outputs. Example::

    model = UNet(config.segment, {"visible": 7}, pretrained=False).eval()
    stacks = torch.zeros(2, 1, config.segment.channels, 64, 64, dtype=torch.uint8)
    {name: tuple(value.shape) for name, value in model(stacks).items()}
    # {"visible": (2, 7), "labels": (2, 64, 64)}
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.config import SegmentConfig
from cspine_kit.vision.nets.backbone import create_encoder
from cspine_kit.vision.nets.heads import Network

LABELS = "labels"
"""Name of the label map, as a target and as an output: 0 background, 1..7 C1..C7, 8 thoracic."""

MAP = "map"
"""Name of the logits of all labels, which training alone asks for."""

N_LABELS = N_LEVELS + 2

EVEN_SHARE, LEAST_SHARE = 1e-3, 1e-6
"""A level that fills this share of a patch is as likely seen as not before anything is learned (16
square millimeters of 128 x 128 mm); and the share that stands for nothing."""

BACKGROUND = 4.0
"""Logit of the background against each label before anything is learned: most pixels are none."""


class UpBlock(nn.Module):
    """Twice the resolution, the encoder's map of it beside, two 3 x 3 convolutions."""

    def __init__(self, coarse: int, beside: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (coarse + beside, width):
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, coarse: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        """Map (b, coarse, h / 2, w / 2) and (b, beside, h, w) to (b, width, h, w)."""
        size = (beside.shape[2], beside.shape[3])
        found: torch.Tensor = self.layers(
            torch.cat([F.interpolate(coarse, size=size, mode="nearest"), beside], dim=1)
        )
        return found


class UNet(Network):
    """Encoder, decoder down to the encoder's finest map, and what each level's area says.

    A slice shows a level with log-odds that are linear in the logarithm of its expected area: two
    numbers a level, learned beside the map.
    """

    config: SegmentConfig

    def __init__(self, config: Any, heads: dict[str, int], *, pretrained: bool) -> None:
        super().__init__(config, heads, pretrained=pretrained)
        coarse, *finer = self.backbone.feature_info.channels()[::-1]
        blocks = []
        for k, beside in enumerate(finer):
            width = config.decoder_width * 2 ** (len(finer) - 1 - k)
            blocks.append(UpBlock(coarse, beside, width))
            coarse = width
        self.heads["decoder"] = nn.ModuleList(blocks)
        found = nn.Conv2d(coarse, N_LABELS, 1)
        nn.init.zeros_(found.bias)  # type: ignore[arg-type]
        found.bias.data[0] = BACKGROUND  # type: ignore[union-attr]
        self.heads[MAP] = found
        area = nn.Conv1d(N_LEVELS, N_LEVELS, 1, groups=N_LEVELS)
        nn.init.ones_(area.weight)
        nn.init.constant_(area.bias, -math.log(EVEN_SHARE))  # type: ignore[arg-type]
        self.heads["visible"] = area

    def _backbone(self, *, pretrained: bool) -> tuple[nn.Module, int]:
        return create_encoder(self.config, pretrained=pretrained)

    def forward(self, stack: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map units (b, 1, channels, h, w) in 0..255 to "visible" (b, 7) logits and, in training,
        "map" (b, 9, h, w) logits, else "labels" (b, h, w)."""
        pixels = self._flat(stack)
        found, *finer = self.backbone(pixels)[::-1]
        for block, beside in zip(self.heads["decoder"].children(), finer, strict=True):
            found = block(found, beside)
        size = (pixels.shape[2], pixels.shape[3])
        logits = F.interpolate(self.heads[MAP](self.drop(found)), size=size, mode="bilinear")
        share = logits.float().softmax(dim=1)[:, 1 : N_LEVELS + 1].mean(dim=(2, 3))
        visible = self.heads["visible"]((share + LEAST_SHARE).log()[:, :, None])[:, :, 0]
        if self.training:
            return {"visible": visible, MAP: logits}
        return {"visible": visible, LABELS: logits.argmax(dim=1)}

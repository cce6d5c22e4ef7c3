"""A network that also says where on a slice a fracture lies: a point in its middle, and its extent.

In: a `BoxesConfig` and its task's heads. Out: a module from uint8 stacks to logits and maps.
Example::

    small = config.boxes.model_copy(update={"backbone": "tiny_cnn", "size_px": 32})
    model = LesionModel(small, {"visible": 7, "fracture": 7, "any_fracture": 1}, pretrained=False)
    said = model(torch.zeros(2, 1, small.channels, 32, 32, dtype=torch.uint8))
    said["center"].shape, said["extent"].shape             # (2, 16, 16), (2, 4, 16, 16)

After Zhou et al., Objects as Points (2019): the last map of features at four times its resolution,
then for each place the logit of being a middle and how far left, top, right and bottom the box
reaches from there, as shares of the slice.
"""

from typing import Any

import torch
from torch import nn

from cspine_kit.vision.nets.heads import SliceModel, expect_few

WIDTH = 64


class Upward(nn.Sequential):
    """Twice the resolution."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(in_chans, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )


class LesionModel(SliceModel):
    """A `SliceModel` with a map of centers and extents."""

    def __init__(self, config: Any, heads: dict[str, int], *, pretrained: bool) -> None:
        super().__init__(config, heads, pretrained=pretrained)
        last = nn.Conv2d(WIDTH, 5, 1)
        expect_few(last.bias[:1])  # type: ignore[index]
        width = self.backbone.num_features
        self.heads["lesion"] = nn.Sequential(Upward(width, WIDTH), Upward(WIDTH, WIDTH), last)

    def forward(
        self, stack: torch.Tensor, facts: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Map units (b, 1, channels, h, w) in 0..255 to {head: (b, width)}, "center" (b, h', w')
        logits and "extent" (b, 4, h', w') left, top, right, bottom in 0..1."""
        seen, found = self.seen(stack)
        outputs = self.judged(found[:, 0])
        places = self.heads["lesion"](seen)
        outputs |= {"center": places[:, 0], "extent": torch.sigmoid(places[:, 1:])}
        return {**outputs, **self.maps(seen, stack)}

"""Convolutions in three dimensions over the planes of one vertebra.

In: a `VolumeConfig` and its task's heads. Out: a module from uint8 planes to logits. Example::

    small = config.volume.model_copy(update={"backbone": "tiny_3d", "slices_per_level": 8})
    model = VolumeModel(small, {"level": 1, "slice": 1, "visible": 1}, pretrained=False)
    planes = torch.zeros(2, 8, small.channels, 32, 32, dtype=torch.uint8)
    model(planes)["level"].shape, model(planes)["slice"].shape          # (2, 1), (2, 8)

A backbone keeps a map of features for every few planes; each plane takes those of its place, and
what follows is what follows in `nets.sequence`. Own: `tiny_3d`. torchvision's: `r3d_18` and its
like, whose pretrained weights have learned from films (Tran et al., CVPR 2018).
"""

import difflib
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from cspine_kit.core.config import VolumeConfig
from cspine_kit.core.errors import ConfigError
from cspine_kit.vision.nets.backbone import fit_channels, loading
from cspine_kit.vision.nets.heads import learned_maps
from cspine_kit.vision.nets.sequence import SequenceModel

TINY_WIDTHS = (16, 32, 64)
FILMS = ("r3d_18", "mc3_18", "r2plus1d_18")
OWN = "tiny_3d"
NAMES = (OWN, *FILMS)


class Block(nn.Module):
    """Two 3 x 3 x 3 convolutions beside the identity, at half the resolution."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv3d(in_chans, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            nn.Conv3d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm3d(width),
        )
        self.past = nn.Conv3d(in_chans, width, 1, stride=2, bias=False)

    def forward(self, found: torch.Tensor) -> torch.Tensor:
        """Map (b, in_chans, z, y, x) to (b, width, z / 2, y / 2, x / 2)."""
        return F.relu(self.inner(found) + self.past(found), inplace=True)


class Tiny3D(nn.Sequential):
    """A convolution of the planes at half their resolution, then two residual blocks."""

    def __init__(self, in_chans: int) -> None:
        first, *rest = TINY_WIDTHS
        stem = nn.Conv3d(in_chans, first, 3, stride=(1, 2, 2), padding=1, bias=False)
        layers: list[nn.Module] = [stem, nn.BatchNorm3d(first), nn.ReLU(inplace=True)]
        for before, width in zip(TINY_WIDTHS, rest, strict=False):
            layers.append(Block(before, width))
        super().__init__(*layers)


def check_volume(config: VolumeConfig, place: str) -> None:
    """Refuse a backbone that there is not.

    Raises:
        ConfigError: names the key and the nearest valid choice.
    """
    if config.backbone not in NAMES:
        near = difflib.get_close_matches(config.backbone, NAMES, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{place}.backbone: {config.backbone!r} is no network of three dimensions, there are "
            f"{list(NAMES)}{hint}"
        )
    if config.backbone == OWN and config.pretrained and config.weights is None:
        raise ConfigError(
            f"{place}.backbone: there are no pretrained weights of {OWN!r}; or set "
            f"{place}.pretrained: false"
        )


def create_volume(name: str, in_chans: int, *, pretrained: bool) -> tuple[nn.Module, int]:
    """A backbone from (b, in_chans, z, y, x) to its last map of features, and their number."""
    if name == OWN:
        return Tiny3D(in_chans), TINY_WIDTHS[-1]
    made: Any = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    first = made.stem[0]
    if first.in_channels != in_chans:
        weight = fit_channels(first.weight.detach(), in_chans)
        first.in_channels, first.weight = in_chans, nn.Parameter(weight)
    layers = (made.stem, made.layer1, made.layer2, made.layer3, made.layer4)
    return nn.Sequential(*layers), int(made.fc.in_features)


class VolumeModel(SequenceModel):
    """A backbone over all planes of a vertebra at once."""

    layout = torch.channels_last_3d

    def _backbone(self, *, pretrained: bool) -> tuple[nn.Module, int]:
        config = self.config
        with loading(config, pretrained=pretrained):
            return create_volume(config.backbone, config.channels, pretrained=pretrained)

    def _map_head(self) -> nn.Module:
        return nn.Conv3d(self.width, 1, 1)

    def features(self, stack: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See `Network`."""
        pixels = self.pixels(stack).transpose(1, 2).contiguous(memory_format=self.layout)
        seen = self.backbone(pixels)
        seen = F.interpolate(seen, size=(stack.shape[1], *seen.shape[3:]))
        names = learned_maps(self.config) if self.training else {}
        maps = {name: self.heads[name](seen)[:, 0] for name in names}
        return self.drop(seen.mean(dim=(3, 4)).transpose(1, 2)), maps

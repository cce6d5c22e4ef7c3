"""A backbone and what stands on it: the base of every network, and the one that judges one stack.

In: a `ModelConfig` and head widths. Out: a module from uint8 stacks to a dict of head outputs.
Example::

    model = SliceModel(config.vertebra, {"visible": 7, "box": 4}, pretrained=False)
    stacks = torch.zeros(2, 1, config.vertebra.channels, 64, 64, dtype=torch.uint8)
    model(stacks)["box"].shape                                              # (2, 4)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.config import (
    ClassifierConfig,
    MemberConfig,
    ModelConfig,
    SlicesConfig,
    VertebraConfig,
)
from cspine_kit.vision.inputs.views import FACT_NAMES
from cspine_kit.vision.nets.backbone import create_backbone

PIXEL_MEAN, PIXEL_STD = 0.449, 0.226
"""ImageNet statistics averaged over color channels, for any number of channels."""

MASK = "mask"
"""Name of the mask's head and target."""


LESIONS = "lesions"
"""The same of the map of fracture boxes."""

RARE = 0.01
"""Share of places that a new network takes for a fracture."""


def learned_maps(config: ModelConfig) -> dict[str, float]:
    """Maps that are learned on the last feature map, and the weights of their losses."""
    losses = {MASK: config.mask_loss} if isinstance(config, MemberConfig) else {}
    if isinstance(config, ClassifierConfig):
        losses[LESIONS] = config.lesion_loss
    return {name: loss for name, loss in losses.items() if loss > 0}


def expect_few(bias: torch.Tensor) -> None:
    """Make the logits of a new map those of something rare."""
    nn.init.constant_(bias, math.log(RARE / (1.0 - RARE)))


FACTS = "facts"
"""Name of what headers or levels say of a unit, (b, facts), beside "stack" in a batch."""

FACT_WIDTH = 16


def asks_headers(config: ModelConfig) -> bool:
    """True where the network takes facts of headers beside the stack."""
    return isinstance(config, VertebraConfig) and config.header


def asks_levels(config: ModelConfig) -> bool:
    """True where the network takes the levels of a slice beside the stack."""
    return isinstance(config, SlicesConfig) and config.levels_input


def _count_facts(config: ModelConfig) -> int:
    """Numbers that the network takes beside each stack."""
    if asks_headers(config):
        return len(FACT_NAMES)
    return N_LEVELS if asks_levels(config) else 0


def inputs_of(batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What a network is called with: the stack and, where there are any, facts."""
    return tuple(batch[name] for name in ("stack", FACTS) if name in batch)


class Network(nn.Module, ABC):
    """A backbone that looks at every patch of a unit, and `heads` that judge what it found.

    Attributes:
        config: its section of the config.
        widths: of its heads, as its task names them.
        layout: of pixels and filters in memory.
        synthetic: True of weights that learned from synthetic scans alone, from no real mask.
        heads: everything behind the backbone. Where the config asks for it, "mask" finds C1 to C7
            and "lesions" fractures on the last feature map: targets that training alone knows.
    """

    backbone: Any
    heads: nn.ModuleDict
    layout: ClassVar[torch.memory_format] = torch.channels_last
    synthetic: bool = False

    def __init__(self, config: Any, heads: dict[str, int], *, pretrained: bool) -> None:
        super().__init__()
        self.config = config
        self.widths = dict(heads)
        self.backbone, self.width = self._backbone(pretrained=pretrained)
        self.drop = nn.Dropout(config.drop_rate)
        self.heads = nn.ModuleDict()
        for name in learned_maps(config):
            self.heads[name] = self._map_head()
        if LESIONS in self.heads:
            expect_few(self.heads[LESIONS].bias)  # type: ignore[arg-type]

    def _backbone(self, *, pretrained: bool) -> tuple[nn.Module, int]:
        """What looks at a patch, and the width of what it finds."""
        return create_backbone(self.config, pretrained=pretrained)

    def _map_head(self) -> nn.Module:
        return nn.Conv2d(self.backbone.num_features, 1, 1)

    def pixels(self, stack: torch.Tensor) -> torch.Tensor:
        """Units in 0..255 as the backbone takes their values."""
        dtype = next(self.parameters()).dtype
        return (stack.to(dtype) / 255.0 - PIXEL_MEAN) / PIXEL_STD

    def _flat(self, stack: torch.Tensor) -> torch.Tensor:
        return self.pixels(stack.flatten(0, 1)).contiguous(memory_format=self.layout)

    def seen(self, stack: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map units (b, patches, channels, h, w) in 0..255 to the last map of each patch,
        (b x patches, features, h', w'), and to (b, patches, features)."""
        seen = self.backbone.forward_features(self._flat(stack))
        found = self.backbone.forward_head(seen, pre_logits=True)
        return seen, self.drop(found).reshape(*stack.shape[:2], -1)

    def maps(self, seen: torch.Tensor, stack: torch.Tensor) -> dict[str, torch.Tensor]:
        """In training, logits (b, patches, h', w') of the maps that are learned."""
        names = learned_maps(self.config) if self.training else {}
        found = {name: self.heads[name](seen) for name in names}
        return {n: each.reshape(*stack.shape[:2], *each.shape[2:]) for n, each in found.items()}

    def features(self, stack: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Map units (b, patches, channels, h, w) in 0..255 to (b, patches, features), and in
        training to logits (b, patches, h', w') of the maps that are learned."""
        if learned_maps(self.config) and self.training:
            seen, found = self.seen(stack)
            return found, self.maps(seen, stack)
        found = self.drop(self.backbone(self._flat(stack)))
        return found.reshape(*stack.shape[:2], -1), {}

    @abstractmethod
    def forward(
        self, stack: torch.Tensor, facts: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Map units (b, patches, channels, h, w) in 0..255 to head outputs, (b, ...) each; facts
        (b, facts) where the config asks for headers or levels."""


class SliceModel(Network):
    """Backbone, dropout and one linear layer per head; a unit is one patch. Where the config asks
    for headers or levels, a small layer reads their facts beside the backbone (source document
    B)."""

    def __init__(self, config: Any, heads: dict[str, int], *, pretrained: bool) -> None:
        super().__init__(config, heads, pretrained=pretrained)
        width = self.width
        if facts := _count_facts(config):
            self.heads[FACTS] = nn.Sequential(nn.Linear(facts, FACT_WIDTH), nn.ReLU())
            width += FACT_WIDTH
        self.heads.update({name: nn.Linear(width, n) for name, n in heads.items()})

    def forward(
        self, stack: torch.Tensor, facts: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Map units (b, 1, channels, h, w) in 0..255, and facts of their headers or levels
        (b, facts) where the config asks for them, to {head: (b, width)} logits or shares."""
        found, maps = self.features(stack)
        features = found.squeeze(1)
        if FACTS in self.heads:
            if facts is None:
                raise ValueError("this network reads facts beside the stack, and got none")
            features = torch.cat([features, self.heads[FACTS](facts.to(features.dtype))], dim=1)
        return {**self.judged(features), **maps}

    def judged(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map (b, features) to {head: (b, width)} logits or shares."""
        outputs = {name: self.heads[name](features) for name in self.widths}
        if "any_fracture" in outputs:
            # A break looks alike at every level: one shared score learns from all of them, where
            # seven separate ones would see a handful of positives each.
            outputs["fracture"] = outputs["fracture"] + outputs.pop("any_fracture")
        return outputs

"""A sequence over the stacks of a vertebra, and over the seven vertebrae of a study.

In: a `LevelsConfig` or `StudyConfig` and its task's heads. Out: a module from uint8 stacks to
logits of stacks, vertebrae and the study. Example::

    small = config.study.model_copy(update={"slices_per_level": 3, "in_chans": 3, "size_px": 32})
    model = SequenceModel(small, {"level": 1, "slice": 1, "visible": 1}, pretrained=False)
    stacks = torch.zeros(2, 7 * 3, 3, 32, 32, dtype=torch.uint8)
    model(stacks)["level"].shape, model(stacks)["study"].shape          # (2, 7), (2, 8)

A vertebra is judged by the mean of its stacks, each counted as far as it shows the vertebra, and by
their maximum. The study's head corrects the seven by what stands beside them.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cspine_kit.core.anatomy import N_LEVELS
from cspine_kit.core.config import LevelsConfig, StudyConfig
from cspine_kit.vision.nets.heads import Network

STUDY_WIDTH = 32
"""Features of a vertebra beside its logit that the study's head reads."""

LEAST = 1e-6
"""Noisy-or of seven certain negatives is still above this."""


class Attention(nn.Module):
    """One layer of self-attention; where a stack lies is learned with up to 64 places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = nn.Embedding(64, width)
        self.layer = nn.TransformerEncoderLayer(
            width, nhead=8, dim_feedforward=2 * width, dropout=0.0, batch_first=True
        )

    def forward(self, stacks: torch.Tensor) -> torch.Tensor:
        """Map (b, n, width) to the same shape."""
        at = torch.linspace(0, 63, stacks.shape[1], device=stacks.device).long()
        found: torch.Tensor = self.layer(stacks + self.place(at))
        return found


class Recurrent(nn.Module):
    """A bidirectional GRU beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, stacks: torch.Tensor) -> torch.Tensor:
        """Map (b, n, width) to the same shape."""
        found: torch.Tensor = stacks + self.layer(stacks)[0]
        return found


def _sequence(config: LevelsConfig) -> nn.Module:
    if config.sequence == "none":
        return nn.Identity()
    return (Recurrent if config.sequence == "gru" else Attention)(config.hidden)


class StudyHead(nn.Module):
    """From what is known of seven vertebrae to eight logits; begins as the seven and a noisy-or."""

    def __init__(self, config: StudyConfig, width: int) -> None:
        super().__init__()
        self.learned = config.overall == "learned"
        self.read = nn.Linear(width + 1, STUDY_WIDTH)
        self.place = nn.Parameter(torch.zeros(N_LEVELS, STUDY_WIDTH))
        self.beside = nn.GRU(STUDY_WIDTH, STUDY_WIDTH // 2, batch_first=True, bidirectional=True)
        self.change = nn.Linear(STUDY_WIDTH, 1)
        self.overall = nn.Linear(2 * STUDY_WIDTH, 1)
        for layer in (self.change, self.overall):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.scale = nn.Parameter(torch.ones(2))
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, logits: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Map (b, 7) and (b, 7, width) to (b, 8)."""
        known = torch.cat([features, logits[..., None]], dim=2)
        found = self.beside(F.relu(self.read(known)) + self.place)[0]
        levels = logits * self.scale[0] + self.shift[0] + self.change(found).squeeze(2)
        # log(1 - prod(1 - p)) - log(prod(1 - p)), from logits
        none = F.softplus(levels.float()).sum(dim=1)
        any_ = none + torch.log(-torch.expm1(-none.clamp_min(LEAST)))
        if self.learned:
            pooled = torch.cat([found.mean(dim=1), found.amax(dim=1)], dim=1)
            any_ = any_ * self.scale[1] + self.shift[1] + self.overall(pooled).squeeze(1)
        return torch.cat([levels, any_[:, None]], dim=1)


class SequenceModel(Network):
    """Backbone, a sequence over the stacks of each vertebra, and for a study one over the seven."""

    config: LevelsConfig

    def __init__(self, config: Any, heads: dict[str, int], *, pretrained: bool) -> None:
        super().__init__(config, heads, pretrained=pretrained)
        hidden = config.hidden
        widths = {"level": 2 * hidden, "slice": hidden, "visible": hidden}
        parts: dict[str, nn.Module] = {
            "read": nn.Linear(self.width, hidden),
            "sequence": _sequence(config),
            **{name: nn.Linear(widths[name], n) for name, n in heads.items()},
        }
        if isinstance(config, StudyConfig):
            parts["study"] = StudyHead(config, 2 * hidden)
        self.heads.update(parts)
        self.per_unit = N_LEVELS if isinstance(config, StudyConfig) else 1

    def forward(
        self, stack: torch.Tensor, facts: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Map (b, vertebrae x stacks, channels, h, w) in 0..255 to logits.

        Returns:
            "slice" and "visible" (b, vertebrae x stacks), "level" (b, vertebrae) and, of a study,
            "study" (b, 8); in training, the maps that are learned.
        """
        seen, maps = self.features(stack)
        features: torch.Tensor = self.heads["read"](seen)
        b, vertebrae = len(stack), self.per_unit
        features = features.reshape(b * vertebrae, -1, features.shape[2])
        features = F.relu(self.heads["sequence"](features))
        visible = self.heads["visible"](features)
        share = torch.sigmoid(visible) + LEAST
        mean = (features * share).sum(dim=1) / share.sum(dim=1)
        pooled = self.drop(torch.cat([mean, features.amax(dim=1)], dim=1))
        outputs = {
            "level": self.heads["level"](pooled).reshape(b, vertebrae),
            "slice": self.heads["slice"](features).reshape(b, -1),
            "visible": visible.reshape(b, -1),
        }
        if "study" in self.heads:
            each = pooled.reshape(b, vertebrae, -1)
            outputs["study"] = self.heads["study"](outputs["level"], each)
        return {**outputs, **maps}

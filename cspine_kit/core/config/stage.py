"""Networks of the vertebra stage: a class for each kind, with the keys that do something for it.

In: the sections `vertebra`, `segment` and `vertebra_members`. Out: their values. Example::

    config.vertebra.target, [one.kind for one in config.vertebra_members.values()]

To add a kind: write its class, name it in `STAGE` and `StageMember`, and give it a section in
`Config`.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cspine_kit.core.config.network import ModelConfig
from cspine_kit.core.config.section import Count, NotNegative, Share


class StageConfig(ModelConfig):
    """What every network of the vertebra stage has."""

    slices_per_study: Count
    upside_down: Share

    @property
    def drawn(self) -> float:
        """Patches of a study in each epoch of a training."""
        return self.slices_per_study


class VertebraConfig(StageConfig):
    """A network of the vertebra stage: which of C1..C7 a slice shows, and where the spine is."""

    kind: Literal["vertebra"] = "vertebra"
    target: Literal["presence", "area"] = "presence"
    thoracic_loss: NotNegative = 0.0
    header: bool = False
    rounds: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _rounds_teach_presence(self) -> "VertebraConfig":
        if self.rounds and self.target != "presence":
            raise ValueError(
                "rounds: pseudo-labels are probabilities of presence; set target: presence, or "
                "rounds: 0"
            )
        return self


class SegmentConfig(StageConfig):
    """A network of the vertebra stage that draws C1..C7 pixel by pixel."""

    kind: Literal["segment"] = "segment"
    upside_down: Share = 0.0
    decoder_width: Count = 16
    visible_loss: NotNegative = 0.5


StageMember = Annotated[VertebraConfig | SegmentConfig, Field(discriminator="kind")]
"""Any of the vertebra stage's networks."""

STAGE: dict[str, type[ModelConfig]] = {"vertebra": VertebraConfig, "segment": SegmentConfig}
"""Kinds of the vertebra stage; the first one is meant where none is named."""

"""Networks and their training: a class for each kind, with the keys that do something for it.

In: the sections `model`, `vertebra` and `members`. Out: their values. Example::

    config.vertebra.kind, [member.kind for member in config.members.values()]

`model` holds the defaults of all kinds; a kind takes the keys that it has. To add a kind of member:
write its class, and name it in `MEMBERS` and `Network`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from cspine_kit.core.config.section import Count, NotNegative, Positive, Section, Share


class AugmentConfig(Section):
    """Random changes of training stacks; each is drawn anew per sample."""

    flip_x: Share
    rotate_deg: NotNegative
    shift_mm: NotNegative
    scale: Annotated[float, Field(ge=0.0, lt=1.0)]
    brightness: NotNegative
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)]
    noise: NotNegative


class ModelConfig(Section):
    """What every kind of network has: what it sees, its backbone, how it is trained."""

    kind: str
    backbone: str
    pretrained: bool
    weights: Path | None
    in_chans: Count
    stack_step_mm: Positive
    slice_step_mm: Positive
    field_mm: Positive
    size_px: Count
    windows: Annotated[tuple[tuple[float, float], ...], Field(min_length=1)]
    drop_rate: Annotated[float, Field(ge=0.0, lt=1.0)]
    epochs: Count
    batch_size: Count
    slices_per_study: Count
    lr: Positive
    head_lr: Positive | None
    weight_decay: NotNegative
    warmup: Share
    clip_norm: Positive | None
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)]
    augment: AugmentConfig
    seed: int = 0

    @property
    def channels(self) -> int:
        """Images that the network sees at once: every window of every plane."""
        return self.in_chans * len(self.windows)

    @model_validator(mode="after")
    def _windows_open(self) -> "ModelConfig":
        for low, high in self.windows:
            if low >= high:
                raise ValueError(f"windows: {low} must lie below {high}")
        return self

    @model_validator(mode="after")
    def _odd_channels(self) -> "ModelConfig":
        if self.in_chans % 2 == 0:
            raise ValueError(f"in_chans must be odd (a center and its neighbours): {self.in_chans}")
        return self

    @model_validator(mode="after")
    def _safetensors(self) -> "ModelConfig":
        if self.weights is not None and self.weights.suffix != ".safetensors":
            raise ValueError(f"weights must be a .safetensors file, got {self.weights}")
        return self


class VertebraConfig(ModelConfig):
    """The vertebra stage: which of C1..C7 a slice shows, and where the spine is."""

    kind: Literal["vertebra"] = "vertebra"


class SlicesConfig(ModelConfig):
    """A member that scores axial slices."""

    kind: Literal["slices"] = "slices"
    fractured_share: Share
    positive_weight: Positive
    visible_loss: NotNegative
    warm_start: bool


MEMBERS: dict[str, type[ModelConfig]] = {"slices": SlicesConfig}
"""Kinds of members; the first one is meant where none is named."""

KINDS: dict[str, type[ModelConfig]] = {"vertebra": VertebraConfig, **MEMBERS}

Network = Annotated[VertebraConfig | SlicesConfig, Field(discriminator="kind")]
"""Any of them."""

_NETWORK: TypeAdapter[VertebraConfig | SlicesConfig] = TypeAdapter(Network)


def parse_network(raw: Any) -> VertebraConfig | SlicesConfig:
    """One network's section by its `kind`, as a `model.json` holds it.

    Raises:
        ValueError: it is none.
    """
    return _NETWORK.validate_python(raw)

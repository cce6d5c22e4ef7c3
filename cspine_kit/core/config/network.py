"""What every kind of network has: what it sees, its backbone, how it is trained.

In: the section `model`, and what a kind adds to it. Out: their values. Example::

    config.vertebra.backbone, config.vertebra.channels, config.vertebra.reach_mm
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cspine_kit.core.config.section import Count, NotNegative, Positive, Section, Share
from cspine_kit.core.paths import FINDER_WEIGHTS

Plane = Literal["axial", "sagittal", "coronal"]


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
    weights: Path | Literal["finder"] | None
    in_chans: Count
    stack_step_mm: Positive
    slice_step_mm: Positive
    field_mm: Positive
    size_px: Count
    windows: Annotated[
        tuple[tuple[float, float] | Literal["minmax", "spine"], ...], Field(min_length=1)
    ]
    drop_rate: Annotated[float, Field(ge=0.0, lt=1.0)]
    epochs: Count
    batch_size: Count
    lr: Positive
    head_lr: Positive | None
    weight_decay: NotNegative
    warmup: Share
    clip_norm: Positive | None
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)]
    augment: AugmentConfig
    seed: int = 0

    @property
    def weights_file(self) -> Path | None:
        """The file that `weights` names; "finder" is that of the level finder that ships."""
        return FINDER_WEIGHTS if self.weights == "finder" else self.weights

    @property
    def channels(self) -> int:
        """Images that the network sees at once: every window of every plane."""
        return self.in_chans * len(self.windows)

    @property
    def stack_mm(self) -> float:
        """How far a stack's outer planes lie from its middle."""
        return self.stack_step_mm * (self.in_chans // 2)

    @property
    def reach_mm(self) -> float:
        """How far it looks above the highest level and below the lowest."""
        return self.stack_mm

    @property
    def around_mm(self) -> float:
        """How far it looks above and below the centers of levels."""
        return 0.0

    @property
    def neck_mm(self) -> float:
        """How far along z it looks around the middle of the neck, in all."""
        return 0.0

    @property
    def side_mm(self) -> float:
        """Side of the axial square around the spine that it sees."""
        return self.field_mm

    def shown(self, length_mm: float) -> float:
        """Patches of a study that it is asked about, along a length of the scan."""
        return length_mm / self.slice_step_mm

    @property
    def drawn(self) -> float:
        """Patches of a study in each epoch of a training."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _windows_open(self) -> "ModelConfig":
        for window in self.windows:
            if not isinstance(window, str) and window[0] >= window[1]:
                raise ValueError(f"windows: {window[0]} must lie below {window[1]}")
        if set(self.windows) == {"spine"}:
            raise ValueError("windows: spine is a mask beside images; name a window too")
        return self

    @model_validator(mode="after")
    def _odd_channels(self) -> "ModelConfig":
        if self.in_chans % 2 == 0:
            raise ValueError(f"in_chans must be odd (a center and its neighbours): {self.in_chans}")
        return self

    @model_validator(mode="after")
    def _safetensors(self) -> "ModelConfig":
        file = self.weights_file
        if file is not None and file.suffix != ".safetensors":
            raise ValueError(f"weights must be a .safetensors file or 'finder', got {file}")
        return self

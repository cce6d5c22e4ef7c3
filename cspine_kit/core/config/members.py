"""Networks of the fracture stage: a class for each kind, with the keys that do something for it.

In: the section `members`, and those named like kinds. Out: their values. Example::

    [member.kind for member in config.members.values()]

A section named like a kind holds that kind's own defaults. To add a kind: write its class, name it
in `MEMBERS` and `Member`, and give it a section in `Config`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from cspine_kit.core.anatomy import AXIAL, N_LEVELS
from cspine_kit.core.config.network import ModelConfig, Plane
from cspine_kit.core.config.section import Count, Name, NotNegative, Positive, Share


class MemberConfig(ModelConfig):
    """What every kind of member has."""

    positive_weight: Positive
    visible_loss: NotNegative
    mask_loss: NotNegative
    warm_start: bool | Name
    background: Literal["keep", "zero"] = "keep"
    head_epochs: Annotated[int, Field(ge=0)] = 0
    head_studies: Literal["all", "same_half", "other_half"] = "all"

    @property
    def plain(self) -> "MemberConfig":
        """Itself as it learns before its `head_epochs`: a fracture counts as much as any label."""
        return self.model_copy(update={"positive_weight": 1.0})

    @model_validator(mode="after")
    def _backbone_learns(self) -> "MemberConfig":
        if self.head_epochs >= self.epochs:
            raise ValueError(
                f"head_epochs {self.head_epochs} must lie below epochs {self.epochs}, of which "
                "they are the last: before them the backbone learns"
            )
        if self.head_studies != "all" and not self.head_epochs:
            raise ValueError(
                f"head_studies: {self.head_studies!r} does nothing without head_epochs; set "
                "head_epochs to some of the last epochs, or head_studies: all"
            )
        return self


class ClassifierConfig(MemberConfig):
    """A member that judges slices or vertebrae, and what it may learn beside their labels."""

    plane: Plane
    mixup: Share = 0.0
    cutmix: Share = 0.0
    slice_labels: Literal["study", "visible", "boxes"] = "study"
    lesion_loss: NotNegative = 0.0
    rounds: Annotated[int, Field(ge=0)] = 0

    @property
    def labels_slices(self) -> bool:
        """True where slices learn labels of their own, not just their study's."""
        return self.slice_labels != "study" or self.rounds > 0

    @model_validator(mode="after")
    def _mixed_in_one_way(self) -> "ClassifierConfig":
        if self.mixup and self.cutmix:
            raise ValueError("mixup and cutmix: a pair is mixed in one way; set one of them to 0")
        return self

    @model_validator(mode="after")
    def _halved_once(self) -> "ClassifierConfig":
        if self.rounds and self.head_studies != "all":
            raise ValueError(
                "rounds and head_studies: both halve the training studies; set rounds: 0, or "
                "head_studies: all"
            )
        return self

    @model_validator(mode="after")
    def _axial_slices_have_labels(self) -> "ClassifierConfig":
        asked = {"lesion_loss": self.lesion_loss > 0, "slice_labels": self.slice_labels != "study"}
        asked |= {"rounds": self.rounds > 0}
        for key in (key for key, on in asked.items() if on and self.plane != AXIAL):
            usual = type(self).model_fields[key].default
            raise ValueError(
                f"{key}: what is known of single slices lies on axial ones, and plane is "
                f"{self.plane!r}; set plane: axial, or {key}: {usual}"
            )
        return self


class SlicesConfig(ClassifierConfig):
    """A member that scores slices of one plane."""

    kind: Literal["slices"] = "slices"
    across_mm: NotNegative
    slices_per_study: Count
    fractured_share: Share
    one_output: bool = False
    levels_input: bool = False

    @property
    def reach_mm(self) -> float:
        """How far it looks above the highest level and below the lowest."""
        return self.stack_mm if self.plane == AXIAL else 0.0

    @property
    def neck_mm(self) -> float:
        """How far along z it looks around the middle of the neck, in all."""
        return 0.0 if self.plane == AXIAL else self.field_mm

    @property
    def side_mm(self) -> float:
        """Side of the axial square around the spine that it sees."""
        across = 0.0 if self.plane == AXIAL else 2 * (self.across_mm + self.stack_mm)
        return max(self.field_mm, across)

    def shown(self, length_mm: float) -> float:
        """Patches of a study that it is asked about, along a length of the scan."""
        return (length_mm if self.plane == AXIAL else 2 * self.across_mm) / self.slice_step_mm

    @property
    def drawn(self) -> float:
        """Patches of a study in each epoch of a training."""
        return self.slices_per_study

    @model_validator(mode="after")
    def _levels_differ_along_z(self) -> "SlicesConfig":
        if self.levels_input and self.plane != AXIAL:
            raise ValueError(
                f"levels_input: a {self.plane} slice shows every level; set plane: axial, or "
                "levels_input: false"
            )
        return self

    @model_validator(mode="after")
    def _levels_have_labels(self) -> "SlicesConfig":
        if self.one_output and self.labels_slices:
            raise ValueError(
                "slice_labels, rounds: they label levels on slices, and one_output speaks of none; "
                "set one_output: false, or slice_labels: study and rounds: 0"
            )
        return self


class LevelsConfig(ClassifierConfig):
    """A member that scores one vertebra from several stacks around its center."""

    kind: Literal["levels"] = "levels"
    slices_per_level: Count
    sequence: Literal["gru", "attention", "none"]
    hidden: Annotated[int, Field(ge=8, multiple_of=8)]
    others_share: Share
    slice_loss: NotNegative

    @property
    def spread_mm(self) -> float:
        """How far the outer stacks lie from the center of a vertebra."""
        return self.slice_step_mm * (self.slices_per_level - 1) / 2

    @property
    def reach_mm(self) -> float:
        """How far it looks above the highest level and below the lowest."""
        return 0.0

    @property
    def around_mm(self) -> float:
        """How far it looks above and below the centers of levels."""
        return self.spread_mm + self.stack_mm if self.plane == AXIAL else self.field_mm / 2

    @property
    def side_mm(self) -> float:
        """Side of the axial square around the spine that it sees."""
        across = 0.0 if self.plane == AXIAL else 2 * (self.spread_mm + self.stack_mm)
        return max(self.field_mm, across)

    def shown(self, length_mm: float) -> float:
        """Patches of a study that it is asked about, along a length of the scan."""
        return float(N_LEVELS * self.slices_per_level)

    @property
    def drawn(self) -> float:
        """Patches of a study in each epoch of a training, but for fractured ones."""
        return N_LEVELS * self.slices_per_level * self.others_share

    @model_validator(mode="after")
    def _sequence_has_length(self) -> "LevelsConfig":
        if self.slices_per_level == 1 and self.sequence != "none":
            raise ValueError(
                f"sequence: {self.sequence!r} does nothing with slices_per_level: 1; did you mean "
                "'none'?"
            )
        return self


class StudyConfig(LevelsConfig):
    """A member that scores the seven vertebrae of a study jointly."""

    kind: Literal["study"] = "study"  # type: ignore[assignment]
    form: Literal["per_exam", "global"]
    overall: Literal["learned", "noisy_or"]
    study_loss: Positive

    @property
    def plain(self) -> "MemberConfig":
        """Itself as it learns before its `head_epochs`: from single vertebrae alone."""
        return super().plain.model_copy(update={"study_loss": 0.0})


class VolumeConfig(LevelsConfig):
    """A member that scores one vertebra from all its planes at once, in three dimensions."""

    kind: Literal["volume"] = "volume"  # type: ignore[assignment]


class BoxesConfig(MemberConfig):
    """A member that finds fractures as boxes on axial slices, and judges the slices."""

    kind: Literal["boxes"] = "boxes"
    plane: ClassVar[Plane] = "axial"
    slices_per_study: Count
    fractured_share: Share
    lesion_loss: Positive

    @property
    def drawn(self) -> float:
        """Patches of a study in each epoch of a training."""
        return self.slices_per_study


Member = Annotated[
    SlicesConfig | LevelsConfig | StudyConfig | VolumeConfig | BoxesConfig,
    Field(discriminator="kind"),
]
"""Any of the fracture stage's networks."""

MEMBERS: dict[str, type[MemberConfig]] = {
    "slices": SlicesConfig,
    "levels": LevelsConfig,
    "study": StudyConfig,
    "volume": VolumeConfig,
    "boxes": BoxesConfig,
}
"""Kinds of members; the first one is meant where none is named."""

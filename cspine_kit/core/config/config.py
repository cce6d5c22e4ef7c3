"""The whole config: its sections, and what must fit between them.

In: sections. Out: a frozen `Config`. Example: `list(config.members)`.
"""

from typing import Annotated

from pydantic import Field, model_validator

from cspine_kit.core.config.competition import CompetitionConfig, FoldsConfig
from cspine_kit.core.config.machine import ExecutionConfig, TrainingConfig
from cspine_kit.core.config.members import (
    BoxesConfig,
    ClassifierConfig,
    LevelsConfig,
    Member,
    MemberConfig,
    SlicesConfig,
    StudyConfig,
    VolumeConfig,
)
from cspine_kit.core.config.network import ModelConfig
from cspine_kit.core.config.rounds import Half, halves_of, round_name
from cspine_kit.core.config.section import Name, Section
from cspine_kit.core.config.ship import BundleConfig, KernelConfig
from cspine_kit.core.config.stack import StackConfig
from cspine_kit.core.config.stage import SegmentConfig, StageMember, VertebraConfig
from cspine_kit.core.config.volumes import VolumesConfig

RESERVED = frozenset(
    {
        *("vertebra", "all", "raw", "study", "headers", "shipped", "best_constant"),
        *("mean_of_members", "log_odds_mean", "maximum", "top5_mean", "mlp_5th_place"),
        *("visibility_weighted_mean", "visibility_weighted_mean_max", "logistic_regression"),
    }
)
"""Names of stages, features and models of the kit that no member may bear, nor any that begins like
the stack's own."""

STACK_MODELS = "stack"

LEAST_FOLDS = 3
"""From here on the training folds of a fold can be halved."""


def _taken(name: str) -> bool:
    return name in RESERVED or name.startswith(STACK_MODELS)


def _rounds(network: ModelConfig) -> int:
    return network.rounds if isinstance(network, VertebraConfig | ClassifierConfig) else 0


class Config(Section):
    """A complete, resolved experiment."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    seed: int
    competition: CompetitionConfig
    exclude: dict[str, str]
    folds: FoldsConfig
    volumes: VolumesConfig
    model: SlicesConfig
    vertebra: VertebraConfig
    segment: SegmentConfig
    vertebra_members: dict[Name, StageMember] = Field(default_factory=dict)
    levels: LevelsConfig
    study: StudyConfig
    volume: VolumeConfig
    boxes: BoxesConfig
    members: Annotated[dict[Name, Member], Field(min_length=1)]
    training: TrainingConfig
    stack: StackConfig
    bundle: BundleConfig
    kernel: KernelConfig
    execution: ExecutionConfig

    @property
    def networks(self) -> dict[str, ModelConfig]:
        """The vertebra stage's networks and the members, by name."""
        return {**self._stage_members, **self.members}

    @property
    def _stage_members(self) -> dict[str, VertebraConfig | SegmentConfig]:
        return {"vertebra": self.vertebra, **self.vertebra_members}

    @property
    def stage_rounds(self) -> list[dict[str, VertebraConfig | SegmentConfig]]:
        """Networks that round 0, 1, ... of pseudo-labels trains in the vertebra stage, by name."""
        members = self._stage_members
        last = max(map(_rounds, members.values()))
        return [
            {round_name(n, r): m for n, m in members.items() if r <= _rounds(m)}
            for r in range(last + 1)
        ]

    @property
    def teachers(self) -> dict[str, str]:
        """By network of the vertebra stage, that of the round before, which teaches it."""
        return {
            round_name(name, r): round_name(name, r - 1)
            for name, member in self._stage_members.items()
            for r in range(1, _rounds(member) + 1)
        }

    @property
    def stage(self) -> dict[str, VertebraConfig | SegmentConfig]:
        """The vertebra stage's networks that speak, each of its last round, by name."""
        return self.stage_after(len(self.stage_rounds) - 1)

    def starts_from(self, fracture: str) -> str | None:
        """The network of the vertebra stage whose backbone one of the fracture stage goes on with,
        if any."""
        named = self.fracture[fracture].warm_start
        name = "vertebra" if named is True else named
        return round_name(name, _rounds(self._stage_members[name])) if name else None

    def stage_after(self, number: int) -> dict[str, VertebraConfig | SegmentConfig]:
        """The networks that would speak if that round of pseudo-labels were the last."""
        members = self._stage_members.items()
        return {round_name(name, min(number, _rounds(m))): m for name, m in members}

    @property
    def halves(self) -> dict[str, Half]:
        """Networks that the members' rounds train before them, by name."""
        found: dict[str, Half] = {}
        for name, member in self.members.items():
            found |= halves_of(name, _rounds(member))
        return found

    @property
    def fracture(self) -> dict[str, MemberConfig]:
        """Every network of the fracture stage by name, each after those that teach it."""
        return {**{name: self.members[h.member] for name, h in self.halves.items()}, **self.members}

    def halves_before(self, name: str) -> list[str]:
        """The two networks that sharpen the labels of a network of the fracture stage, if any."""
        member, number = self._place(name)
        own = self.halves.items()
        return [n for n, h in own if (h.member, h.number) == (member, number - 1)]

    def _place(self, name: str) -> tuple[str, int]:
        """Member and round of a network of the fracture stage."""
        half = self.halves.get(name)
        return (half.member, half.number) if half else (name, _rounds(self.members[name]))

    @property
    def trained(self) -> dict[str, ModelConfig]:
        """Every network that a fold trains, by name: those of earlier rounds too."""
        stage = {name: m for part in self.stage_rounds for name, m in part.items()}
        return {**stage, **self.fracture}

    @model_validator(mode="after")
    def _fields_fit(self) -> "Config":
        volumes = self.volumes
        for name, model in self.networks.items():
            grid = "fine" if name in self.members else "coarse"
            most = volumes.fine.field_mm if name in self.members else volumes.coarse.field_mm
            if model.side_mm > most:
                what = (
                    ".field_mm" if model.side_mm == model.field_mm else ": its planes' breadth of"
                )
                raise ValueError(
                    f"{name}{what} {model.side_mm} is larger than volumes.{grid}.field_mm {most}"
                )
        for name, member in self.members.items():
            if member.reach_mm > volumes.fine.margin_mm:
                raise ValueError(
                    f"{name}: it looks {member.reach_mm} mm up and down, more than "
                    f"volumes.fine.margin_mm {volumes.fine.margin_mm}"
                )
        return self

    @model_validator(mode="after")
    def _starts_are_there(self) -> "Config":
        stage = self._stage_members
        for name, member in self.members.items():
            start = member.warm_start
            if isinstance(start, str) and start not in stage:
                raise ValueError(
                    f"members.{name}.warm_start: no network of the vertebra stage is called "
                    f"{start!r}; there are {list(stage)}"
                )
            if isinstance(start, str) and stage[start].backbone != member.backbone:
                raise ValueError(
                    f"members.{name}.warm_start: {start} has the backbone {stage[start].backbone}, "
                    f"and {name} {member.backbone}: nothing of it would fit"
                )
        return self

    @model_validator(mode="after")
    def _halves_have_studies(self) -> "Config":
        for name, member in self.members.items():
            asked = {"rounds": _rounds(member) > 0, "head_studies": member.head_studies != "all"}
            for key in (key for key, on in asked.items() if on and self.folds.n < LEAST_FOLDS):
                raise ValueError(
                    f"members.{name}.{key}: halves of the training folds learn, and with folds.n "
                    f"{self.folds.n} there is one; set folds.n to {LEAST_FOLDS} or more"
                )
        return self

    @model_validator(mode="after")
    def _names_fit(self) -> "Config":
        external = [e.name for e in self.stack.external]
        stage = list(self.vertebra_members)
        places = {"members": list(self.members), "vertebra_members": stage}
        for place, names in (*places.items(), ("stack.external", external)):
            taken = sorted(filter(_taken, names))
            if taken:
                raise ValueError(f"{place}: {taken} are names of the kit; add a letter or a number")
        trained = [name for part in self.stage_rounds for name in part]
        trained += [*self.halves, *self.members]
        twice = sorted({name for name in trained if trained.count(name) > 1})
        if twice:
            raise ValueError(
                f"members, vertebra_members: {twice} are names of other networks too, or of rounds"
            )
        both = sorted(set(external) & set(self.members))
        if both:
            raise ValueError(f"stack.external: {both} are names of members")
        known = [*self.members, *external]
        unknown = sorted(set(self.stack.keep) - set(known))
        if unknown:
            raise ValueError(f"stack.keep: {unknown} are no members; there are {known}")
        return self

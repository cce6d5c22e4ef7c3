"""The stack, and whatever else is stacked beside the members.

In: the section `stack`. Out: its values. Example: `config.stack.rounds`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cspine_kit.core.config.section import Count, Name, NotNegative, Positive, Section


class ExternalConfig(Section):
    """Somebody else's scores: out-of-fold on the training studies, and where a kernel finds its
    own."""

    name: Name
    oof: Path
    test: Path | None = None


class StackConfig(Section):
    """The stack over aggregated statistics, and whatever else is stacked beside them."""

    form: Literal["per_exam", "global"]
    folds: Annotated[int, Field(ge=2)]
    seeds: Count
    rounds: Count
    patience: Count
    learning_rate: Positive
    num_leaves: Annotated[int, Field(ge=2)]
    min_rows: Count
    feature_fraction: Annotated[float, Field(gt=0.0, le=1.0)]
    bagging_fraction: Annotated[float, Field(gt=0.0, le=1.0)]
    extra_trees: bool
    l2: NotNegative
    clip: Annotated[float, Field(gt=0.0, lt=0.5)]
    keep: tuple[str, ...] = ()
    sensitivities: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (0.9,)
    external: tuple[ExternalConfig, ...] = ()
    columns: Path | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> "StackConfig":
        names = [external.name for external in self.external]
        if len(set(names)) < len(names):
            raise ValueError(f"external: names must differ, got {names}")
        return self

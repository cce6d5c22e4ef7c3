"""How this machine trains and maps: nothing here says what is made.

In: the sections `training` and `execution`. Out: their values. Example: `config.training.workers`.
"""

from typing import Annotated, Literal

from pydantic import Field

from cspine_kit.core.config.section import Count, Positive, Section


class TrainingConfig(Section):
    """How networks are trained on this machine."""

    precision: Literal["auto", "no", "fp16", "bf16"]
    workers: Annotated[int, Field(ge=0)]
    accumulate: Count
    deterministic: bool
    checkpoint_minutes: Positive
    log_with: str | None


class ExecutionConfig(Section):
    """Processes at once, threads of a network on a CPU (base.yaml says what 0 means), and where
    maps over studies run."""

    backend: Literal["local", "ray"] = "local"
    jobs: Annotated[int, Field(ge=0)]
    threads: Annotated[int, Field(ge=0)]

"""All kinds of networks, of both stages.

In: a network's section. Out: its values, by its kind. Example::

    parse_network(config.vertebra.model_dump(mode="json")) == config.vertebra
"""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from cspine_kit.core.config.members import (
    MEMBERS,
    BoxesConfig,
    LevelsConfig,
    SlicesConfig,
    StudyConfig,
    VolumeConfig,
)
from cspine_kit.core.config.network import ModelConfig
from cspine_kit.core.config.stage import STAGE, SegmentConfig, VertebraConfig

KINDS: dict[str, type[ModelConfig]] = {**STAGE, **MEMBERS}

Network = (
    VertebraConfig
    | SegmentConfig
    | SlicesConfig
    | LevelsConfig
    | StudyConfig
    | VolumeConfig
    | BoxesConfig
)
"""Any of them."""

_NETWORK: TypeAdapter[Network] = TypeAdapter(Annotated[Network, Field(discriminator="kind")])


def parse_network(raw: Any) -> Network:
    """One network's section by its `kind`, as a `model.json` holds it.

    Raises:
        ValueError: it is none.
    """
    return _NETWORK.validate_python(raw)

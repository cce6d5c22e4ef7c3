"""How the dataset and the sessions of a training are called on Kaggle, and their settings.

In: a config. Out: names, `kernel-metadata.json`. Example::

    check_training(config.model_copy(update={"competition": competition_elsewhere(config)}))
    session_settings(config, "train", 3, sources=["me/cspine-demo-cache-1"])["id"]

Each session is a kernel of its own, numbered: its output stays as it is while later ones are made
of it, and nothing that is running stands in for what ran before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cspine_kit.core.config import BundleConfig, CompetitionConfig, Config
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.paths import Competition
from cspine_kit.ship.kaggle.service import (
    DATASET_LENGTH,
    check_names,
    check_slug,
    owner_of,
    script_metadata,
)
from cspine_kit.vision.names import VERTEBRA

Kind = Literal["cache", "train"]
"""A session with the competition and without a GPU makes volumes; one with GPUs trains."""

SESSION_HOURS, SERVICE_HOURS = 11.0, 12.0
"""A session stops by itself after the first; the service ends it after the second."""

SESSION_GPUS = 2
"""Kaggle's GPU T4 x2: fold models that a session trains at once."""

OUTPUT_GB, SERVICE_GB = 18.0, 20.0
"""A session leaves at most the first, in 10^9 bytes; the service keeps the second."""


def _slug(config: Config, what: str) -> str:
    name = "-".join(part for part in config.name.replace("_", "-").split("-") if part)
    return f"cspine-{name}-{what}"


def training_ref(config: Config) -> str:
    """`owner/slug` of the dataset that every session sees."""
    return f"{owner_of(config)}/{_slug(config, 'training')}"


def session_settings(
    config: Config, kind: Kind, number: int, sources: Sequence[str]
) -> dict[str, Any]:
    """`kernel-metadata.json` of a session.

    Args:
        config: of the run.
        kind: what it does.
        number: 1, 2, ... of the training.
        sources: `owner/slug` of the sessions before it, whose output it sees.
    """
    # Without the scans a session trusts the tables; times of files do not matter to it.
    competitions = [config.competition.slug] if kind == "cache" else []
    return script_metadata(
        f"{owner_of(config)}/{_slug(config, f'{kind}-{number}')}",
        script_of(kind),
        gpu=kind == "train",
        datasets=[training_ref(config)],
        competitions=competitions,
        kernels=sources,
    )


def script_of(kind: Kind) -> str:
    """The one file of a session, in the folder of `kernels` that is called as its kind."""
    return f"{kind}.py"


def for_training(bundle: BundleConfig) -> BundleConfig:
    """The wheels that a training needs on Kaggle."""
    return bundle.model_copy(update={"wheels": (*bundle.wheels, *bundle.training)})


def competition_elsewhere(config: Config) -> CompetitionConfig:
    """The competition as a machine without its scans has it."""
    return config.competition.model_copy(update={"dir": Path("no-scans-here"), "phantom": None})


def check_training(config: Config) -> None:
    """Refuse what cannot be trained on Kaggle.

    Raises:
        ConfigError: names the key and what to do.
    """
    check_names(config)
    check_slug("name, as a dataset:", _slug(config, "training"), DATASET_LENGTH)
    competition = config.competition
    if competition.phantom is not None:
        raise ConfigError(
            f"config {config.name!r} draws its own competition, which is not on Kaggle: train it "
            "here with make oof; make rehearse tries the sessions out"
        )
    if competition.extra:
        raise ConfigError(
            f"competition.extra: {competition.extra[0]} is not on Kaggle; train here with make "
            "oof, or leave it out"
        )
    if Competition(competition.dir).train_images.is_dir():
        raise ConfigError(
            f"competition.dir: the scans lie here, in {competition.dir}: make oof trains here and "
            "would not take over what Kaggle trained on volumes of its own. To train there, set "
            "competition.dir to a folder without train_images"
        )


def check_room(config: Config) -> None:
    """Refuse networks that a session has no room for.

    Raises:
        ConfigError: names the network's stage and what to do.
    """
    from cspine_kit.vision.oof.run import room_for

    for stage in (VERTEBRA, *config.members):
        needed = room_for(config, [stage], SESSION_GPUS)
        if needed > OUTPUT_GB:
            raise ConfigError(
                f"{SESSION_GPUS} fold models of {stage} take {needed:.1f} GB of checkpoints and "
                f"weights while they are trained, a session on Kaggle leaves at most "
                f"{OUTPUT_GB:g} GB; take a smaller backbone"
            )

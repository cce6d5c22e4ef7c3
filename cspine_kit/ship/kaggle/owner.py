"""Under whose name things go to Kaggle: the config's, else that of the client's own login.

In: a config, an environment. Out: the config with a name in it, where one can be found. Example::

    with_owner(config, {"KAGGLE_USERNAME": "me"}).bundle.owner
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cspine_kit.core.config import Config
from cspine_kit.core.runs import read_json

SETTINGS = "kaggle.json"


def _folders(environment: Mapping[str, str]) -> list[Path]:
    """Where the client looks for its settings, in its order."""
    home = Path(environment.get("HOME", "~")).expanduser()
    named = environment.get("KAGGLE_CONFIG_DIR")
    settings = Path(environment.get("XDG_CONFIG_HOME", home / ".config")) / "kaggle"
    return [Path(named)] if named else [home / ".kaggle", settings]


def with_owner(
    config: Config,
    environment: Mapping[str, str] | None = None,
    *,
    ask: Callable[[], str | None] = lambda: None,
) -> Config:
    """The config with `bundle.owner` filled in; unchanged where it is set or nobody is logged in.

    Args:
        config: its `bundle.owner` counts where it is not null.
        environment: KAGGLE_USERNAME, and where the client's settings lie; only the name is read.
        ask: the last resort: the client itself, which may ask the service whose a token is.
    """
    if config.bundle.owner is not None:
        return config
    environment = os.environ if environment is None else environment
    name = environment.get("KAGGLE_USERNAME")
    for folder in () if name else _folders(environment):
        try:
            name = str(read_json(folder / SETTINGS)["username"])
            break
        except (OSError, ValueError, KeyError, TypeError):
            continue
    name = name or ask()
    bundle = config.bundle.model_copy(update={"owner": name})
    return config.model_copy(update={"bundle": bundle}) if name else config

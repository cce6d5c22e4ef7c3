"""Pretrained weights on their way to a machine without internet.

In: a config on a machine that can download. Out: one flat file for each backbone; there, a cache in
which timm finds them. Example::

    sorted(needed(config))                    # backbones that start from downloaded weights
    lay_out({}, Path("hub"))                  # variables with which timm looks there alone

timm takes its weights from the Hugging Face hub. Its cache is a documented layout of folders, which
is written here as the hub's own client would have written it. timm and that client look at their
variables when they are imported: here they are not, but where they are used.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cspine_kit.core.config import Config
from cspine_kit.core.errors import ConfigError, DataError

FILE = "model.safetensors"
REVISION = "0" * 40
"""The revision under which a laid out file is found: the hub is not asked for its own."""


def needed(config: Config) -> dict[str, str]:
    """Repository on the hub of each backbone whose weights are downloaded.

    Raises:
        ConfigError: weights that do not come from the hub as safetensors.
    """
    import timm

    found = dict[str, str]()
    for place, network in config.networks.items():
        if not network.pretrained or network.weights is not None:
            continue
        name = network.backbone
        settings: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        if settings is None or not settings.hf_hub_id:
            raise ConfigError(
                f"{place}.backbone: the pretrained weights of {name} are not on the Hugging Face "
                f"hub; name a .safetensors file in {place}.weights, or set pretrained: false"
            )
        found[name] = str(settings.hf_hub_id)
    return found


def fetch(repository: str, *, here: bool) -> Path | None:
    """The weights of a repository of the hub, downloaded once.

    Args:
        repository: its name.
        here: ask no hub; None where they were not downloaded yet.

    Raises:
        DataError: they cannot be had.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if here:
        found = try_to_load_from_cache(repository, FILE)
        return Path(found) if isinstance(found, str) else None
    try:
        return Path(hf_hub_download(repository, FILE))
    except Exception as error:
        raise DataError(
            f"pretrained weights {repository} cannot be downloaded: {type(error).__name__}: {error}"
        ) from error


def lay_out(files: Mapping[str, Path], home: Path) -> dict[str, str]:
    """Lay weights out as the hub's client keeps them.

    Args:
        files: by repository.
        home: a folder of its own.

    Returns:
        Variables of a process that is to find them there and to ask no hub; they must be set before
        it imports timm.
    """
    for repository, file in files.items():
        place = home / "hub" / f"models--{repository.replace('/', '--')}"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text(REVISION)
        target = place / "snapshots" / REVISION / FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(file.absolute())
    return {"HF_HOME": str(home.absolute()), "HF_HUB_OFFLINE": "1"}

"""The dataset that every session of a training sees: its start, the kit, its config, weights.

In: a config, wheels. Out: a flat folder of hashed files, as a parcel; there, its checked manifest.
Example::

    parcel = write_dataset(config, Path("training"), wheels=[], pretrained={})
    read_dataset(parcel.folder)["name"], parcel.digest

The folder changes when the kit, the config or what it names does; sessions that follow go on under
the new one, and what depends on what changed is trained again.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cspine_kit import __version__
from cspine_kit.core.config import Config, resolved_yaml
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import file_hash, fingerprint, is_fresh, publish, read_json, write_json
from cspine_kit.infer.manifest import MANIFEST
from cspine_kit.ship.kaggle.parcels import Parcel
from cspine_kit.ship.kaggle.service import DATASET_METADATA, check_size, dataset_metadata
from cspine_kit.ship.secrets import refuse_secrets
from cspine_kit.ship.training.names import (
    OUTPUT_GB,
    SESSION_HOURS,
    competition_elsewhere,
    training_ref,
)
from cspine_kit.vision.names import VERTEBRA

FORMAT = "cspine_kit training 1"
CONFIG, FOLDS = "config.yaml", "folds.csv"
BOOT = "cspine_boot.py"
"""Scripts in `kernels/` look for it; no other dataset holds a file of that name."""


def _flat(name: str) -> str:
    """A file's name for what has slashes."""
    return name.replace("/", "__")


def _named(config: Config) -> dict[str, Path]:
    """Files that the config names, by their names in the dataset: folds, weights to start from."""
    starts = {
        f"start__{name}.safetensors": network.weights
        for name, network in config.networks.items()
        if isinstance(network.weights, Path)  # the finder's lie in the package
    }
    return starts | ({FOLDS: config.folds.file} if config.folds.file else {})


def naming(config: Config, folder: Path) -> Config:
    """The config that names the files of a dataset in their place."""

    def here(name: str, network: Any) -> Any:
        place = folder / f"start__{name}.safetensors"
        named = isinstance(network.weights, Path)
        return network.model_copy(update={"weights": place}) if named else network

    folds = config.folds.model_copy(update={"file": folder / FOLDS} if config.folds.file else {})
    groups = {
        group: {name: here(name, network) for name, network in getattr(config, group).items()}
        for group in ("members", "vertebra_members")
    }
    vertebra = here(VERTEBRA, config.vertebra)
    return config.model_copy(update={"folds": folds, "vertebra": vertebra, **groups})


def write_dataset(
    config: Config,
    folder: Path,
    *,
    wheels: Sequence[Path],
    pretrained: Mapping[str, Path],
    hours: float = SESSION_HOURS,
    output_gb: float = OUTPUT_GB,
) -> Parcel:
    """Write the dataset unless it is there with the same content.

    Args:
        config: of the run.
        folder: of the dataset.
        wheels: the kit's, and what Kaggle's image lacks.
        pretrained: files by repository of the hub.
        hours: after which a session stops by itself.
        output_gb: that a session leaves at most, in 10^9 bytes.

    Raises:
        ArtifactError: more than a dataset may hold, or a file looks like a credential.
    """
    files = {BOOT: Path(__file__).with_name("boot.py")} | {wheel.name: wheel for wheel in wheels}
    files |= {f"hub__{_flat(name)}.safetensors": file for name, file in pretrained.items()}
    files |= _named(config)
    travels = naming(config, Path()).model_copy(
        update={"competition": competition_elsewhere(config)}
    )
    refuse_secrets(files.values())
    hashes = {name: file_hash(file) for name, file in files.items()}
    metadata = dataset_metadata(config, training_ref(config))
    limits = {"hours": hours, "output_gb": output_gb}
    key = fingerprint(FORMAT, __version__, travels, hashes, limits, metadata, sorted(pretrained))
    if not is_fresh(folder, key):
        with publish(folder, key) as temporary:
            temporary.mkdir(parents=True)
            for name, file in files.items():
                shutil.copyfile(file, temporary / name)
            (temporary / CONFIG).write_text(resolved_yaml(travels))
            listed = {
                path.name: {"sha256": file_hash(path), "bytes": path.stat().st_size}
                for path in sorted(temporary.iterdir())
            }
            hub = {f"hub__{_flat(name)}.safetensors": name for name in sorted(pretrained)}
            manifest = {"format": FORMAT, "kit": __version__, "name": config.name, **limits}
            write_json(temporary / MANIFEST, {**manifest, "hub": hub, "files": listed})
            write_json(temporary / DATASET_METADATA, metadata)
    sizes = {
        path.name: path.stat().st_size
        for path in sorted(folder.iterdir())
        if path.name != DATASET_METADATA
    }
    check_size(sizes)
    digest = file_hash(folder / MANIFEST)
    return Parcel("code", training_ref(config), folder, sizes, digest)


def read_dataset(folder: Path) -> dict[str, Any]:
    """The manifest of a dataset, every file of which is what its hash says.

    Raises:
        ArtifactError: it is none, or a file is missing or changed.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        files, hub = dict(manifest["files"]), dict(manifest["hub"])
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r} is not {FORMAT!r}")
        for name, entry in files.items():
            if PurePosixPath(name).name != name or file_hash(folder / name) != entry["sha256"]:
                raise ValueError(f"{name} is not what its hash says")
        if not hub.keys() <= files.keys():
            raise ValueError("it names weights that it does not list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is no sound training dataset: {error}; push again") from error
    return {**manifest, "files": files, "hub": hub}

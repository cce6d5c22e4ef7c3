"""Networks on disk: safetensors and a JSON beside them; and starting from what lies there.

In: a network, a folder. Out: `model.json`, `weights.safetensors`; or a network. Example::

    from cspine_kit.vision.nets.kinds import build_net

    model = build_net(config.vertebra, {"visible": 7, "box": 4}, pretrained=False)
    save_model(model, Path("model"))
    model = load_model(Path("model"))
    take_weights(model, Path("model") / WEIGHTS_FILE)        # "... 54 of 54 tensors ..."
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cspine_kit.core.config import parse_network
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import publish, read_json, write_json
from cspine_kit.vision.names import MODEL_FILE, WEIGHTS_FILE
from cspine_kit.vision.nets.backbone import fit_channels
from cspine_kit.vision.nets.heads import Network
from cspine_kit.vision.nets.kinds import build_net, is_known

BACKBONE = "backbone."
"""What a backbone's tensors are called by in a network's own file."""

SYNTHETIC = "synthetic"
"""Key of model.json: true where the weights learned from synthetic scans alone."""

SHOWN = 4


def save_model(model: Network, folder: Path, key: str | None = None) -> None:
    """Write `model.json`, then `weights.safetensors` with the key that marks the model done.

    Matrices and filters are rounded to half precision, which halves what goes to Kaggle; whoever
    predicts reads this file, out-of-fold as in the kernel. Norms, biases and running statistics
    keep single precision: they are few, and variances leave the range of a half.
    """
    write_json(folder / MODEL_FILE, {"config": model.config, "heads": model.widths})
    state = {name: _rounded(value).contiguous() for name, value in model.state_dict().items()}
    with publish(folder / WEIGHTS_FILE, key) as temporary:
        save_file(state, str(temporary))


def _rounded(value: torch.Tensor) -> torch.Tensor:
    if value.ndim < 2 or not value.is_floating_point():
        return value
    half = value.half()
    return half if bool(half.isfinite().all()) else value


def load_model(folder: Path) -> Network:
    """Rebuild a saved model in evaluation mode; nothing is downloaded or unpickled.

    Raises:
        ArtifactError: a file is missing or the weights do not fit the model.
    """
    for name in (MODEL_FILE, WEIGHTS_FILE):
        if not (folder / name).exists():
            raise ArtifactError(
                f"{folder / name} is missing; train the model or rebuild the bundle"
            )
    try:
        saved = read_json(folder / MODEL_FILE)
        config = parse_network(saved["config"])
        heads = {str(name): int(width) for name, width in saved["heads"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{folder / MODEL_FILE} is no model of this kit: {error}") from error
    # Other names would make timm read from a hub or a folder that the file chooses.
    if not is_known(config):
        raise ArtifactError(
            f"{folder / MODEL_FILE}: {config.backbone!r} is no architecture of timm's registry, "
            "torchvision's or the kit's"
        )
    model = build_net(config, heads, pretrained=False)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE} does not fit its model.json: {error}"
        ) from error
    model.synthetic = bool(saved.get(SYNTHETIC, False))
    return model.eval().to(memory_format=model.layout)


def take_weights(model: Network, file: Path) -> str:
    """Start from somebody's weights: every tensor of the same name and shape is taken.

    Args:
        model: changed in place. A first convolution for another number of channels is fitted.
        file: safetensors of a network of the kit, or of a backbone alone.

    Returns:
        What was taken, in words.

    Raises:
        ArtifactError: it cannot be read, or nothing of the backbone fits.
    """
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"weights {file} cannot be read as safetensors: {error}") from error
    if not any(name.startswith(BACKBONE) for name in found):
        found = {BACKBONE + name: value for name, value in found.items()}
    state = model.state_dict()
    sources = {name: name if name in found else _joined(name) for name in state}
    taken = {n: _fitted(found[s], state[n]) for n, s in sources.items() if s in found}
    fits = {name: value for name, value in taken.items() if value is not None}
    if not any(name.startswith(BACKBONE) for name in fits):
        raise ArtifactError(
            f"weights {file}: no tensor fits {model.config.backbone}; it holds "
            f"{sorted(found)[:SHOWN]}, the network {sorted(state)[:SHOWN]}"
        )
    model.load_state_dict({**state, **fits})
    left = [name for name in state if name not in fits]
    rest = f"; not {', '.join(left[:SHOWN])}{' ...' if len(left) > SHOWN else ''}" if left else ""
    return f"{len(fits)} of {len(state)} tensors from {file}{rest}"


def _joined(name: str) -> str:
    """The name of a tensor in the encoder of a U-Net: timm joins the number of a stage to it."""
    return re.sub(r"^(backbone\.[a-z]+)\.(\d+)\.", r"\1_\2.", name)


def _fitted(found: torch.Tensor, own: torch.Tensor) -> torch.Tensor | None:
    """`found` where it fits `own`, None where it does not."""
    found = found.to(own.dtype)
    if found.shape == own.shape:
        return found
    same = found.ndim == own.ndim == 4 and found.shape[0] == own.shape[0]
    if same and found.shape[2:] == own.shape[2:]:
        return fit_channels(found, own.shape[1])
    return None


def start_from(model: Network, folders: tuple[Path, ...]) -> list[str]:
    """Start from the kit's own networks that have the same backbone; says what was taken.

    Raises:
        ArtifactError: a folder holds no network of the kit.
    """
    told = []
    for folder in folders:
        other = load_model(folder).config.backbone
        if other == model.config.backbone:
            told.append(take_weights(model, folder / WEIGHTS_FILE))
        else:
            told.append(f"nothing from {folder}: its backbone is {other}")
    return told

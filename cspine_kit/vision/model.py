"""One 2.5D network for both stages: a timm backbone and named linear heads.

In: a `ModelConfig` and head widths. Out: a module from uint8 stacks to a dict of head outputs;
weights as safetensors with a JSON beside them. Example::

    model = SliceModel(config.model, {"visible": 7, "box": 4}, pretrained=False)
    save_model(model, Path("model")); model = load_model(Path("model"))
"""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cspine_kit.core.config import ModelConfig
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import publish, read_json, write_json
from cspine_kit.vision.names import MODEL_FILE, WEIGHTS_FILE

PIXEL_MEAN, PIXEL_STD = 0.449, 0.226
"""ImageNet statistics averaged over color channels, for any number of channels."""


class SliceModel(nn.Module):
    """timm backbone, dropout and one linear layer per head."""

    def __init__(self, config: ModelConfig, heads: dict[str, int], *, pretrained: bool) -> None:
        super().__init__()
        self.config = config
        self.widths = dict(heads)
        backbone: Any = timm.create_model(
            config.backbone, pretrained=pretrained, in_chans=config.channels, num_classes=0
        )
        self.backbone = backbone
        # Where a classifier has a hidden layer (MobileNetV3), features come out of that layer.
        width = int(getattr(backbone, "head_hidden_size", 0) or backbone.num_features)
        self.drop = nn.Dropout(config.drop_rate)
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in heads.items()})

    def forward(self, stack: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map stacks (b, channels, h, w) in 0..255 to {head: (b, width)} logits or shares."""
        dtype = next(self.parameters()).dtype
        pixels = (stack.to(dtype) / 255.0 - PIXEL_MEAN) / PIXEL_STD
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        features = self.drop(self.backbone(pixels))
        outputs = {name: head(features) for name, head in self.heads.items()}
        if "any_fracture" in outputs:
            # A break looks alike at every level: one shared score learns from all of them, where
            # seven separate ones would see a handful of positives each.
            outputs["fracture"] = outputs["fracture"] + outputs.pop("any_fracture")
        return outputs


def save_model(model: SliceModel, folder: Path, key: str | None = None) -> None:
    """Write `model.json`, then `weights.safetensors` with the key that marks the model done."""
    write_json(folder / MODEL_FILE, {"config": model.config, "heads": model.widths})
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    with publish(folder / WEIGHTS_FILE, key) as temporary:
        save_file(state, str(temporary))


def load_model(folder: Path) -> SliceModel:
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
        config = ModelConfig.model_validate(saved["config"])
        heads = {str(name): int(width) for name, width in saved["heads"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{folder / MODEL_FILE} is no model of this kit: {error}") from error
    # Other names would make timm read from a hub or a folder that the file chooses.
    if not timm.is_model(config.backbone):
        raise ArtifactError(
            f"{folder / MODEL_FILE}: {config.backbone!r} is no architecture of timm's registry"
        )
    model = SliceModel(config, heads, pretrained=False)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / WEIGHTS_FILE} does not fit its model.json: {error}"
        ) from error
    return model.eval().to(memory_format=torch.channels_last)

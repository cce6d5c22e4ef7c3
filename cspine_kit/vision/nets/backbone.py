"""Backbones: timm's, torchvision's where timm has none of that name, and two small ones of the kit.

In: a `ModelConfig`. Out: a module from pixels to features, and the number of features. Example::

    check_backbone(config.vertebra, "vertebra")      # a name that nobody knows is an error here
    backbone, width = create_backbone(config.vertebra, pretrained=False)
"""

import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from cspine_kit.core.config import (
    BoxesConfig,
    ClassifierConfig,
    MemberConfig,
    ModelConfig,
    SegmentConfig,
)
from cspine_kit.core.errors import ConfigError, DataError

BASIC_WIDTHS = (32, 64, 128, 256)
TINY_WIDTHS = (16, 32, 64, 96)
IMAGENET_CLASSES = 1000


class OwnCNN(nn.Module):
    """Convolutions, and how their last map is pooled: the parts that timm's networks have too."""

    num_features: int
    features: nn.Sequential

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map (b, in_chans, h, w) to the last feature map."""
        found: torch.Tensor = self.features(pixels)
        return found

    def forward_head(self, found: torch.Tensor, pre_logits: bool = True) -> torch.Tensor:
        """Pool a feature map."""
        return found.mean(dim=(2, 3))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map (b, in_chans, h, w) to (b, features)."""
        return self.forward_head(self.forward_features(pixels))


class BasicCNN(OwnCNN):
    """Four blocks of two 3 x 3 convolutions, each at half the resolution, and a global mean."""

    num_features = BASIC_WIDTHS[-1]

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in BASIC_WIDTHS:
            for stride in (2, 1):
                conv = nn.Conv2d(in_chans, width, 3, stride=stride, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                in_chans = width
        self.features = nn.Sequential(*layers)


class TinyCNN(OwnCNN):
    """Four 3 x 3 convolutions down to an eighth; mean and maximum of what they find."""

    num_features = TINY_WIDTHS[-1]

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k, width in enumerate(TINY_WIDTHS):
            if k > 1:
                layers.append(nn.MaxPool2d(2))
            conv = nn.Conv2d(in_chans, width, 3, stride=1 if k else 2, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            in_chans = width
        self.features = nn.Sequential(*layers)

    def forward_head(self, found: torch.Tensor, pre_logits: bool = True) -> torch.Tensor:
        """Mean and maximum, (b, 192)."""
        return torch.cat([found.mean(dim=(2, 3)), found.amax(dim=(2, 3))], dim=1)


OWN: dict[str, tuple[Callable[[int], OwnCNN], int]] = {
    "basic_cnn": (BasicCNN, BASIC_WIDTHS[-1]),
    "tiny_cnn": (TinyCNN, 2 * TINY_WIDTHS[-1]),
}
"""The kit's own, and how many features they give."""


def torchvision_names() -> list[str]:
    """Classifiers of torchvision that timm has not under this name."""
    known = set(timm.list_models())
    return [n for n in torchvision.models.list_models(torchvision.models) if n not in known]


def is_backbone(name: str) -> bool:
    """True for an architecture that can be built without asking a hub or a folder."""
    return name in OWN or _is_timm(name) or name in torchvision_names()


def _is_timm(name: str) -> bool:
    """True for an architecture of timm, with a tag of its weights or without."""
    return timm.is_model(name) and ("." not in name or _has_weights(name))


def _nearest(name: str) -> str:
    """A hint: the name most like one that is not known."""
    if timm.is_model(name):  # the tag is wrong
        known = timm.list_pretrained(f"{name.split('.', maxsplit=1)[0]}.*")
    else:
        known = [*OWN, *timm.list_models(), *timm.list_pretrained(), *torchvision_names()]
    near = difflib.get_close_matches(name, known, 1, 0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_backbone(config: ModelConfig, place: str) -> None:
    """Refuse a backbone that cannot be built, or cannot take what it would be shown.

    Nothing is downloaded or computed: the network is built without memory for its weights.

    Args:
        config: the network.
        place: where the config names it, e.g. "members.a".

    Raises:
        ConfigError: names the key and the nearest backbone there is.
    """
    name, key = config.backbone, f"{place}.backbone"
    if not is_backbone(name):
        raise ConfigError(
            f"{key}: {name!r} is none of timm's or torchvision's architectures, nor "
            f"one of {list(OWN)}{_nearest(name)}"
        )
    own = config.pretrained and config.weights is None
    if own and (name in OWN or (timm.is_model(name) and not _has_weights(name))):
        hint = "" if name in OWN else _nearest(name)
        raise ConfigError(
            f"{key}: there are no pretrained weights of {name!r}{hint}; or set "
            f"{place}.pretrained: false"
        )
    shape = (2, config.channels, config.size_px, config.size_px)
    if isinstance(config, SegmentConfig):
        _check_maps(config, key, shape)
        return
    try:
        features, width = _features(name, shape)
    except Exception as error:
        raise ConfigError(
            f"{key}: {name!r} cannot take {' x '.join(map(str, shape[1:]))} px: {error}"
        ) from error
    if isinstance(config, BoxesConfig):
        _check_map(config, key, shape)
    elif isinstance(config, MemberConfig) and config.mask_loss > 0:
        _check_map(config, f"{place}.mask_loss", shape)
    elif isinstance(config, ClassifierConfig) and config.lesion_loss > 0:
        _check_map(config, f"{place}.lesion_loss", shape)
    if features != (2, width):
        raise ConfigError(f"{key}: {name!r} gives {features[1:]} in place of {width} features")


def _check_maps(config: ModelConfig, key: str, shape: tuple[int, ...]) -> None:
    """Refuse a backbone that gives no maps of several resolutions.

    Raises:
        ConfigError: names the key.
    """
    try:
        encoder: Any = create_encoder(config, pretrained=False)[0].to("meta").eval()
        with torch.inference_mode():
            maps = encoder(torch.empty(shape, device="meta"))
    except Exception as error:
        raise ConfigError(
            f"{key}: {config.backbone!r} is no encoder of a U-Net: {error}"
        ) from error
    if [found.shape[1] for found in maps] != encoder.feature_info.channels():
        raise ConfigError(f"{key}: {config.backbone!r} has its channels elsewhere than a U-Net")


def _check_map(config: ModelConfig, key: str, shape: tuple[int, ...]) -> None:
    """Refuse a backbone without a feature map on which a mask or a box could be learned.

    Raises:
        ConfigError: names the key.
    """
    backbone: Any = create_backbone(config, pretrained=False)[0].to("meta").eval()
    found: tuple[int, ...] = ()
    if hasattr(backbone, "forward_features"):
        with torch.inference_mode():
            found = tuple(backbone.forward_features(torch.empty(shape, device="meta")).shape)
    if len(found) != len(shape) or found[1] != backbone.num_features:
        raise ConfigError(
            f"{key}: {config.backbone!r} has no feature map on which a mask or a box could be "
            "learned; take one of timm's convolutional networks, or set mask_loss "
            "and lesion_loss to 0"
        )


@cache
def _features(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Shape of the features of a batch, and the width they should have; nothing is computed."""
    try:
        with torch.device("meta"):
            backbone, width = _create(name, shape[1], pretrained=False)
    except Exception:  # noqa: BLE001 - a few compute their widths with tensors (RegNet)
        backbone, width = _create(name, shape[1], pretrained=False)
    with torch.inference_mode():
        features: torch.Tensor = backbone.to("meta").eval()(torch.empty(shape, device="meta"))
    return tuple(features.shape), width


def _has_weights(name: str) -> bool:
    return bool(timm.models.is_model_pretrained(name))


def create_backbone(config: ModelConfig, *, pretrained: bool) -> tuple[nn.Module, int]:
    """The backbone without its classifier, and the width of its features.

    Raises:
        DataError: pretrained weights cannot be had.
    """
    with loading(config, pretrained=pretrained):
        return _create(config.backbone, config.channels, pretrained=pretrained)


@contextmanager
def loading(config: ModelConfig, *, pretrained: bool) -> Iterator[None]:
    """Say what to do where pretrained weights cannot be had.

    Raises:
        DataError: they cannot.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise DataError(
            f"pretrained weights of {config.backbone} cannot be loaded: {error}; name a "
            ".safetensors file in weights:, or set pretrained: false"
        ) from error


def create_encoder(config: ModelConfig, *, pretrained: bool) -> tuple[nn.Module, int]:
    """The backbone as the maps of all its resolutions, and the width of the coarsest.

    Raises:
        ConfigError: only convolutional networks of timm give them.
        DataError: pretrained weights cannot be had.
    """
    if not timm.is_model(config.backbone):
        raise ConfigError(
            f"{config.backbone!r} gives no maps of several resolutions; take one of timm's "
            "convolutional networks"
        )
    with loading(config, pretrained=pretrained):
        made: Any = timm.create_model(
            config.backbone, pretrained=pretrained, in_chans=config.channels, features_only=True
        )
    return made, int(made.feature_info.channels()[-1])


def _create(name: str, in_chans: int, *, pretrained: bool) -> tuple[nn.Module, int]:
    if name in OWN:
        make, width = OWN[name]
        return make(in_chans), width
    if timm.is_model(name):
        made: Any = timm.create_model(name, pretrained=pretrained, in_chans=in_chans, num_classes=0)
        # Where a classifier has a hidden layer (MobileNetV3), features come out of that layer.
        return made, int(getattr(made, "head_hidden_size", 0) or made.num_features)
    return _from_torchvision(name, in_chans, pretrained=pretrained)


def _from_torchvision(name: str, in_chans: int, *, pretrained: bool) -> tuple[nn.Module, int]:
    """A classifier of torchvision whose last layer is taken off and whose first is widened."""
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model: Any = torchvision.models.get_model(
        name, weights="DEFAULT" if pretrained else None, **options
    )
    model.transform_input = False  # GoogLeNet's own handling of three colors
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    first, last = model.get_submodule(layers[0]), model.get_submodule(layers[-1])
    width = last.in_channels if isinstance(last, nn.Conv2d) else last.in_features
    model.set_submodule(layers[-1], nn.Identity())
    if first.in_channels != in_chans:
        model.set_submodule(layers[0], _widened(first, in_chans))
    return model, int(width)


def _widened(conv: Any, in_chans: int) -> nn.Conv2d:
    """The same convolution for another number of channels."""
    new = nn.Conv2d(
        in_chans,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        bias=conv.bias is not None,
    )
    state = {**conv.state_dict(), "weight": fit_channels(conv.weight.detach(), in_chans)}
    new.load_state_dict(state)
    return new


def fit_channels(weight: torch.Tensor, in_chans: int) -> torch.Tensor:
    """A first convolution's weight (out, in, h, w) for another number of channels.

    Of volumes too, (out, in, z, h, w). Channels repeat in turn, scaled so that alike channels give
    the same sum, as in timm.
    """
    have = weight.shape[1]
    times = (1, math.ceil(in_chans / have), *([1] * (weight.ndim - 2)))
    repeated = weight.repeat(times)[:, :in_chans]
    return repeated * (have / in_chans)

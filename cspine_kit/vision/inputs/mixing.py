"""Pairs of training units in each other's place: mixup and cutmix, on the batch's device.

In: an augmented batch. Out: the same, some pairs of neighboring units mixed. Example::

    batch = {"stack": torch.rand(4, 1, 3, 48, 48), "visible": torch.zeros(4, 7)}
    generator = torch.Generator().manual_seed(1)
    mix_pairs(batch, 0.5, generator, 0, 4)["stack"].shape
    cut_pairs(batch, 0.5, generator, 0, 4)["stack"].shape

Labels are mixed as the images are. What is unknown of either is unknown of both.
"""

import torch

from cspine_kit.core.config import ClassifierConfig, ModelConfig
from cspine_kit.vision.nets.heads import FACTS, LESIONS, MASK

MIXING_VERSION = 2
"""Raised when the same batch would be mixed otherwise."""

Batch = dict[str, torch.Tensor]

MAPS = (MASK, LESIONS)
"""Targets with a place on the image."""

LABELS = ("fracture", "visible", "overall", "present", "label", FACTS)
"""Further targets that are mixed, and what is read beside the stack."""

WEIGHTS = tuple(f"{name}_weight" for name in MAPS)
"""How far maps are known."""


def uniform(n: int, reach: float, generator: torch.Generator) -> torch.Tensor:
    """(n,) drawn evenly from -reach..reach, on the generator's device."""
    return (2.0 * torch.rand(n, generator=generator, device=generator.device) - 1.0) * reach


def _pairs(
    batch: Batch, share: float, generator: torch.Generator, first: int, total: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each unit's partner (b,), itself where it stays as it is; how much of the partner it gets,
    up to a half; and where in the whole batch its pair begins."""
    n, device = len(batch["stack"]), batch["stack"].device
    at = torch.arange(first, first + n, device=device)
    pair = at - at % 2
    partner = (at ^ 1) - first
    drawn, how = (uniform(total, 0.5, generator) + 0.5 for _ in range(2))
    inside = (partner >= 0) & (partner < n) & (drawn[pair] < share)
    return torch.where(inside, partner, at - first), torch.where(inside, how[pair] / 2, 0.0), pair


def _blended(value: torch.Tensor, partner: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    own = weight.reshape(-1, *[1] * (value.ndim - 1))
    return value.float() * (1.0 - own) + value[partner].float() * own


def _known(batch: Batch, partner: torch.Tensor) -> Batch:
    """How far mixed maps are known."""
    return {n: torch.minimum(batch[n], batch[n][partner]) for n in WEIGHTS if n in batch}


def mix_pairs(
    batch: Batch, share: float, generator: torch.Generator, first: int, total: int
) -> Batch:
    """Some pairs of neighboring units in each other's place by up to a half (Zhang et al., mixup,
    ICLR 2018): evenly drawn, images and targets alike.

    Args:
        batch: this part's units, "stack" float32, in an order that was drawn.
        share: of the pairs.
        generator: of the batch's device.
        first, total: as of `augment_batch`; a unit whose partner lies in another part stays.
    """
    partner, weight, _ = _pairs(batch, share, generator, first, total)
    names = (name for name in ("stack", *MAPS, *LABELS) if name in batch)
    found = {name: _blended(batch[name], partner, weight) for name in names}
    return {**batch, **found, **_known(batch, partner)}


def cut_pairs(
    batch: Batch, share: float, generator: torch.Generator, first: int, total: int
) -> Batch:
    """Some pairs of neighboring units with a rectangle of all their patches exchanged (Yun et al.,
    cutmix, ICCV 2019), up to half of the image; labels are mixed by its area.

    Args:
        batch, share, generator, first, total: as of `mix_pairs`.
    """
    partner, weight, pair = _pairs(batch, share, generator, first, total)
    inside = torch.ones_like(batch["stack"][:, 0, 0], dtype=torch.bool)
    side = weight.sqrt()[:, None]
    for axis, count in ((1, inside.shape[1]), (2, inside.shape[2])):
        middle = (uniform(total, 0.5, generator) + 0.5)[pair][:, None]
        place = (torch.arange(count, device=side.device) + 0.5) / count
        inside &= ((place - middle).abs() < side / 2).unsqueeze(3 - axis)
    area = inside.float().mean(dim=(1, 2))

    def exchanged(value: torch.Tensor) -> torch.Tensor:
        place = inside.reshape(len(value), *[1] * (value.ndim - 3), *inside.shape[1:])
        return torch.where(place, value[partner].float(), value.float())

    found = {n: exchanged(batch[n]) for n in ("stack", *MAPS) if n in batch}
    found |= {n: _blended(batch[n], partner, area) for n in LABELS if n in batch}
    return {**batch, **found, **_known(batch, partner)}


def mixes(config: ModelConfig) -> bool:
    """True where pairs of a network's training units are mixed."""
    return isinstance(config, ClassifierConfig) and max(config.mixup, config.cutmix) > 0


def mixed(
    batch: Batch, config: ModelConfig, generator: torch.Generator, first: int, total: int
) -> Batch:
    """The batch as the config asks for it.

    Args:
        batch, generator, first, total: as of `mix_pairs`.
        config: of the network.
    """
    if not isinstance(config, ClassifierConfig):
        return batch
    if config.mixup > 0:
        return mix_pairs(batch, config.mixup, generator, first, total)
    if config.cutmix > 0:
        return cut_pairs(batch, config.cutmix, generator, first, total)
    return batch

"""Forward passes: what networks see of one or several studies in batches, and what they give.

In: a network, `StudyView`s. Out: outputs of every head for every unit. Example::

    from cspine_kit.vision.tasks.kinds import task_of

    member, *_ = ensemble.config.members
    model = ensemble.models[member, 0]
    view = task_of(model.config).view(fine, own_levels)
    batches = Drawn([view, view], model.config.windows, 16, "cpu")
    outputs = run_model(model, batches)
    [len(outputs["visible"][rows]) for rows in batches.studies]       # units of each view
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, pairwise

import numpy as np
import torch

from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.volumes.patch import Windows
from cspine_kit.vision.inputs.augment import mirrored, mirrored_outputs
from cspine_kit.vision.inputs.views import StudyView
from cspine_kit.vision.nets.heads import Network
from cspine_kit.vision.tasks.kinds import task_of

Outputs = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, ...]
"""Units, uint8 (b, patches, channels, rows, cols), and where a network reads them their facts."""

log = logging.getLogger(__name__)

PLAIN = (False,)
"""Views of a patch: only as it is, not mirrored."""

SIZES = 4
"""Sizes of a last batch on a GPU: a quarter of a whole one, half, three quarters, all."""


def is_out_of_memory(error: Exception) -> bool:
    """True for what torch raises where a GPU or the CPU has no room for a batch."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text


def forward(
    model: Network, batch: torch.Tensor, *facts: torch.Tensor, half: bool = False
) -> Outputs:
    """Head outputs (float32) of one batch on its device; halves of it where memory is too short.

    Args:
        model: on the batch's device.
        batch: units, uint8 (b, patches, channels, rows, cols).
        facts: of their headers (b, n), where the model reads them.
        half: in half precision.
    """
    try:
        with torch.autocast(batch.device.type, torch.float16, enabled=half):
            outputs = model(batch, *facts)
        return {name: value.float() for name, value in outputs.items()}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(batch) == 1:
            raise
    # Outside the handler, so that the failed attempt's tensors are gone.
    if batch.device.type == "cuda":
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    log.warning("%s: no memory for a batch of %d, halved", model.config.backbone, len(batch))
    first, second = (
        forward(model, batch[part], *(f[part] for f in facts), half=half)
        for part in (slice(None, middle), slice(middle, None))
    )
    return {name: torch.cat([first[name], second[name]]) for name in first}


class Drawn:
    """Batches over the units of one study after the other, each drawn once, ahead of whoever looks
    at them, and kept for the next.

    On a GPU the last batch is filled up with air to one of a few sizes: cuDNN plans every size of a
    batch anew, which takes as long as hundreds of patches.

    Args:
        views: of the studies, each of at least one unit, as one kind of network sees them.
        windows: of the networks.
        batch_size: patches at once at most, but for a single unit of more.
        device: where the batches go.

    Attributes:
        count: units of all studies.
        studies: of each study, where its units lie among all.
        batches: of each batch, which units it holds.
    """

    def __init__(
        self,
        views: Sequence[StudyView],
        windows: Windows,
        batch_size: int,
        device: str,
    ) -> None:
        self._device = device
        self._placed: dict[int, Batch] = {}
        units = [(view, unit) for view in views for unit in range(len(view))]
        self.count = len(units)
        ends = accumulate(map(len, views), initial=0)
        self.studies = [slice(start, end) for start, end in pairwise(ends)]
        size = max(1, batch_size // views[0].per_unit)
        starts = range(0, self.count, size)
        self.batches = [slice(start, min(start + size, self.count)) for start in starts]
        on_gpu = device != "cpu"
        least = max(1, size // SIZES) if on_gpu else 1

        def draw(part: slice) -> Batch:
            mine = units[part]
            parts = [[view.drawn(unit, windows) for view, unit in mine]]
            if views[0].facts is not None:
                parts.append([view.facts[unit] for view, unit in mine if view.facts is not None])
            empty = -len(mine) % least
            filled = [np.stack([*part, *[np.zeros_like(part[0])] * empty]) for part in parts]
            batch = tuple(torch.from_numpy(part) for part in filled)
            return tuple(part.pin_memory() for part in batch) if on_gpu else batch

        self._pool = ThreadPoolExecutor(1)
        self._waiting: list[Future[Batch]] = [self._pool.submit(draw, b) for b in self.batches]
        self._pool.shutdown(wait=False)

    def __iter__(self) -> Iterator[Batch]:
        for k, waiting in enumerate(self._waiting):
            if k not in self._placed:
                parts = waiting.result()
                self._placed[k] = tuple(p.to(self._device, non_blocking=True) for p in parts)
            yield self._placed[k]

    def stop(self) -> None:
        """Draw no more."""
        self._pool.shutdown(cancel_futures=True)


@torch.inference_mode()
def run_model(
    model: Network, batches: Drawn, *, views: Sequence[bool] = PLAIN
) -> dict[str, FloatArray]:
    """Outputs of every head for every unit, {head: (n, ...)} float64.

    On a GPU in half precision; studies for which that overflows get theirs in single precision.

    Args:
        model: on the device of the batches.
        batches: of one or several studies.
        views: of each patch, mirrored left to right or not; outputs of several are averaged.
            Networks of which a head speaks of left and right see it as it is.

    Returns:
        Numbers that need not be finite: whoever splits them by study judges each (`is_finite`).
    """
    views = PLAIN if task_of(model.config).sided else views
    found: dict[str, FloatArray] = {}
    left = np.ones(batches.count, np.bool_)
    for half in _precisions(model):
        parts, units = [], []
        for part, (batch, *facts) in zip(batches.batches, batches, strict=True):
            if left[part].any():
                seen = [_seen(model, batch, *facts, half=half, mirror=mirror) for mirror in views]
                mean = {n: torch.stack([one[n] for one in seen]).mean(dim=0) for n in seen[0]}
                own = np.arange(part.start, part.stop)
                parts.append({n: value[: len(own)] for n, value in mean.items()})
                units.append(own)
        at = np.concatenate(units)
        for name in parts[0]:
            value = torch.cat([part[name] for part in parts]).double().cpu().numpy()
            whole = found.setdefault(name, np.zeros((batches.count, *value.shape[1:])))
            whole[at[left[at]]] = value[left[at]]
        for study in batches.studies:
            left[study] = not all(is_finite(value[study]) for value in found.values())
        if not left.any():
            break
    return found


def is_finite(values: FloatArray) -> bool:
    """True where no number is NaN or infinite."""
    return bool(np.isfinite(values).all())


def _precisions(model: Network) -> tuple[bool, ...]:
    """Half precision or not, in the order in which they are tried."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    return (True, False) if on_gpu else (False,)


def _seen(
    model: Network, batch: torch.Tensor, *facts: torch.Tensor, half: bool, mirror: bool
) -> Outputs:
    """Outputs of one view of a batch."""
    if not mirror:
        return forward(model, batch, *facts, half=half)
    outputs = forward(model, mirrored(batch, model.config), *facts, half=half)
    return mirrored_outputs(outputs, model.config)

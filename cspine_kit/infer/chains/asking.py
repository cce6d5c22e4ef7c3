"""Studies that ask networks in step, so that equal questions of several share batches.

In: for each study a generator that yields an `Ask`, is sent what the networks say, and returns what
it found. Out: what each found, or why not. Example::

    def slices(volume, levels):
        member, *_ = ensemble.config.members
        said = yield Ask({member: ensemble.models[member, 0]}, volume, levels)
        return len(said[member].require())

    answered([slices(fine, own_levels), slices(fine, own_levels)], batch_size=64)

A study never sees the others: whatever it asks, and whatever becomes of it, one alone would do the
same.
"""

from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from cspine_kit.data.volumes.volume import Volume
from cspine_kit.vision.nets.heads import Network
from cspine_kit.vision.passes import PLAIN
from cspine_kit.vision.predict import Said, predict_all

T = TypeVar("T")
Found = Mapping[Any, Said]
Asking = Generator["Ask", Found, T]
"""One study: what it asks, what the networks say of it, what comes of it."""


@dataclass(frozen=True)
class Ask:
    """A question to networks: arguments of `vision.predict.predict`."""

    models: Mapping[Any, Network]
    volume: Volume
    levels: pd.DataFrame | None
    views: tuple[bool, ...] = PLAIN
    stride: int = 1

    @property
    def alike(self) -> Hashable:
        """Equal for questions that differ by their study alone."""
        return tuple(self.models.items()), self.views, self.stride


def answered(askings: Sequence[Asking[T]], batch_size: int) -> list[T | Exception]:
    """What each study found, or what it raised.

    Args:
        askings: of the studies, not begun.
        batch_size: patches at once.
    """
    found: dict[int, T | Exception] = {}
    asked: dict[int, Ask] = {}

    def step(k: int, said: Found | Exception | None) -> None:
        try:
            if isinstance(said, Exception):
                asked[k] = askings[k].throw(said)
            else:
                asked[k] = askings[k].send(said)  # type: ignore[arg-type]  # None begins it
        except StopIteration as end:
            found[k] = end.value
        except Exception as error:  # noqa: BLE001 - the other studies go on
            found[k] = error

    for k in range(len(askings)):
        step(k, None)
    while asked:
        alike: dict[Hashable, dict[int, Ask]] = {}
        for k, ask in asked.items():
            alike.setdefault(ask.alike, {})[k] = ask
        asked.clear()
        for asks in alike.values():
            for k, said in zip(asks, _said([*asks.values()], batch_size), strict=True):
                step(k, said)
    return [found[k] for k in range(len(askings))]


def alone(asking: Asking[T], batch_size: int) -> T:
    """What one study found.

    Raises:
        Exception: whatever it raises.
    """
    [found] = answered([asking], batch_size)
    if isinstance(found, Exception):
        raise found
    return found


def _said(asks: Sequence[Ask], batch_size: int) -> Sequence[Found | Exception]:
    """What the networks say to each of these questions, which are alike."""
    first, studies = asks[0], [(ask.volume, ask.levels) for ask in asks]
    try:
        return predict_all(
            first.models, studies, batch_size, views=first.views, stride=first.stride
        )
    except Exception as error:  # noqa: BLE001 - each study decides what it costs
        return [error] * len(asks)

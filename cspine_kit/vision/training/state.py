"""What a killed training goes on from: everything that decides the next step, in one file.

In: model, average, optimizer, schedule, scaler and how far it is. Out: `checkpoint.pt`. Example::

    checkpoint = Checkpoint(Path("model"), key="what it is made from", every_minutes=10)
    checkpoint.due()                                          # False: nothing is written yet

Generators are not in it: every step seeds them anew from (seed, step). It is read with
`weights_only`, and a checkpoint of other inputs is not gone on from.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from cspine_kit.core.runs import publish

CHECKPOINT = "checkpoint.pt"


class Stateful(Protocol):
    """What has a state: a module, an optimizer, a schedule, a scaler."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take over a state."""


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: the next one.
        losses: of the steps of the epoch that is not finished.
        history: a row for each finished epoch.
        started_from: what its first weights were taken from, in words.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    started_from: list[str] = field(default_factory=list)


@dataclass
class Checkpoint:
    """The checkpoint of one training.

    Attributes:
        folder: the model's.
        key: what it is made from.
        every_minutes: it is written anew.
    """

    folder: Path
    key: str
    every_minutes: float

    def __post_init__(self) -> None:
        self._written = time.monotonic()

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / CHECKPOINT

    def due(self) -> bool:
        """True where the last one is old."""
        return time.monotonic() - self._written >= 60.0 * self.every_minutes

    def read(self) -> dict[str, Any] | None:
        """The checkpoint of this very training; None where there is none."""
        if not self.path.exists():
            return None
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        return state if state.get("key") == self.key else None

    def write(self, parts: dict[str, Stateful], progress: Progress) -> None:
        """Put all of it on disk; what was there stays whole until the new one is."""
        state = {name: part.state_dict() for name, part in parts.items()}
        with publish(self.path) as temporary:
            torch.save({"key": self.key, "progress": vars(progress), **state}, temporary)
        self._written = time.monotonic()

    def remove(self) -> None:
        """The training is done."""
        self.path.unlink(missing_ok=True)


def restore(state: dict[str, Any], parts: dict[str, Stateful]) -> Progress:
    """Put the state of a checkpoint into what it was written from."""
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return Progress(**state["progress"])

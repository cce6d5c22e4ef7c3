"""What the networks are asked about one study, what they say, and what it cost.

In: seconds and faults as they happen. Out: a `Prediction`. Example::

    trace = Trace()
    with trace.stage("vertebra"):
        levels = ensemble.finder.levels(volume)
    trace.seconds["vertebra"], trace.faults
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from cspine_kit.data.volumes.volume import Volumes
from cspine_kit.infer.chains.governor import Costs, Effort


@dataclass(frozen=True)
class Question:
    """A study, the folder of its files, and what it may cost."""

    volumes: Volumes
    folder: Path
    effort: Effort


@dataclass
class Prediction:
    """What the networks say about one study, what it cost, and what stood in for what failed.

    `table` holds rows of contract `predictions` of every model, `features` those of `aggregate`.
    `faults` maps a stage ("vertebra fold 0", "effnetv2s fold 1") to its cause; `levels_from` is
    "image", or "header_levels" where no vertebra model gave levels. `chains`: folds that spoke.
    `slices` and `levels` are what the features were made from (`Ensemble.tables`).
    """

    table: pd.DataFrame
    features: pd.DataFrame
    costs: Costs
    faults: dict[str, str] = field(default_factory=dict)
    levels_from: str = "image"
    chains: int = 1
    slices: pd.DataFrame = field(default_factory=pd.DataFrame)
    levels: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass
class Trace:
    """Seconds of every stage, and what failed why, of one study."""

    seconds: dict[str, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    levels_from: str = "image"

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to those of a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.spent(name, time.monotonic() - start)

    def spent(self, name: str, seconds: float) -> None:
        """Add seconds to those of a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

"""The time governor: how much effort each study may cost so that the last one ends in time.

In: the time limit, what is left to do, and seconds measured so far. Out: an `Effort` for the next
study. Example::

    >>> end = time.monotonic() + 60.0
    >>> governor = Governor(ladder(config), deadline_s=end, files=700, studies=2)
    >>> [effort] = governor.choose([300])        # None: no time for networks
    >>> slow = dict.fromkeys(config.members, 90.0)
    >>> governor.measured(effort, 300, Costs(vertebra_s=90.0, members_s=slow))
    >>> governor.choose([400])
    [None]

The richest effort is chosen that, by the speeds measured so far, ends before the deadline when it
is kept up for everything left; before anything is measured that is the full one. Speeds are
seconds per file, because studies differ in length; they are averages that forget, because a machine
warms up, heats up and gets neighbors.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cspine_kit.core.config import Config

MEMORY = 0.15
"""Weight of the newest study in the averages."""

MEMBER = "member "
"""Begins the names of members' speeds."""

MARGIN = 1.1
"""Estimates are raised by this much: a late end loses everything, an early one a little."""


@dataclass(frozen=True)
class Effort:
    """What a study gets: views of each slice, fold chains, members, and steps between slices."""

    views: int
    folds: int
    members: tuple[str, ...]
    stride: int = 1

    def __str__(self) -> str:
        return (
            f"{self.views} views, {self.folds} folds, {len(self.members)} members, "
            f"stride {self.stride}"
        )


@dataclass(frozen=True)
class Costs:
    """Measured seconds of one study: reading, all vertebra models, each member's, the rest."""

    read_s: float = 0.0
    vertebra_s: float = 0.0
    members_s: dict[str, float] = field(default_factory=dict)
    stack_s: float = 0.0


def ladder(config: Config, order: Sequence[str] = (), folds: int | None = None) -> list[Effort]:
    """Efforts from full to least; each step gives up what `kernel.degrade` names next.

    Args:
        config: of the bundle.
        order: members, least missed first; those it does not name come first.
        folds: chains there are; the config's by default.
    """
    members = tuple(config.members)
    known = [m for m in order if m in members]
    queue = [m for m in members if m not in known] + known
    effort = Effort(config.kernel.most_views, folds or config.folds.n, members)
    steps = [effort]

    def step(**changes: object) -> None:
        steps.append(replace(steps[-1], **changes))  # type: ignore[arg-type]

    for what in config.kernel.degrade:
        if what == "views" and steps[-1].views > 1:
            step(views=1)
        if what == "stride":
            step(stride=2)
        if what == "folds":
            while steps[-1].folds > 1:
                step(folds=(steps[-1].folds + 1) // 2)
        if what == "members":
            for name in queue[:-1]:
                step(members=tuple(m for m in steps[-1].members if m != name))
    return steps


class Governor:
    """Chooses efforts; safe to ask from several threads.

    Args:
        efforts: from full to least (`ladder`).
        deadline_s: when everything must be done, on `clock`.
        files: files of every study still to be predicted, in all.
        studies: their number.
        readers: processes that read at once; networks: devices that predict at once.
        clock: seconds that never jump.

    Attributes:
        latest: what was chosen last; None before that, and where there was no time for networks.
    """

    def __init__(
        self,
        efforts: Sequence[Effort],
        *,
        deadline_s: float,
        files: int,
        studies: int,
        readers: int = 1,
        networks: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.efforts = list(efforts)
        self.deadline_s = deadline_s
        self.files, self.studies = files, studies
        self.readers, self.networks = readers, networks
        self.clock = clock
        self.latest: Effort | None = None
        self._rates: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative behind it."""
        return self.deadline_s - self.clock()

    def seconds(self, effort: Effort, files: int, studies: int) -> float:
        """Estimated wall time of that many studies; 0 while nothing was measured."""
        rate = self._rates.get
        known = [value for name, value in self._rates.items() if name.startswith(MEMBER)]
        # One that never ran yet may be as slow as the slowest.
        unknown = max(known, default=0.0)
        networks = rate("vertebra", 0.0) + effort.views * sum(
            rate(MEMBER + name, unknown) for name in effort.members
        )
        compute = files * effort.folds * networks / effort.stride + studies * rate("stack", 0.0)
        reading = files * rate("read", 0.0)
        return MARGIN * max(compute / self.networks, reading / self.readers)

    def choose(self, files: Sequence[int]) -> list[Effort | None]:
        """The effort for each of the studies that come next, together; None where its header
        prediction must do. They are no longer counted as left.

        Args:
            files: of each of them, at least one.
        """
        with self._lock:
            chosen = self._richest(files)
            self.files, self.studies = self.files - sum(files), self.studies - len(files)
            self.latest = chosen[-1]
            return chosen

    def _richest(self, files: Sequence[int]) -> list[Effort | None]:
        time_left = self.left_s
        for effort in self.efforts:
            if self.seconds(effort, self.files, self.studies) <= time_left:
                return [effort] * len(files)
        # Not all can have networks: these may, as long as there is time for one more.
        least, chosen, given = self.efforts[-1], list[Effort | None](), list[int]()
        for own in files:
            mine = [*given, own]
            fits = self._rates and self.seconds(least, sum(mine), len(mine)) <= time_left
            given = mine if fits else given
            chosen.append(least if fits else None)
        return chosen

    def again(self, files: int) -> None:
        """A study that was chosen for is still to be predicted: its device failed."""
        with self._lock:
            self.files, self.studies = self.files + files, self.studies + 1

    def measured(self, effort: Effort, files: int, costs: Costs) -> None:
        """Learn from a finished study."""
        share = max(files, 1) * effort.folds / effort.stride
        rates = {
            "vertebra": costs.vertebra_s / share,
            "stack": costs.stack_s,
            **({"read": costs.read_s / max(files, 1)} if costs.read_s else {}),
            **{
                MEMBER + name: seconds / share / effort.views
                for name, seconds in costs.members_s.items()
            },
        }
        with self._lock:
            self._learn(rates)

    def _learn(self, rates: dict[str, float]) -> None:
        for name, value in rates.items():
            old = self._rates.get(name, value)
            self._rates[name] = old + MEMORY * (value - old)

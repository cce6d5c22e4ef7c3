"""One device in a thread of its own: it loads its networks, takes studies, tells what it says.

In: what builds its `Worker`, what hands it studies. Out: `Event`s, in the order in which they
happen. Example::

    from cspine_kit.infer.chains.governor import Governor
    from cspine_kit.infer.studies.listing import Survey

    survey = Survey(competition, [p.name for p in competition.test_images.iterdir()], fallback)
    survey.look(wait_s=60.0, patience_s=10.0)
    governor = Governor(ensemble.efforts, deadline_s=float("inf"), files=300, studies=4)
    unread, events = Reading(next(iter(survey.folders)), 0.1, cause="no pixels"), []
    hands = iter([[unread], None])
    build = lambda name: Worker(ensemble, governor, survey)
    serve(Device("cpu"), build, lambda device: next(hands), events.append)
    [event.kind for event in events]                 # ["ready", "answer"]

Whoever reads a `Device` from another thread sees what it is at and since when, and so whether it
hangs.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cspine_kit.infer.answer import Answer, cause_of
from cspine_kit.infer.studies.reading import Reading
from cspine_kit.infer.studies.worker import Worker


@dataclass
class Device:
    """One device and what it is at."""

    name: str
    state: Literal["loading", "ready", "retired"] = "loading"
    since_s: float = field(default_factory=time.monotonic)
    """When it began what it is at."""
    readings: list[Reading] = field(default_factory=list)
    """Studies that it has taken and told nothing of."""
    strikes: int = 0
    thread: threading.Thread | None = None


@dataclass(frozen=True)
class Event:
    """What a device's thread has to tell."""

    device: Device
    kind: Literal["ready", "lost", "answer", "failed"]
    reading: Reading | None = None
    answer: Answer | None = None
    cause: str = ""
    seconds: float = 0.0
    """That the study took: its share where it was one of several."""

    @property
    def whole(self) -> bool:
        """True where the study is answered and nothing is missing."""
        return self.answer is not None and not self.answer.faults


def serve(
    device: Device,
    build: Callable[[str], Worker],
    take: Callable[[Device], list[Reading] | None],
    tell: Callable[[Event], object],
) -> None:
    """Answer studies until there is none any more, or no network works here.

    After a study that failed or misses something the networks are checked; it stays the device's
    until that is done, so that it is nobody's to lose where the check fails or hangs.

    Args:
        device: told here what it is at.
        build: loads and checks its networks; may raise or hang.
        take: the next studies; none where none is ready, None at the end.
        tell: gets the events.
    """
    try:
        worker = build(device.name)
    except Exception as error:  # noqa: BLE001 - the other devices go on
        tell(Event(device, "lost", cause=cause_of(error)))
        return
    tell(Event(device, "ready"))
    while (readings := take(device)) is not None:
        if not readings:
            continue
        device.since_s, device.readings = time.monotonic(), readings
        events = _asked(device, worker, readings)
        missing = [event for event in events if not event.whole]
        left = [r for r, event in zip(readings, events, strict=True) if not event.whole]
        device.since_s, device.readings = time.monotonic(), left
        for event in events:
            if event.whole:
                tell(event)
        broken = _broken(worker) if missing else None
        if broken is None:
            device.readings = []
        for event in missing:
            tell(event)
        if broken is not None:
            tell(Event(device, "lost", cause=broken))
            return


def _asked(device: Device, worker: Worker, readings: Sequence[Reading]) -> list[Event]:
    """What a device says of each of these studies."""
    start = time.monotonic()
    said: Sequence[Answer | Exception]
    try:
        said = worker.answers(readings)
    except Exception as error:  # noqa: BLE001 - another device may answer
        said = [error] * len(readings)
    seconds = (time.monotonic() - start) / len(readings)
    return [
        Event(device, "failed", reading, cause=cause_of(one), seconds=seconds)
        if isinstance(one, Exception)
        else Event(device, "answer", reading, one, seconds=seconds)
        for reading, one in zip(readings, said, strict=True)
    ]


def _broken(worker: Worker) -> str | None:
    """Why nothing works here any more; None where something does."""
    try:
        worker.check()
    except Exception as error:  # noqa: BLE001 - it is told
        return cause_of(error)
    return None

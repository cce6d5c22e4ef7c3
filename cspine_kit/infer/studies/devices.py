"""The networks of every device, fed by the readers: one answer for every study, in time.

In: names of devices, what builds a `Worker` on one, `Reading`s, a `Governor`. Out: `Answer`s as
they are done. Example::

    from cspine_kit.infer.studies.listing import Survey

    survey = Survey(competition, [p.name for p in competition.test_images.iterdir()], fallback)
    governor = Governor(ensemble.efforts, deadline_s=time.monotonic() + 60.0, files=4, studies=4)
    with ReadAhead(survey.folders, config.volumes, Path(), readers=1) as readings:
        at = governor, survey
        pool = Devices(["cpu"], lambda _: Worker(ensemble, *at), readings, *at)
        sources = {answer.study_uid: answer.source for answer in pool.answers([*survey.folders])}

Each device loads, checks and uses its networks in a daemon thread of its own; the caller's thread
decides and never waits for any of them longer than the deadline:

- a device takes one study, on a GPU whatever else lies read up to a few, and they share batches;
- a device that does not load, or hangs, is retired, and its studies go to another;
- after a failed study its networks are run on noise: a device on which none works is retired;
- so is one whose two studies in a row another device could answer;
- a study that failed, or was answered with something missing, is asked of another device once,
  where there is one, and the answer that misses less is taken;
- a study that is asked of another device is asked alone there, so that one that breaks devices
  takes others with it once at most;
- with no device left, a spare takes over (the CPU); without a spare, headers answer for the rest;
- past the deadline nothing is read or asked any more.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from cspine_kit.infer.answer import Answer
from cspine_kit.infer.chains.governor import Governor
from cspine_kit.infer.patience import CPU_FACTOR, Patience
from cspine_kit.infer.studies.device import Device, Event, serve
from cspine_kit.infer.studies.reading import ReadAhead, Reading
from cspine_kit.infer.studies.worker import Studies, Worker

TICK_S = 0.25
"""Between two looks at what hangs."""

STRIKES = 2
"""Studies in a row that a device fails and another one answers."""

TRIES = 2
"""Devices that a study is asked of before headers answer for it."""

USELESS = 3
"""Studies that miss as much on another device, after which only failed ones are asked again."""

SLOW = 10.0
"""A study that takes so many times the slowest one before it hangs; of several that are asked
together each may."""

FAREWELL_S = 1.0
"""An idle device's thread is waited for so long at the end: one that ends while the interpreter
shuts down can abort the process."""

SPARES = ("cpu", "cpu")
"""Taken over by one after the other when no device is left."""


class Devices:
    """Every device of a run.

    Args:
        names: of the devices.
        build: loads and checks the networks of one device; may raise or hang.
        readings: what was read.
        governor: its deadline ends everything.
        studies: what stands where the networks say nothing.
        spares: names of devices that take over when none is left.
        patience: what counts as hanging.
        note: told what happens to devices: event and details.
        every_one: go on until the last device has loaded, though all studies are answered.
        at_once: studies that a device takes at most; the CPU takes one, where batches of several
            save nothing.
    """

    def __init__(
        self,
        names: Sequence[str],
        build: Callable[[str], Worker],
        readings: ReadAhead,
        governor: Governor,
        studies: Studies,
        *,
        spares: Sequence[str] = SPARES,
        patience: Patience | None = None,
        note: Callable[..., object] = lambda *_, **__: None,
        every_one: bool = False,
        at_once: int = 1,
    ) -> None:
        self._at_once = at_once
        self._build, self._readings, self._governor = build, readings, governor
        self._studies, self._patience, self._note = studies, patience or Patience(), note
        self._spares, self._every_one = list(spares), every_one
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._again: list[Reading] = []
        self._last: list[Reading] = []
        self._tried: dict[str, list[Device]] = {}
        self._partial: dict[str, Answer] = {}
        self._useless = 0
        self._pending: dict[str, None] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._slowest_s, self._looked_s = 0.0, 0.0
        self.ever_ready, self.first_cause = False, ""
        self.devices = [self._start(name) for name in names]

    def _start(self, name: str) -> Device:
        device = Device(name)
        hands = device, self._build, self._next, self._events.put
        device.thread = threading.Thread(target=serve, args=hands, daemon=True)
        device.thread.start()
        return device

    def _next(self, device: Device) -> list[Reading] | None:
        """In a device's thread: a study that failed elsewhere, alone; else the next one read, and
        what else lies read."""
        if self._over.is_set() or device.state == "retired":
            return None
        with self._lock:
            for i, reading in enumerate(self._again):
                if device not in self._tried.get(reading.study_uid, ()):
                    return [self._again.pop(i)]
        most = 1 if device.name == "cpu" else self._at_once
        found = [self._readings.take(TICK_S)]
        while len(found) < most and found[-1] is not None:
            found.append(self._readings.take(0.0))
        return [reading for reading in found if reading is not None]

    def answers(self, uids: Sequence[str]) -> Iterator[Answer]:
        """One answer for each of these studies, as they are done; never later than the deadline."""
        self._pending = dict.fromkeys(uids)
        try:
            while self._is_busy() and self._governor.left_s > 0 and self._alive():
                with contextlib.suppress(queue.Empty):
                    event = self._events.get(timeout=min(TICK_S, self._governor.left_s))
                    yield from self._settle(event)
                if time.monotonic() - self._looked_s > TICK_S:
                    self._retire_hanging()
                yield from self._settle_untakable()
        finally:
            self._over.set()
            self._readings.stop()
            for device in self._alive():
                if not device.readings and device.thread is not None:
                    device.thread.join(FAREWELL_S)
        cause = f"no time for the networks: {self._governor.left_s:.1f} s left"
        if self._governor.left_s > 0:
            cause = f"no device is left: {self.first_cause}"
        for uid in self._pending:
            yield self._best(uid, cause)

    def _is_busy(self) -> bool:
        loading = self._every_one and any(d.state == "loading" for d in self.devices)
        return bool(self._pending) or loading

    def _alive(self) -> list[Device]:
        return [device for device in self.devices if device.state != "retired"]

    def _settle(self, event: Event) -> Iterator[Answer]:
        """Take note of an event; yields the answer that settles a study, if it brings one."""
        device, reading = event.device, event.reading
        if event.kind == "ready" and device.state == "loading":
            device.state, self.ever_ready = "ready", True
            self._note("device_ready", device=device.name)
        elif event.kind == "lost":
            self._retire(device, event.cause)
        elif reading is None or reading.study_uid not in self._pending:
            return
        elif event.answer is not None and event.whole:
            self._judge(event, reading)
            yield self._done(reading, event.answer)
        else:
            yield from self._settle_partly(event, reading)

    def _settle_partly(self, event: Event, reading: Reading) -> Iterator[Answer]:
        """A study that failed, or was answered with something missing: another device is asked."""
        uid, answer, device = reading.study_uid, event.answer, event.device
        if answer is None:
            self._note("fault", study_uid=uid, stage=device.name, cause=event.cause)
        elif uid not in self._partial or len(answer.faults) < len(self._partial[uid].faults):
            if uid in self._partial:
                self._judge(event, reading)
            self._partial[uid] = answer
        elif answer.faults.keys() == self._partial[uid].faults.keys():
            self._useless += 1
        if any(held is reading for held in device.readings):
            return  # its device is broken: the study goes to another one
        with self._lock:
            self._tried.setdefault(uid, []).append(device)
            others = [d for d in self._alive() if d not in self._tried[uid]]
            worth = answer is None or self._useless < USELESS
            again = bool(others) and worth and len(self._tried[uid]) < TRIES
            if again:
                self._again.append(reading)
        if again:
            self._governor.again(self._studies.files[uid])
        else:
            yield self._done(reading, self._best(uid, event.cause))

    def _best(self, uid: str, cause: str) -> Answer:
        """What some device could say in part, else what headers say."""
        return self._partial.get(uid) or self._studies.fallback(uid).because(cause)

    def _judge(self, event: Event, reading: Reading) -> None:
        """A study that this device answers and others could not is their fault."""
        device = event.device
        device.strikes = 0
        self._slowest_s = max(self._slowest_s, event.seconds)
        for other in self._tried.get(reading.study_uid, []):
            other.strikes += 1
            if other.strikes >= STRIKES and other.state != "retired" and len(self._alive()) > 1:
                cause = f"{STRIKES} studies in a row failed that {device.name} could answer"
                self._retire(other, cause)

    def _done(self, reading: Reading, answer: Answer) -> Answer:
        del self._pending[reading.study_uid]
        with self._lock:
            for left in (self._again, self._last):
                left[:] = [r for r in left if r.study_uid != reading.study_uid]
        reading.close()
        return answer

    def _settle_untakable(self) -> Iterator[Answer]:
        """Studies that no device left may try; and, with nothing else to do, those that hung."""
        with self._lock:
            if len(self._pending) <= len(self._last) + len(self._again):
                self._again, self._last = [*self._again, *self._last], []
            alive = self._alive()
            lost = [r for r in self._again if all(d in self._tried[r.study_uid] for d in alive)]
        for reading in lost:
            cause = f"failed or hung on {[d.name for d in self._tried[reading.study_uid]]}"
            yield self._done(reading, self._best(reading.study_uid, cause))

    def _retire_hanging(self) -> None:
        now, patience = time.monotonic(), self._patience
        self._looked_s = now
        for device in self._alive():
            held = len(device.readings)
            factor = CPU_FACTOR if device.name == "cpu" else 1.0
            limit = factor * patience.load_s
            if device.state == "ready":
                limit = max(factor * patience.network_s, SLOW * self._slowest_s)
                limit *= held
            if (device.state == "loading" or held) and now - device.since_s > limit:
                self._retire(device, f"hangs for {now - device.since_s:.1f} s", hangs=True)

    def _retire(self, device: Device, cause: str, *, hangs: bool = False) -> None:
        """Use a device no more; its studies go to another: at once, or last where one may hang."""
        if device.state == "retired":
            return
        useless = device.state == "loading" and device.name == "cpu"
        device.state = "retired"
        self.first_cause = self.first_cause or f"{device.name}: {cause}"
        self._note("device_lost", device=device.name, cause=cause)
        if not self._alive() and self._spares and not useless:
            spare = self._spares.pop(0)
            self._note("device_spare", device=spare)
            self.devices.append(self._start(spare))
        self._governor.networks = max(1, len(self._alive()))
        for reading in [r for r in device.readings if r.study_uid in self._pending]:
            self._governor.again(self._studies.files[reading.study_uid])
            with self._lock:
                self._tried.setdefault(reading.study_uid, []).append(device)
                (self._last if hangs else self._again).append(reading)

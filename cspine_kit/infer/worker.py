"""The networks of each device, fed by the readers: one answer for every study.

In: `Reading`s, an `Ensemble` for each device, a `Governor`. Out: `Answer`s as they are done.
Example::

    folders, files = {uid: folder}, {uid: 100}
    governor = Governor(
        ensemble.efforts, deadline_s=time.monotonic() + 60.0, files=100, studies=1
    )
    fallbacks = header_answers(fallback, folders, wait_s=60.0)
    worker = Worker(ensemble, governor, folders, files, fallbacks)
    with ReadAhead(folders, config.cache, Path(), readers=1) as readings:
        for answer in answers([worker], readings, len(folders)):
            print(answer.study_uid, answer.source, answer.probs)

A study falls back from the image chain (whose vertebra levels may come from headers) to the
prediction from headers alone, made for all before any network, to nothing: then the priors stand.
"""

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import StudyError
from cspine_kit.data.reader.dicom import read_geometry
from cspine_kit.data.reader.geometry import Geometry
from cspine_kit.infer.governor import Costs, Effort, Governor
from cspine_kit.infer.reading import ReadAhead, Reading, cause_of

if TYPE_CHECKING:
    from cspine_kit.infer.ensemble import Ensemble


@dataclass(frozen=True)
class Answer:
    """One study: probabilities by target (None: the priors stand), every model's rows, and why.

    `table` and `features` are those of `Prediction`, None where the networks said nothing.
    `details` go into the log: effort, seconds per stage, slices, problems.
    """

    study_uid: str
    source: str
    probs: pd.Series | None = None
    table: pd.DataFrame | None = None
    features: pd.DataFrame | None = None
    cause: str | None = None
    faults: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)

    def because(self, cause: str) -> "Answer":
        """This fallback, with the reason why it is needed before its own."""
        own = [f"headers: {self.cause}"] if self.cause else []
        return replace(self, cause="; ".join([cause, *own]))


class HeaderModel(Protocol):
    """What predicts from headers: `stack.fallback.headers.HeaderFallback`."""

    def predict(self, geometry: Geometry) -> dict[str, float]:
        """Probability of each target."""


def _from_headers(headers: HeaderModel, uid: str, folder: Path) -> Answer:
    try:
        probs = pd.Series(headers.predict(read_geometry(folder, uid)))
        probs = probs.reindex(list(TARGETS)).astype(float)
        if not probs.between(0, 1, inclusive="neither").all():
            raise StudyError(uid, "a probability outside (0, 1)")
    except Exception as error:  # noqa: BLE001 - the priors stand
        return Answer(uid, "priors", cause=cause_of(error))
    return Answer(uid, "header", probs=probs)


def header_answers(
    headers: HeaderModel, folders: Mapping[str, Path], wait_s: float
) -> dict[str, Answer]:
    """What headers alone say about every study, or why they say nothing.

    It takes milliseconds for each, and no more than `wait_s` seconds in all: a file that hangs
    costs those that come after it their header prediction, not the run.
    """
    found: dict[str, Answer] = {}
    end_s = time.monotonic() + wait_s

    def work() -> None:
        for uid, folder in folders.items():
            if time.monotonic() > end_s:
                return
            found[uid] = _from_headers(headers, uid, folder)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(wait_s)
    late = f"not read within {wait_s:.1f} s"
    return {uid: found.get(uid) or Answer(uid, "priors", cause=late) for uid in folders}


class Worker:
    """Answers for one device.

    Args:
        ensemble: its networks.
        governor: shared by all devices.
        folders, files: folder and number of files of every study.
        fallbacks: of `header_answers`.
    """

    def __init__(
        self,
        ensemble: "Ensemble",
        governor: Governor,
        folders: Mapping[str, Path],
        files: Mapping[str, int],
        fallbacks: Mapping[str, Answer],
    ) -> None:
        self.ensemble, self.governor = ensemble, governor
        self.folders, self.files, self.fallbacks = folders, files, fallbacks

    def answer(self, reading: Reading) -> Answer:
        """The best that can be said about one study in the time there is; an error of the image
        chain becomes the study's fallback, with its cause."""
        uid, cause = reading.study_uid, reading.cause
        effort = self.governor.choose(self.files[uid])
        if effort is None:
            cause = f"no time for the networks: {self.governor.left_s:.1f} s left"
        elif cause is None:
            try:
                return self._from_image(reading, effort)
            except Exception as error:  # noqa: BLE001 - headers have spoken for it
                cause = cause_of(error)
        return self.fallbacks[uid].because(str(cause))

    def _from_image(self, reading: Reading, effort: Effort) -> Answer:
        uid, volume = reading.study_uid, reading.open()
        found = self.ensemble.predict(volume, self.folders[uid], effort)
        costs = Costs(
            reading.seconds, found.costs.vertebra_s, found.costs.members_s, found.costs.stack_s
        )
        self.governor.measured(effort, self.files[uid], costs)
        shipped = found.table[found.table["model"] == self.ensemble.stack.ships]
        return Answer(
            uid,
            found.levels_from,
            probs=shipped.set_index("target")["prob"],
            table=found.table,
            features=found.features,
            cause=None if found.levels_from == "image" else next(iter(found.faults.values())),
            faults=found.faults,
            details={
                "problems": reading.problems,
                "slices": len(volume.z_mm),
                "files": self.files[uid],
                "effort": str(effort),
                "decode_s": round(costs.read_s, 4),
                "vertebra_s": round(costs.vertebra_s, 4),
                "members_s": {name: round(s, 4) for name, s in costs.members_s.items()},
                "stack_s": round(costs.stack_s, 4),
            },
        )


def answers(workers: Sequence[Worker], readings: ReadAhead, count: int) -> Iterator[Answer]:
    """Answers of `count` readings, as they are done; each worker runs in a thread of its own."""
    done: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def work(worker: Worker) -> None:
        for reading in readings:
            try:
                done.put(worker.answer(reading))
            finally:
                reading.close()

    for worker in workers:
        threading.Thread(target=work, args=(worker,), daemon=True).start()
    for _ in range(count):
        yield done.get()

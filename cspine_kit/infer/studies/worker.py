"""What one device says about studies that were read.

In: `Reading`s, an `Ensemble`, a `Governor`, a `Survey`. Out: `Answer`s. Example::

    from cspine_kit.infer.studies.listing import Survey

    survey = Survey(competition, [p.name for p in competition.test_images.iterdir()], fallback)
    survey.look(wait_s=60.0, patience_s=10.0)
    governor = Governor(ensemble.efforts, deadline_s=float("inf"), files=300, studies=4)
    worker = Worker(ensemble, governor, survey)
    unread = Reading(next(iter(survey.folders)), 0.1, cause="no pixels")
    worker.answers([unread])[0].source               # "header"

A study falls back from the image chain (whose vertebra levels may come from headers) to the
prediction from headers alone, made for all before any network, to nothing: then the priors stand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cspine_kit.data.reader.problems import explain, falls_back
from cspine_kit.infer.answer import Answer
from cspine_kit.infer.chains.governor import Governor
from cspine_kit.infer.chains.prediction import Prediction, Question
from cspine_kit.infer.studies.reading import Reading

if TYPE_CHECKING:
    from cspine_kit.infer.chains.ensemble import Ensemble


def refusal(problems: Sequence[str]) -> str | None:
    """Why a study must not be judged by its pixels, from its problem codes; None where it may."""
    found = falls_back(problems)
    return "not usable as an image: " + "; ".join(explain(found)) if found else None


class Studies(Protocol):
    """What is known of the studies: `infer.listing.Survey`."""

    @property
    def folders(self) -> Mapping[str, Path]:
        """Folder of each study worth reading."""

    @property
    def files(self) -> Mapping[str, int]:
        """Its number of files."""

    def fallback(self, uid: str) -> Answer:
        """What stands where the networks say nothing."""


class Worker:
    """Answers for one device.

    Args:
        ensemble: its networks.
        governor: shared by all devices.
        studies: what is known of them without pixels.
    """

    def __init__(self, ensemble: "Ensemble", governor: Governor, studies: Studies) -> None:
        self.ensemble, self.governor, self.studies = ensemble, governor, studies
        self._folders, self._files = dict(studies.folders), dict(studies.files)

    def check(self) -> None:
        """Run every network once.

        Raises:
            ArtifactError: none works here any more.
        """
        self.ensemble.check()

    def answers(self, readings: Sequence[Reading]) -> list[Answer | Exception]:
        """The best that can be said about each of these studies in the time there is, or why the
        networks failed: another device may be asked. They share batches (`Ensemble.predict_all`).
        """
        efforts = self.governor.choose([self._files[r.study_uid] for r in readings])
        said: dict[int, Answer | Exception] = {}
        asked: dict[int, Question] = {}
        for k, (reading, effort) in enumerate(zip(readings, efforts, strict=True)):
            cause = reading.cause or refusal(reading.problems)
            if cause is None and effort is None:
                cause = f"no time for the networks: {self.governor.left_s:.1f} s left"
            try:
                if cause is not None or effort is None:
                    said[k] = self.studies.fallback(reading.study_uid).because(str(cause))
                else:
                    folder = self._folders[reading.study_uid]
                    asked[k] = Question(reading.open(), folder, effort)
            except Exception as error:  # noqa: BLE001 - the other studies are asked
                said[k] = error
        found = self.ensemble.predict_all(list(asked.values()))
        for (k, question), one in zip(asked.items(), found, strict=True):
            said[k] = self._answer(readings[k], question, one)
        return [said[k] for k in range(len(readings))]

    def _answer(
        self, reading: Reading, asked: Question, said: Prediction | Exception
    ) -> Answer | Exception:
        if isinstance(said, Exception):
            return said
        try:
            return self._from_image(reading, asked, said)
        except Exception as error:  # noqa: BLE001 - the other studies are answered
            return error

    def _from_image(self, reading: Reading, asked: Question, said: Prediction) -> Answer:
        uid, effort = reading.study_uid, asked.effort
        costs = replace(said.costs, read_s=reading.seconds)
        self.governor.measured(replace(effort, folds=said.chains), self._files[uid], costs)
        shipped = said.table[said.table["model"] == self.ensemble.ships]
        return Answer(
            uid,
            said.levels_from,
            probs=shipped.set_index("target")["prob"],
            table=said.table,
            features=said.features,
            cause=None if said.levels_from == "image" else next(iter(said.faults.values())),
            faults=said.faults,
            details={
                "problems": reading.problems,
                "slices": len(asked.volumes.fine.z_mm),
                "files": self._files[uid],
                "effort": str(effort),
                "decode_s": round(costs.read_s, 4),
                "vertebra_s": round(costs.vertebra_s, 4),
                "members_s": {name: round(s, 4) for name, s in costs.members_s.items()},
                "stack_s": round(costs.stack_s, 4),
            },
        )

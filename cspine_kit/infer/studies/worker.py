"""What one device says about one study that was read.

In: a `Reading`, an `Ensemble`, a `Governor`, a `Survey`. Out: an `Answer`. Example::

    from cspine_kit.infer.studies.listing import Survey

    survey = Survey(competition, [p.name for p in competition.test_images.iterdir()], fallback)
    survey.look(wait_s=60.0, patience_s=10.0)
    governor = Governor(ensemble.efforts, deadline_s=float("inf"), files=300, studies=4)
    worker = Worker(ensemble, governor, survey)
    worker.answer(Reading(next(iter(survey.folders)), 0.1, cause="no pixels")).source   # "header"

A study falls back from the image chain (whose vertebra levels may come from headers) to the
prediction from headers alone, made for all before any network, to nothing: then the priors stand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cspine_kit.data.reader.problems import explain, falls_back
from cspine_kit.infer.answer import Answer
from cspine_kit.infer.chains.governor import Costs, Effort, Governor
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

    def answer(self, reading: Reading) -> Answer:
        """The best that can be said about one study in the time there is.

        Raises:
            Exception: the networks failed; another device may be asked.
        """
        uid = reading.study_uid
        effort = self.governor.choose(self._files[uid])
        cause = reading.cause or refusal(reading.problems)
        if cause is None and effort is None:
            cause = f"no time for the networks: {self.governor.left_s:.1f} s left"
        if cause is not None or effort is None:
            return self.studies.fallback(uid).because(str(cause))
        try:
            return self._from_image(reading, effort)
        except Exception:
            self.governor.again(self._files[uid])
            raise

    def _from_image(self, reading: Reading, effort: Effort) -> Answer:
        uid, volumes = reading.study_uid, reading.open()
        found = self.ensemble.predict(volumes, self._folders[uid], effort)
        costs = Costs(
            reading.seconds, found.costs.vertebra_s, found.costs.members_s, found.costs.stack_s
        )
        self.governor.measured(replace(effort, folds=found.chains), self._files[uid], costs)
        shipped = found.table[found.table["model"] == self.ensemble.ships]
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
                "slices": len(volumes.fine.z_mm),
                "files": self._files[uid],
                "effort": str(effort),
                "decode_s": round(costs.read_s, 4),
                "vertebra_s": round(costs.vertebra_s, 4),
                "members_s": {name: round(s, 4) for name, s in costs.members_s.items()},
                "stack_s": round(costs.stack_s, 4),
            },
        )

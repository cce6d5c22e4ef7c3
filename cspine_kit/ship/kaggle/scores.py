"""What the service says of the last submission: its state and its leaderboard scores.

In: a push that submitted. Out: `Scores`, at once or when they are there. Example::

    found = Scores("COMPLETE", public=0.41, private=None)
    found.ended, str(found)             # True, "COMPLETE, public 0.4100"
"""

import logging
import time
from dataclasses import dataclass

from cspine_kit.core.command import waiting
from cspine_kit.ship.kaggle.process import ServiceError
from cspine_kit.ship.kaggle.state import Push

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """One submission on the service; scores are None where it shows none (yet, or to you)."""

    status: str
    public: float | None
    private: float | None

    @property
    def ended(self) -> bool:
        """Whether it was scored, or failed to be."""
        return self.status in {"COMPLETE", "ERROR"}

    def __str__(self) -> str:
        shown = {"public": self.public, "private": self.private}
        return ", ".join(
            [self.status, *(f"{k} {v:.4f}" for k, v in shown.items() if v is not None)]
        )


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None


def scores_of(push: Push) -> Scores:
    """What the service shows of the submission of this push.

    Raises:
        ServiceError: nothing was submitted, or the service does not list it.
    """
    stage, slug = push.state.submission, push.config.competition.slug
    if stage is None or stage.stage != "done":
        raise ServiceError("nothing was submitted by this config's push; push with --submit first")
    for row in push.client.submissions(slug):
        if row.get("description") == stage.description:
            status = str(row.get("status")).rpartition(".")[2]
            return Scores(status, _number(row.get("publicScore")), _number(row.get("privateScore")))
    raise ServiceError(
        f"the service lists no submission {stage.description!r} to {slug}; look at the "
        "competition's page of your submissions"
    )


def wait_scored(push: Push) -> Scores:
    """Wait until the submission is scored: a rerun takes up to `kernel.hours`.

    Raises:
        ServiceError: as `scores_of`; or it is neither scored nor failed in time.
    """
    delays = push.waits.delays()
    limit_s = push.waits.queue_s + push.config.kernel.hours * 3600
    end = time.monotonic() + limit_s
    with waiting("the submission is scored") as tell:
        while not (found := scores_of(push)).ended:
            tell(str(found))
            if time.monotonic() > end:
                raise ServiceError(
                    f"the submission is {found.status} after {limit_s / 3600:.1f} h; ask again "
                    "later with cspine push --scores"
                )
            delays.sleep()
    return found

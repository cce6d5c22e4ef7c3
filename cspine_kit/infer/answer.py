"""What is said about one study, and why nothing better was.

In: probabilities by target, a source, a cause. Out: an `Answer`. Example::

    answer = Answer("1.2.3", "header", probs=pd.Series({"C2": 0.1, "patient_overall": 0.3}))
    answer.because("no time for the networks").cause
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from cspine_kit.core.errors import CSpineError


def cause_of(error: BaseException) -> str:
    """One line that says what happened."""
    return str(error) if isinstance(error, CSpineError) else f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Answer:
    """One study: probabilities by target (None: the priors stand), every model's rows, and why.

    `source` is one of `infer.log.SOURCES`. `table` and `features` are those of `Prediction`, None
    where the networks said nothing. `details` go into the log: effort, seconds per stage, slices,
    problems.
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

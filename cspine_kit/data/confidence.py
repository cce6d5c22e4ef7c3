"""What the decode's belief in a level is worth: a line through its log-odds.

In: beliefs of levels whose truth is known. Out: `Calibration`. Example::

    >>> belief, right = np.array([0.8, 0.95, 0.99, 0.9] * 40), np.array([0, 1, 1, 1] * 40)
    >>> fitted = fit_calibration(belief, right)
    >>> bool(fitted.of(np.array([0.7]))[0] < 0.5 < fitted.of(np.array([0.99]))[0])
    True
    >>> fit_calibration(belief[:3], right[:3]) == PLAIN              # too few to learn from
    True

Chain k's line is fitted on masked studies of the other folds, each by the vertebra model that has
not learned from it; it lies beside vertebra model k.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.numbers import BoolArray, FloatArray, log_losses, logit, sigmoid
from cspine_kit.core.runs import read_json, write_json

FEWEST = 100
"""Fewer levels say too little for a line of their own."""

FILE = "calibration.json"

PULL = 4.0
"""How firmly a line is held near `PLAIN`: as many levels' worth of curvature."""


@dataclass(frozen=True)
class Calibration:
    """confidence = sigmoid(start + slope * log-odds of belief)."""

    start: float
    slope: float

    def of(self, belief: FloatArray) -> FloatArray:
        """Confidences of beliefs, both in [0, 1]."""
        return sigmoid(self.start + self.slope * logit(belief))

    def applied(self, levels: pd.DataFrame) -> pd.DataFrame:
        """Levels of `decode_levels`, with what their confidence is worth."""
        worth = self.of(levels["confidence"].to_numpy(np.float64))
        return levels.assign(confidence=np.where(levels["present"], worth, 0.0))

    def save(self, folder: Path) -> None:
        """Write it beside a vertebra model, unless it is there."""
        if not (folder / FILE).exists() or read_json(folder / FILE) != asdict(self):
            write_json(folder / FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Calibration":
        """That of a vertebra model's folder.

        Raises:
            ArtifactError: the file is missing or holds no line.
        """
        try:
            values = read_json(folder / FILE)
            return cls(float(values["start"]), float(values["slope"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(
                f"{folder / FILE} holds no calibration: {error}; run make oof again"
            ) from error


PLAIN = Calibration(0.0, 1.0)
"""Beliefs as they are."""


def fit_calibration(belief: FloatArray, right: BoolArray) -> Calibration:
    """Penalized logistic regression; `PLAIN` where there are too few levels.

    Args:
        belief: (n,) of levels said to be there.
        right: (n,) whether the level is there and its center within half a vertebra.
    """
    from scipy.optimize import minimize

    if len(belief) < FEWEST:
        return PLAIN
    odds, plain = logit(belief), np.array([PLAIN.start, PLAIN.slope])

    def loss(line: FloatArray) -> float:
        losses = log_losses(right, sigmoid(line[0] + line[1] * odds))
        return float(losses.sum() + 0.5 * PULL * ((line - plain) ** 2).sum())

    start, slope = minimize(loss, plain, method="L-BFGS-B", bounds=[(None, None), (0.0, None)]).x
    return Calibration(float(start), float(slope))


def mean_of(lines: Sequence[Calibration]) -> Calibration:
    """One line for models that speak together; `PLAIN` of none."""
    if not lines:
        return PLAIN
    starts, slopes = zip(*((line.start, line.slope) for line in lines), strict=True)
    return Calibration(float(np.mean(starts)), float(np.mean(slopes)))

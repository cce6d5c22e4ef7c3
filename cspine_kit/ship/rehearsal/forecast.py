"""How long the hidden test set will take, from the stages that a run measured.

In: the events of a kernel run, the matrix its studies had. Out: seconds by stage. Example::

    clean = set(events.studies["study_uid"])
    forecast = forecast_run(events, clean, pixels=96 * 96, decoders=2)
    forecast.hours, forecast.assumptions

The real sizes are those of the 2,019 training studies (711,601 slices, nearly all 512 x 512).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import REAL_SLICES, REAL_STUDIES
from cspine_kit.core.errors import DataError
from cspine_kit.infer.log import IMAGE, STAGES, KernelEvents

HIDDEN_STUDIES = 1_500
"""Of the hidden test set, "roughly" (the competition's data page)."""

HIDDEN_SLICES = REAL_SLICES / REAL_STUDIES
HIDDEN_PIXELS = 512 * 512


@dataclass(frozen=True)
class Forecast:
    """Expected run time on the hidden test set."""

    stages: pd.DataFrame
    """By stage: measured (s per study), factor (to the hidden size), expected (s per study)."""
    startup_s: float
    studies: int
    decoders: int
    assumptions: tuple[str, ...]

    @property
    def serial_hours(self) -> float:
        """One stage after the other."""
        return (self.startup_s + self.studies * float(self.stages["expected"].sum())) / 3600

    @property
    def hours(self) -> float:
        """Decoding runs ahead in its own processes; the slower of the two decides."""
        expected = self.stages["expected"]
        decode = float(expected["decode"]) / self.decoders
        rest = float(expected.drop("decode").sum())
        return (self.startup_s + self.studies * max(decode, rest)) / 3600


def startup_seconds(events: KernelEvents) -> float:
    """From the priors on disk to the first finished study, without that study's own time, s."""
    priors = events.first("priors_written")
    done = events.studies.dropna(subset=["time", "total_s"])
    if priors is None or done.empty:
        return 0.0
    first = done.sort_values("time").iloc[0]
    return max(0.0, float(first["time"] - priors["time"] - first["total_s"]))


def forecast_run(
    events: KernelEvents,
    uids: set[str],
    *,
    pixels: float,
    decoders: int,
    studies: int = HIDDEN_STUDIES,
) -> Forecast:
    """Expect the time of `studies` hidden studies from the measured ones.

    Args:
        events: of a finished run.
        uids: studies that count: sound ones of a real study's making.
        pixels: rows x columns of their slices.
        decoders: processes that decode ahead; 1 where decoding and networks take turns.
        studies: hidden studies.

    Raises:
        DataError: none of `uids` was predicted from its images.
    """
    table = events.studies
    table = table[table["study_uid"].isin(uids) & (table["source"] == IMAGE)]
    table = table.dropna(subset=["total_s", "slices", "decode_s"])
    if table.empty:
        raise DataError("no sound study was predicted from its images: nothing to forecast from")
    measured = table[list(STAGES)].mean()
    known = float(measured.fillna(0.0).sum())
    # Kernels that do not time their stages apart: everything after decoding is one stage.
    rest = max(0.0, float(table["total_s"].mean()) - known)
    rows = {stage.removesuffix("_s"): value for stage, value in measured.dropna().items()}
    if rest > 0.01 * known:
        rows["not timed apart"] = rest
    longer = HIDDEN_SLICES / float(table["slices"].mean())
    larger = longer * HIDDEN_PIXELS / pixels
    factors = {"decode": larger, "stack": 1.0}
    frame = pd.DataFrame({"measured": rows})
    frame["factor"] = [factors.get(str(stage), longer) for stage in frame.index]
    frame["expected"] = frame["measured"] * frame["factor"]
    spread = float(np.percentile(table["total_s"], 90) / table["total_s"].median())
    assumptions = (
        f"{studies:,} hidden studies of {HIDDEN_SLICES:.0f} slices of 512 x 512 (the mean of the "
        f"{REAL_STUDIES:,} training studies); measured on {len(table)} sound studies of "
        f"{table['slices'].mean():.0f} slices and {pixels:,.0f} pixels",
        "decoding grows with slices x pixels, networks with slices (an upper bound: they step in "
        "mm and see a crop of fixed size), statistics and boosters with neither",
        f"this machine's processor and GPU, {decoders} decoding process(es); not Kaggle's",
        f"studies cost alike (here the 90 % quantile is {spread:.1f} times the median)",
    )
    return Forecast(frame, startup_seconds(events), studies, decoders, assumptions)

"""A picture of the out-of-fold probabilities, for people who would rather look than read.

In: contract `predictions`, labels. Out: `calibration.png`. Example::

    draw_calibration(predictions, labels, ["mean_of_members", "stack"], Path("calibration.png"))

matplotlib is imported inside: the kernel never draws.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.runs import publish
from cspine_kit.stack.scores.baselines import wide_predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#9aa0a6", "#e69f00", "#0072b2")
"""Grey, orange, blue: apart for every kind of color vision."""

FEWEST, MOST_BINS = 20, 10
"""Studies that a bin holds at least, and bins at most."""


def reliability(y: FloatArray, p: FloatArray) -> pd.DataFrame:
    """Observed against predicted share in equally filled bins.

    Args:
        y: (n,) of 0 / 1.
        p: (n,) probabilities.

    Returns:
        predicted, observed, low, high (95 % Wilson interval), count; ascending.
    """
    from scipy.stats import binomtest

    bins = int(np.clip(len(y) // FEWEST, 1, MOST_BINS))
    rows = []
    for part in np.array_split(np.argsort(p, kind="stable"), bins):
        low, high = binomtest(int(y[part].sum()), len(part)).proportion_ci(method="wilson")
        rows.append((p[part].mean(), y[part].mean(), low, high, len(part)))
    return pd.DataFrame(rows, columns=["predicted", "observed", "low", "high", "count"])


def draw_calibration(
    predictions: pd.DataFrame, labels: pd.DataFrame, models: Sequence[str], path: Path
) -> None:
    """`calibration_sheet` as a PNG."""
    with publish(path) as temporary:
        calibration_sheet(predictions, labels, models).savefig(temporary, format="png", dpi=120)


def calibration_sheet(
    predictions: pd.DataFrame, labels: pd.DataFrame, models: Sequence[str]
) -> "Figure":
    """Reliability of the overall and of all levels pooled, with 95 % intervals of each bin.

    Positives weigh twice in the metric: where a share s is fractured, form B is least at
    2 s / (1 + s). The dashed line shows that; form A lies nearer to the diagonal.

    Args:
        predictions: contract `predictions`, out-of-fold.
        labels: study_uid and the eight targets.
        models: at most three names, the one to look at last.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.4), layout="constrained")
    truth = labels.set_index("study_uid")[list(TARGETS)]
    panels = {"patient_overall": [OVERALL], "C1 to C7 pooled": list(LEVELS)}
    for axes, (title, targets) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        share = np.linspace(0.0, 1.0, 50)
        axes.plot(share, share, color="black", linewidth=0.8, linestyle=":")
        axes.plot(2 * share / (1 + share), share, color="black", linewidth=0.8, linestyle="--")
        for model, color in zip(models, COLORS[-len(models) :], strict=True):
            wide = wide_predictions(predictions, model)
            y = truth.loc[wide.index, targets].to_numpy(np.float64).ravel()
            bins = reliability(y, wide[targets].to_numpy(np.float64).ravel())
            error = np.abs(bins[["low", "high"]].to_numpy().T - bins["observed"].to_numpy())
            style = {"color": color, "marker": "o", "markersize": 4, "capsize": 2}
            axes.errorbar(bins["predicted"], bins["observed"], error, label=model, **style)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=title, xlabel="predicted")
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("observed share of fractures")
    figure.axes[0].legend(loc="upper left", frameon=False)
    figure.suptitle(
        f"Calibration out-of-fold, {len(truth)} studies; dotted: predicted = observed, "
        "dashed: least loss in form B"
    )
    return figure

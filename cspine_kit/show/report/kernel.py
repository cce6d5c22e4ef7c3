"""Figures of the kernel and of what the run has cost.

In: `KernelEvents`, `run.json` records. Out: `Figure`s. Example: `times(events, hours=9.0)`.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from cspine_kit.infer.log import IMAGE, SOURCES, STAGES, KernelEvents
from cspine_kit.show.report.figure import (
    ALARM_COLOR,
    PLAIN_COLOR,
    Figure,
    bars_height,
    canvas,
    drawn,
)

TEST_STUDIES = 1500
"""About as many as the hidden test set of the competition holds."""

STAGE_COLORS = dict(zip(STAGES, ("#9aa0a6", "#0072b2", "#e69f00", "#009e73"), strict=True))
MOST_BARS = 60
SHOWN_CAUSES = 5


def times(kernel: KernelEvents, hours: float) -> Figure:
    """Seconds of every study by stage, slowest first.

    Args:
        kernel: its log.
        hours: that the config allows.
    """
    studies = kernel.studies.sort_values("total_s", ascending=False, ignore_index=True)
    picked = np.unique(np.linspace(0, len(studies) - 1, MOST_BARS).round().astype(int))
    shown = studies.iloc[picked]
    sheet = canvas(height_in=2.8)
    left, right = sheet.subplots(1, 2, width_ratios=[3, 2])
    under = np.zeros(len(shown))
    for stage in STAGES:
        seconds = shown[stage].fillna(0.0).to_numpy()
        name = stage.removesuffix("_s")
        left.bar(range(len(shown)), seconds, bottom=under, color=STAGE_COLORS[stage], label=name)
        under += seconds
    left.set(xlabel="studies, slowest first", ylabel="seconds", xticks=[])
    total = studies[list(STAGES)].sum()
    names = [s.removesuffix("_s") for s in STAGES]
    bars = right.barh(names, total, color=[STAGE_COLORS[s] for s in STAGES], height=0.6)
    share = total / max(float(total.sum()), 1e-9)
    right.bar_label(bars, [f"{share[s]:.0%}" for s in STAGES], padding=3, fontsize=8)
    right.invert_yaxis()
    right.set(xlabel="seconds of all studies", xlim=(0, 1.15 * max(total.max(), 1e-9)))
    median = float(studies["total_s"].median())
    needed = float(studies["total_s"].mean()) * TEST_STUDIES / 3600.0
    return drawn(
        sheet,
        f"Median {median:.2f} s a study on this machine. At this pace, one study after the other, "
        f"{TEST_STUDIES:,} studies take {needed:.1f} h of the {hours:g} h allowed; make rehearse "
        "forecasts with Kaggle's own limits.",
    )


def sources(kernel: KernelEvents) -> Figure:
    """What the rows of each study came from, and why not from its image."""
    counts = Counter(kernel.studies["source"])
    names = [s for s in SOURCES if counts[s]] or [IMAGE]
    sheet = canvas(height_in=bars_height(len(names)))
    axes = sheet.subplots()
    colors = [PLAIN_COLOR if s == IMAGE else ALARM_COLOR for s in names]
    bars = axes.barh(names, [counts[s] for s in names], color=colors, height=0.6)
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.set(xlabel="studies", ylim=(len(names) - 0.4, -0.6))
    causes = Counter(cause for cause in kernel.studies["cause"] if cause)
    told = "; ".join(f"{cause} ({n})" for cause, n in causes.most_common(SHOWN_CAUSES))
    events = Counter(
        e["event"] for e in kernel.others if e["event"] in ("fault", "degraded", "stopped")
    )
    heard = ", ".join(f"{name} {n}" for name, n in events.items()) or "none"
    return drawn(
        sheet,
        "Everything should come from the image. Red rows are answered from headers or priors"
        + (f": {told}" if told else "")
        + f". Faults, degradations and stops in the log: {heard}.",
    )


def effort(records: pd.DataFrame, colors: Mapping[str, str]) -> Figure:
    """Seconds of training and prediction of every model, and the largest memory.

    Args:
        records: name, fold, seconds, peak_memory_mib, device.
        colors: by name; others are grey.
    """
    names = list(dict.fromkeys(records["name"]))
    sheet = canvas(height_in=bars_height(len(names)))
    left, right = sheet.subplots(1, 2, sharey=True)
    for i, name in enumerate(names):
        own = records[records["name"] == name]
        start, color = 0.0, colors.get(name, PLAIN_COLOR)
        for seconds in own["seconds"].fillna(0.0):
            left.barh(i, seconds / 60.0, 0.6, start / 60.0, color=color, edgecolor="white")
            start += seconds
        right.plot(own["peak_memory_mib"] / 1024.0, [i] * len(own), "o", color=color)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set(xlabel="minutes, one piece per fold")
    right.set(xlabel="peak memory of the process, GiB", xlim=(0, None))
    for axes in (left, right):
        axes.grid(axis="x")
    hours = float(records["seconds"].sum()) / 3600.0
    devices = ", ".join(sorted({str(d) for d in records["device"].dropna()}))
    return drawn(
        sheet,
        f"{hours:.2f} hours in all, on {devices or 'an unnamed device'}. A fold that took much "
        "longer than its neighbors shared the machine.",
    )

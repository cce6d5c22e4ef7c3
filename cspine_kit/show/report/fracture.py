"""Figures of the fracture stage: how members learned, what they say, how well they tell.

In: training curves, `oof_slices`, `predictions`, the stack's tables. Out: `Figure`s. Example::

    y, p = labels_and_probs(labels, predictions, "shipped")
    figure = roc(y, p)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.numbers import FloatArray, sigmoid
from cspine_kit.core.tables import FRACTURE_COLUMNS
from cspine_kit.show.report.figure import (
    ALARM_COLOR,
    LEVEL_COLORS,
    PLAIN_COLOR,
    TARGET_TICKS,
    Figure,
    canvas,
    drawn,
    ending,
    intervals,
    level_bands,
    short,
)
from cspine_kit.show.report.vertebra import curves
from cspine_kit.stack.scores.baselines import wide_predictions

MOST_PANELS = 4
FEW = 5
"""Fewer positives than this draw a staircase, not a curve."""

NAMED = {
    "loss": "training loss",
    "valid_loss": "loss on the fold's studies",
    "metric_A": "metric A of a fixed formula",
    "auc_patient_overall": "AUC, patient overall",
}
"""Columns of history.csv that are drawn, in this order; others where these are missing."""


def learning(history: pd.DataFrame, colors: Mapping[str, str]) -> Figure:
    """Training curves, a panel for each figure that was written down.

    Args:
        history: member, fold, epoch, loss and optionally more columns, one row per epoch.
        colors: by member.
    """
    metrics = [c for c in history.columns if c not in ("member", "fold", "epoch")]
    metrics = [c for c in metrics if history[c].notna().any()]
    metrics = [*(c for c in NAMED if c in metrics), *(c for c in metrics if c not in NAMED)]
    metrics = metrics[:MOST_PANELS]
    members = list(dict.fromkeys(history["member"]))
    sheet = canvas(height_in=2.7)
    panels = sheet.subplots(1, max(2, len(metrics)), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=False):
        for (member, _), rows in history.groupby(["member", "fold"], sort=False):
            axes.plot(
                rows["epoch"], rows[metric], color=colors[str(member)], lw=1.3, marker=".", ms=4
            )
        axes.set(xlabel="epoch", title=NAMED.get(metric, metric.replace("_", " ")))
        axes.locator_params(axis="x", integer=True)
        axes.grid()
    ends = history.sort_values("epoch").groupby(["member", "fold"], sort=False).tail(1)
    if len(metrics) == 1:
        for member, rows in ends.groupby("member", sort=False):
            panels[1].plot(rows["fold"], rows[metrics[0]], "o", color=colors[str(member)])
        panels[1].set(xlabel="fold", title=f"{NAMED.get(metrics[0], metrics[0])}, last epoch")
        panels[1].set_xticks(sorted(history["fold"].unique()))
        panels[1].grid()
    handles = [panels[0].plot([], [], color=colors[m], label=m)[0] for m in members]
    sheet.legend(handles=handles, loc="outside lower center", ncols=min(6, len(members)))
    return drawn(
        sheet,
        "One line per fold. Lines of one color should lie together and still bend at the end; a "
        "fold that stays high did not learn. Training loss alone does not tell overfitting.",
    )


def labels_and_probs(
    train: pd.DataFrame, predictions: pd.DataFrame, model: str
) -> tuple[FloatArray, FloatArray]:
    """(n, 8) labels and out-of-fold probabilities of one model on the same studies."""
    wide = wide_predictions(predictions, model)
    truth = train.set_index("study_uid")[list(TARGETS)]
    known = wide.index.intersection(truth.index)
    return truth.loc[known].to_numpy(np.float64), wide.loc[known].to_numpy(np.float64)


def aucs(scores: pd.DataFrame, shown: Mapping[str, str]) -> Figure:
    """AUC per level of some models.

    Args:
        scores: of `score_table`.
        shown: color by model, in drawing order.
    """
    sheet = canvas(height_in=2.8)
    axes = sheet.subplots()
    by_model = scores.set_index("model")
    found = [m for m in shown if m in by_model.index]
    for i, model in enumerate(found):
        shift = (i - (len(found) - 1) / 2) * 0.11
        values = by_model.loc[model, [f"auc_{t}" for t in TARGETS]].to_numpy(np.float64)
        axes.plot(np.arange(8) + shift, values, "o", color=shown[model], label=model, ms=6)
    axes.axhline(0.5, color="black", lw=0.8, ls=":")
    axes.set_xticks(range(len(TARGETS)), TARGET_TICKS)
    axes.set(ylim=(min(0.4, axes.get_ylim()[0]), 1.02), ylabel="AUC, out-of-fold")
    axes.set_xlim(-0.5, len(TARGETS) - 0.5)
    axes.grid(axis="y")
    sheet.legend(loc="outside lower center", ncols=min(5, len(found)))
    return drawn(
        sheet,
        "How well a fractured study is told from a sound one (1 is perfect, dotted is chance). A "
        "level at which all members are low is hard or badly labelled; one that is low for a "
        "single member is that member's fault. No dot: a class is missing.",
    )


def worths(worth: pd.DataFrame, form: str, colors: Mapping[str, str]) -> Figure:
    """How much the loss rises without each member, with 95 % intervals.

    Args:
        worth: of the stack.
        form: of the metric.
        colors: by member.
    """
    ordered = worth.sort_values(form, ignore_index=True)
    names = [m if kept else f"{m} (left out)" for m, kept in ordered[["member", "kept"]].values]
    sheet = intervals(
        list(ordered[[f"{form}_low", form, f"{form}_high"]].itertuples(index=False, name=None)),
        names,
        [colors.get(member, PLAIN_COLOR) for member in ordered["member"]],
        "rise of the loss without the member",
    )
    return drawn(
        sheet,
        "Right of the line the member helps. An interval wholly left of it: the stack is better "
        "without. An interval across it: on so few studies nobody can say.",
    )


def _curve(y: FloatArray, p: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Numbers called (n,) and hit among them (n,), from the strictest threshold to the laxest."""
    order = np.argsort(-p, kind="stable")
    last = np.append(np.diff(p[order]) != 0.0, True)
    return np.flatnonzero(last).astype(np.float64) + 1.0, np.cumsum(y[order])[last]


def roc(y: FloatArray, p: FloatArray) -> Figure:
    """ROC and precision-recall curves of every target.

    Args:
        y, p: (n, 8) labels and probabilities.
    """
    sheet = canvas(height_in=3.6)
    left, right = sheet.subplots(1, 2)
    for j, target in enumerate(TARGETS):
        positives, n = float(y[:, j].sum()), len(y)
        if not 0.0 < positives < n:
            continue
        called, hits = _curve(y[:, j], p[:, j])
        style = {
            "color": LEVEL_COLORS[target],
            "lw": 2.2 if target == TARGETS[-1] else 1.3,
            "ls": "-" if positives >= FEW else ":",
        }
        false = (called - hits) / (n - positives)
        left.plot(np.append(0.0, false), np.append(0.0, hits / positives), **style)
        named = f"{short(target)} ({positives:.0f})"
        right.plot(hits / positives, hits / called, label=named, **style)
    left.plot([0, 1], [0, 1], color="black", lw=0.8, ls=":")
    left.set(xlabel="1 - specificity", ylabel="sensitivity (recall)", title="ROC")
    right.set(xlabel="recall", ylabel="precision", title="precision and recall")
    for axes in (left, right):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        axes.grid()
    sheet.legend(loc="outside right center", title="positives")
    return drawn(
        sheet,
        "What ships, out-of-fold. Left: toward the upper left is better. Right: how many calls are "
        f"right while more fractures are found. Dotted: fewer than {FEW} positives.",
    )


def confusions(operating: pd.DataFrame, point: str) -> Figure:
    """Confusion of every target at one frozen operating point, with precision, recall and F1.

    Args:
        operating: operating.csv of the stack.
        point: name of the point.
    """
    rows = operating[operating["point"] == point].set_index("target")
    sheet = canvas(height_in=2.2)
    panels = sheet.subplots(1, len(TARGETS))
    for axes, target in zip(panels, TARGETS, strict=True):
        row = rows.loc[target]
        counts = np.array([[row["tp"], row["fn"]], [row["fp"], row["tn"]]], dtype=np.float64)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
        wrong = ~np.eye(2, dtype=bool)
        for cells, ground in ((~wrong, "Greens"), (wrong, "Reds")):
            axes.imshow(np.ma.masked_array(share, ~cells), cmap=ground, vmin=0.0, vmax=1.6)
        for (i, j), n in np.ndenumerate(counts):
            axes.text(j, i, f"{n:.0f}", ha="center", va="center")
        axes.set_xticks([0, 1], ["called", "not"], fontsize=7)
        axes.set_yticks([0, 1], ["fractured", "sound"] if target == TARGETS[0] else ["", ""])
        axes.tick_params(length=0)
        axes.set_title(short(target), color=LEVEL_COLORS[target])
        told = [
            f"{name} {'-' if np.isnan(row[key]) else format(row[key], '.2f')}"
            for name, key in (("P", "precision"), ("R", "recall"), ("F1", "f1"))
        ]
        axes.set_xlabel("\n".join([*told, f"at {row['threshold']:.2f}"]), fontsize=8)
    return drawn(
        sheet,
        f"At the frozen threshold of point {point} (last line), counted on studies that did not "
        "choose it. Red: upper right missed fractures, lower left false alarms. P precision, R "
        "recall (sensitivity).",
    )


def separation(oof_slices: pd.DataFrame, train: pd.DataFrame) -> Figure:
    """The largest fracture probability of each level, in fractured and in sound levels, by member.

    Args:
        oof_slices: out-of-fold slices.
        train: labels.
    """
    best = oof_slices.groupby(["member", "study_uid"])[list(FRACTURE_COLUMNS)].max().reset_index()
    joined = best.merge(train[["study_uid", *LEVELS]], on="study_uid")
    members = list(dict.fromkeys(oof_slices["member"]))
    sheet = canvas(height_in=2.6)
    panels = sheet.subplots(1, len(members), squeeze=False, sharex=True)[0]
    bins = np.linspace(0.0, 1.0, 21)
    for axes, member in zip(panels, members, strict=True):
        own = joined[joined["member"] == member]
        probs = sigmoid(own[list(FRACTURE_COLUMNS)].to_numpy(np.float64)).ravel()
        y = own[list(LEVELS)].to_numpy(np.float64).ravel()
        for broken, color, name in ((0.0, PLAIN_COLOR, "sound"), (1.0, ALARM_COLOR, "fractured")):
            part = probs[y == broken]
            if len(part):
                weights = np.full(len(part), 100.0 / len(part))
                axes.hist(part, bins, weights=weights, color=color, alpha=0.55, label=name)
        axes.set(title=member, xlabel="largest probability of a level", xlim=(0, 1))
    panels[0].set_ylabel("% of the levels")
    panels[0].legend()
    return drawn(
        sheet,
        "Before any stacking: the most suspicious slice of each level. The two colors should come "
        "apart; where they lie on each other the member has learned nothing about fractures.",
    )


def study_curves(
    sheet_panels: tuple[Any, Any], rows: pd.DataFrame, spans: pd.DataFrame, broken: Sequence[str]
) -> None:
    """Vertebra curves over fracture curves of one study and member.

    Args:
        sheet_panels: two axes, z from head to chest.
        rows: of `oof_slices`.
        spans: decoded levels.
        broken: fractured levels.
    """
    upper, lower = sheet_panels
    spans = spans[spans["present"]]
    curves(upper, rows, "at_mm")
    ordered = rows.sort_values("at_mm")
    for level, column in zip(LEVELS, FRACTURE_COLUMNS, strict=True):
        probs = sigmoid(ordered[column].to_numpy(np.float64))
        lower.plot(ordered["at_mm"], probs, color=LEVEL_COLORS[level], lw=1.4)
    level_bands(upper, spans, broken)
    for row in spans[spans["level"].isin(list(broken))].itertuples():
        lower.axvspan(row.z_top_mm, row.z_bottom_mm, color=ALARM_COLOR, alpha=0.10, lw=0)
    upper.tick_params(labelbottom=False)
    upper.set_ylabel("vertebra")
    lower.set_ylabel("fracture")
    for axes in sheet_panels:
        axes.set_ylim(0, 1)
        axes.set_xlim(ordered["at_mm"].max(), ordered["at_mm"].min())


def beside(
    oof_slices: pd.DataFrame,
    levels: pd.DataFrame,
    train: pd.DataFrame,
    *,
    member: str,
    shown: Mapping[str, str],
) -> Figure:
    """Fracture curves beside vertebra curves of chosen studies.

    Args:
        oof_slices, levels: out-of-fold.
        train: labels.
        member: whose curves.
        shown: why a study is shown, by study_uid; at most three.
    """
    own = oof_slices[oof_slices["member"] == member]
    truth = train.set_index("study_uid")
    sheet = canvas(height_in=3.3)
    panels = sheet.subplots(2, len(shown), squeeze=False)
    for k, (uid, why) in enumerate(shown.items()):
        broken = [level for level in LEVELS if truth.loc[uid, level] == 1.0]
        spans = levels[levels["study_uid"] == uid].sort_values("level")
        study_curves((panels[0, k], panels[1, k]), own[own["study_uid"] == uid], spans, broken)
        panels[0, k].set_title(f"…{ending(uid)}: {why}", pad=26, fontsize=8.5, fontweight="normal")
        panels[1, k].set_xlabel("z, mm (head on the left)")
        if k:
            panels[0, k].set_ylabel("")
            panels[1, k].set_ylabel("")
    return drawn(
        sheet,
        f"Member {member}, out-of-fold. Above: which level a slice shows. Below: is that level "
        "fractured there. Red ground: levels with a fracture; the curve of the same color should "
        "rise there and nowhere else.",
    )

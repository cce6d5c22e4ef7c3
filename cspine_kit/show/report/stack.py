"""Figures of the stack: scores beside baselines, what it reads, where its loss comes from.

In: the score table, `predictions`, contributions. Out: `Figure`s. Example::

    figure = baselines(scores)
    figure = loss_parts(labels, predictions, ["best_constant", "shipped"])
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import OVERALL, TARGETS
from cspine_kit.core.metric import Form, row_weights
from cspine_kit.core.numbers import log_losses
from cspine_kit.show.report.figure import (
    ALARM_COLOR,
    MEAN_COLOR,
    PLAIN_COLOR,
    SHIPS_COLOR,
    TARGET_TICKS,
    Figure,
    bars_height,
    canvas,
    drawn,
    ending,
)
from cspine_kit.show.report.fracture import labels_and_probs
from cspine_kit.stack.model.contributions import START, Contributions

LETTERS: dict[Form, str] = {"per_exam": "A, per exam", "global": "B, over all rows"}
MOST_FEATURES = 18
MOST_PARTS = 8


def baselines(scores: pd.DataFrame) -> Figure:
    """Both forms of the metric of every model with 95 % intervals, best first.

    Args:
        scores: of `score_table`.
    """
    ordered = scores.sort_values("per_exam", ascending=False, ignore_index=True)
    sheet = canvas(height_in=bars_height(len(ordered)))
    panels = sheet.subplots(1, 2, sharey=True)
    for axes, (form, letter) in zip(panels, LETTERS.items(), strict=True):
        for i, row in enumerate(ordered.to_dict("records")):
            color = SHIPS_COLOR if row["ships"] else PLAIN_COLOR
            wide = 3.0 if row["ships"] else 1.6
            ends = [row[f"{form}_low"], row[f"{form}_high"]]
            axes.plot(ends, [i, i], color=color, lw=wide, solid_capstyle="butt")
            axes.plot(row[form], i, "o", color=color, ms=6)
        axes.set_title(f"metric {letter}")
        axes.grid(axis="x")
        axes.set_ylim(-0.6, len(ordered) - 0.4)
    panels[0].set_yticks(range(len(ordered)), ordered["model"])
    for label, ships in zip(panels[0].get_yticklabels(), ordered["ships"], strict=True):
        label.set_fontweight("bold" if ships else "normal")
    return drawn(
        sheet,
        "Out-of-fold loss with 95 % intervals over studies, lower is better; blue and bold ships. "
        "Intervals that overlap do not settle a difference of two models on the same studies: "
        "the checks above compare pairs.",
    )


def tested(scores: pd.DataFrame, form: Form) -> Figure:
    """Out-of-fold loss beside the loss on the hidden truth.

    Args:
        scores: with test_per_exam and test_global.
        form: of the metric.
    """
    known = scores.dropna(subset=[f"test_{form}"])
    ordered = known.sort_values(f"test_{form}", ascending=False, ignore_index=True)
    sheet = canvas(height_in=bars_height(len(ordered)))
    axes = sheet.subplots()
    for i, row in enumerate(ordered.to_dict("records")):
        color = SHIPS_COLOR if row["ships"] else PLAIN_COLOR
        axes.plot(
            [row[f"{form}_low"], row[f"{form}_high"]], [i, i], color=MEAN_COLOR, lw=5, alpha=0.4
        )
        axes.plot(row[form], i, "|", color=color, ms=11, mew=2)
        axes.plot(row[f"test_{form}"], i, "D", color=color, ms=6)
    axes.set_yticks(range(len(ordered)), ordered["model"])
    axes.plot([], [], "|", color=PLAIN_COLOR, ms=11, mew=2, ls="", label="out-of-fold")
    axes.plot([], [], "D", color=PLAIN_COLOR, ls="", label="hidden truth")
    sheet.legend(loc="outside lower center", ncols=2)
    axes.set(ylim=(-0.6, len(ordered) - 0.4), title=f"metric {LETTERS[form]}")
    axes.grid(axis="x")
    return drawn(
        sheet,
        "Diamonds inside the grey intervals: cross-validation told the truth. All diamonds to one "
        "side: the test set is easier or harder. One alone outside: that model leaks or overfits.",
    )


def importances(found: pd.DataFrame) -> Figure:
    """What the level head listens to: mean size of each feature's part of the log-odds.

    Args:
        found: feature, line, trees: mean absolute parts over studies and levels.
    """
    ordered = found.assign(total=found["line"] + found["trees"]).nlargest(MOST_FEATURES, "total")
    ordered = ordered.iloc[::-1]
    sheet = canvas(height_in=bars_height(len(ordered)))
    axes = sheet.subplots()
    axes.barh(ordered["feature"], ordered["line"], color=PLAIN_COLOR, label="line")
    axes.barh(
        ordered["feature"], ordered["trees"], left=ordered["line"], color="#e69f00", label="trees"
    )
    axes.set(xlabel="mean |part of the log-odds|")
    axes.grid(axis="x")
    axes.legend(loc="lower right")
    shares = found[["line", "trees"]].sum()
    part = shares["trees"] / max(float(shares.sum()), 1e-12)
    return drawn(
        sheet,
        f"The {len(ordered)} of {len(found)} features that move the answer most; trees bring "
        f"{part:.0%} of all movement. Named member, signal, statistic. A feature that describes "
        "the scanner (site) and stands high says how a study was made, not what it shows.",
    )


def parts(found: Contributions, shown: Sequence[tuple[str, str, str]]) -> Figure:
    """What made some answers: the largest parts of the level head's log-odds.

    Args:
        found: of `level_contributions`.
        shown: study_uid, level, why.
    """
    sheet = canvas(height_in=2.9)
    panels = sheet.subplots(1, len(shown), squeeze=False)[0]
    for axes, (uid, level, why) in zip(panels, shown, strict=True):
        own = found.of(uid, level)
        start = float(own.loc[own["feature"] == START, "part"].sum())
        total, own = float(own["part"].sum()), own[own["feature"] != START]
        order = own["part"].abs().sort_values(ascending=False).index
        kept = own.loc[order].head(MOST_PARTS)
        others = total - start - kept["part"].sum()
        rest = pd.DataFrame({"feature": ["all others"], "part": [others]})
        bars = pd.concat([kept, rest])[::-1]
        colors = np.where(bars["part"] > 0, ALARM_COLOR, "#0072b2")
        names = [name.replace("__", " ") for name in bars["feature"]]
        axes.barh(names, bars["part"], color=colors, height=0.65)
        axes.axvline(0.0, color="black", lw=0.8)
        axes.tick_params(axis="y", labelsize=6.5)
        axes.set_title(f"…{ending(uid)} {level}\n{why}", fontsize=8.5)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(f"log-odds {start:+.2f} to {total:+.2f}", fontsize=8, loc="right")
    return drawn(
        sheet,
        "Exact parts of the log-odds of one level (SHAP values of the trees plus the line's own "
        "terms), from the model that ships: red says fractured, blue says sound. It was fitted on "
        "these studies too; scores elsewhere on this page are out-of-fold.",
    )


def loss_parts(train: pd.DataFrame, predictions: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Which targets and labels the metric's loss comes from.

    Args:
        train: labels.
        predictions: out-of-fold.
        models: compared, the one to look at last.
    """
    sheet = canvas(height_in=2.9)
    axes = sheet.subplots()
    width = 0.8 / len(models)
    shares: dict[str, float] = {}
    for i, model in enumerate(models):
        y, p = labels_and_probs(train, predictions, model)
        loss = row_weights(y, "per_exam") * log_losses(y, p)
        missed, alarms = (loss * y).sum(axis=0), (loss * (1.0 - y)).sum(axis=0)
        x = np.arange(len(TARGETS)) + (i - (len(models) - 1) / 2) * width
        last = model == models[-1]
        axes.bar(x, missed, width * 0.92, color=ALARM_COLOR, alpha=1.0 if last else 0.35)
        axes.bar(
            x, alarms, width * 0.92, bottom=missed, color="#0072b2", alpha=1.0 if last else 0.35
        )
        shares = {"patient": float(loss[:, -1].sum() / loss.sum()), "missed": missed.sum()}
        shares["missed"] /= loss.sum()
    axes.set_xticks(range(len(TARGETS)), TARGET_TICKS)
    axes.set(ylabel="part of metric A")
    for color, name in (
        (ALARM_COLOR, "fractures rated too low"),
        ("#0072b2", "sound rated too high"),
    ):
        axes.bar(0, 0, color=color, label=name)
    axes.legend(loc="upper left")
    axes.grid(axis="y")
    pale = ", ".join(models[:-1])
    return drawn(
        sheet,
        f"Full color: {models[-1]}; pale: {pale}. The patient's own row carries "
        f"{shares['patient']:.0%} of the loss, fractures rated too low {shares['missed']:.0%}. "
        "What towers here is worth the next member.",
    )


def worst(train: pd.DataFrame, predictions: pd.DataFrame, model: str, n: int) -> pd.DataFrame:
    """The studies with the largest loss.

    Returns:
        study_uid, loss (of form A, its mean over all studies is the metric), level (with the
        largest loss of C1..C7), the probabilities said_<target>, and the labels; worst first.
    """
    known = train[train["study_uid"].isin(set(predictions["study_uid"]))]
    known = known.sort_values("study_uid", ignore_index=True)
    y, p = labels_and_probs(known, predictions, model)
    loss = row_weights(y, "per_exam") * log_losses(y, p) * len(y)
    table = known[["study_uid", *TARGETS]].assign(loss=loss.sum(axis=1))
    table["level"] = np.array(TARGETS[:-1])[loss[:, :-1].argmax(axis=1)]
    table = table.assign(**{f"said_{t}": p[:, j] for j, t in enumerate(TARGETS)})
    return table.nlargest(n, "loss").reset_index(drop=True)


def losses(train: pd.DataFrame, predictions: pd.DataFrame, model: str) -> Figure:
    """How the loss is spread over studies.

    Args:
        train: labels.
        predictions: out-of-fold.
        model: whose.
    """
    table = worst(train, predictions, model, len(train))
    sheet = canvas(height_in=2.4)
    axes = sheet.subplots()
    broken = table[OVERALL] == 1.0
    rank = np.arange(len(table))
    for mask, color, name in (
        (broken, ALARM_COLOR, "with a fracture"),
        (~broken, "#0072b2", "without"),
    ):
        axes.bar(rank[mask], table.loc[mask, "loss"], width=1.0, color=color, label=name)
    axes.axhline(table["loss"].mean(), color="black", lw=0.8, ls="--")
    axes.set(xlabel="studies, worst first", ylabel="loss of the study")
    axes.legend()
    axes.locator_params(axis="x", integer=True)
    tenth = max(1, len(table) // 10)
    share = table["loss"].head(tenth).sum() / table["loss"].sum()
    return drawn(
        sheet,
        f"The worst tenth ({tenth} of {len(table)}) holds {share:.0%} of the loss; dashed: the "
        "mean, which is the metric. The worst are shown one by one below.",
    )

"""What a row of an ablation is worth beside the config as it is: paired on the same studies.

In: run folders with a stack. Out: rows of a table. Example::

    row = compared(BASE, {}, [paths], [paths])
    row["A"], row["gain_low"], row["gain_high"]              # a score, 0.0, 0.0
"""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import N_LEVELS, TARGETS
from cspine_kit.core.metric import (
    auc,
    bootstrap_interval,
    level_auc,
    level_auc_interval,
    metric,
)
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import read_json
from cspine_kit.core.tables import read_table
from cspine_kit.stack.model.stack import SHIPPED
from cspine_kit.stack.scores.baselines import (
    MEAN_OF_MEMBERS,
    WEIGHTED_MEAN,
    wide_predictions,
)

BASE = "as it is"
"""Label of the config without a change."""


def compared(
    label: str, changes: Mapping[str, Any], runs: Sequence[RunPaths], bases: Sequence[RunPaths]
) -> dict[str, Any]:
    """One row.

    Args:
        label: of the row.
        changes: values by dotted keys.
        runs: its run folders, one of each seed.
        bases: those of the config as it is, with the same seeds.

    Returns:
        row, change; studies that all have judged; A and B of what ships, out-of-fold; gain, the
        row's A minus the config's (below 0 is better), with gain_low and gain_high, its paired 95 %
        bootstrap interval over studies; members_A, of the plain mean of the members; weighted_A, of
        the mean of slices weighted by what they show (documents A and B); auc_levels (mean of
        seven) and auc_overall; members_auc, AUC of all vertebrae at once by the plain mean of the
        members, which tells what networks know where the stack cannot use it yet, and
        members_auc_gain, the row's minus the config's (above 0 is better); all of these means over
        seeds. members_auc_low and members_auc_high, as of gain; gains, that of each seed, in words;
        training_s, of all networks of a seed together; trained, how many fold models were trained
        for this row alone; fault, empty.
    """
    labels, shipped, usual = _answers(runs, bases, SHIPPED)
    _, mean, usual_mean = _answers(runs, bases, MEAN_OF_MEMBERS)
    _, weighted, _ = _answers(runs, bases, WEIGHTED_MEAN)
    scores = [
        {
            "A": metric(labels, own),
            "B": metric(labels, own, "global"),
            "gain": metric(labels, own) - metric(labels, other),
            "members_A": metric(labels, mean[k]),
            "weighted_A": metric(labels, weighted[k]),
            "auc_levels": np.mean([auc(labels[:, j], own[:, j]) for j in range(N_LEVELS)]),
            "auc_overall": auc(labels[:, N_LEVELS], own[:, N_LEVELS]),
            "members_auc": level_auc(labels, mean[k]),
            "members_auc_gain": level_auc(labels, mean[k]) - level_auc(labels, usual_mean[k]),
        }
        for k, (own, other) in enumerate(zip(shipped, usual, strict=True))
    ]
    low, high = bootstrap_interval(labels, shipped, others=usual)
    auc_low, auc_high = level_auc_interval(labels, mean, usual_mean)
    seconds = [_training_seconds(run) for run in runs]
    borrowed = [_training_seconds(base) for base in bases]
    return {
        "row": label,
        "change": _told(changes),
        "studies": len(labels),
        **{name: float(np.mean([score[name] for score in scores])) for name in scores[0]},
        "gain_low": low,
        "gain_high": high,
        "members_auc_low": auc_low,
        "members_auc_high": auc_high,
        "gains": " ".join(f"{score['gain']:+.4f}" for score in scores),
        "training_s": float(np.mean([sum(own.values()) for own in seconds])),
        "trained": sum(
            len(own.items() - base.items()) for own, base in zip(seconds, borrowed, strict=True)
        ),
        "fault": "",
    }


def failed(label: str, changes: Mapping[str, Any], fault: str) -> dict[str, Any]:
    """The row of a change that could not be made."""
    return {"row": label, "change": _told(changes), "fault": fault}


def render(table: pd.DataFrame) -> str:
    """The table as text, the better rows marked."""
    lines = [
        f"{'row':32s} {'A':>7s} {'gain':>8s} {'paired 95 %':>18s} {'members':>8s} {'slices':>8s} "
        f"{'AUC':>6s} {'gain':>7s} {'s':>7s}"
    ]
    for row in table.to_dict("records"):
        if row["fault"]:
            lines.append(f"{row['row']:32s} failed: {row['fault']}")
            continue
        sure = " *" if row["gain_high"] < 0 or row["gain_low"] > 0 else ""
        known = "*" if row["members_auc_high"] < 0 or row["members_auc_low"] > 0 else " "
        lines.append(
            f"{row['row']:32s} {row['A']:7.4f} {row['gain']:+8.4f} {row['gain_low']:+8.4f} to "
            f"{row['gain_high']:+7.4f} {row['members_A']:8.4f} {row['weighted_A']:8.4f} "
            f"{row['members_auc']:6.3f} {row['members_auc_gain']:+7.3f}{known} "
            f"{row['training_s']:7.0f}{sure}"
        )
    lines += [
        "A of what ships, out-of-fold; gain below 0: better than the config; * the interval is",
        "wholly on one side. members: A of their plain mean; slices: of the mean of slices",
        "weighted by what they show. AUC: of all vertebrae at once, by the members' plain mean,",
        "with its gain (above 0: better). s: training of all networks",
    ]
    return "\n".join(lines)


def _told(changes: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}: {json.dumps(value)}" for key, value in changes.items())


def _answers(
    runs: Sequence[RunPaths], bases: Sequence[RunPaths], model: str
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Labels (n, 8), and the row's and the config's probabilities (seeds, n, 8), of the studies
    that all judged."""
    wide = [
        wide_predictions(read_table(place.table("predictions"), "predictions"), model)
        for place in (*runs, *bases)
    ]
    studies = read_table(bases[0].table("studies"), "studies").set_index("study_uid")
    all_ = reduce(lambda index, frame: index.intersection(frame.index), wide, wide[0].index)
    labels = studies.loc[all_, list(TARGETS)].to_numpy(np.float64)
    said = np.stack([frame.loc[all_].to_numpy(np.float64) for frame in wide])
    return labels, said[: len(runs)], said[len(runs) :]


def _training_seconds(paths: RunPaths) -> dict[str, float]:
    """Seconds of each fold model's training, by its key and name."""
    found = {}
    for record in sorted((paths.root / "models").glob("*/fold_*/run.json")):
        run = read_json(record)
        found[f"{record.parent.relative_to(paths.root)} {run['inputs']['key']}"] = run["seconds"]
    return found

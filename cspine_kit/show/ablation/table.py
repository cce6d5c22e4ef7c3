"""What a row of an ablation is worth beside the config as it is: paired on the same studies.

In: run folders with a stack. Out: rows of a table. Example::

    row = compared(BASE, {}, paths, paths)
    row["A"], row["gain_low"], row["gain_high"]              # a score, 0.0, 0.0
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.metric import auc, bootstrap_interval, metric
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import read_json
from cspine_kit.core.tables import read_table
from cspine_kit.stack.model.stack import SHIPPED
from cspine_kit.stack.scores.baselines import MEAN_OF_MEMBERS, wide_predictions

BASE = "as it is"
"""Label of the config without a change."""


def compared(
    label: str, changes: Mapping[str, Any], paths: RunPaths, base: RunPaths
) -> dict[str, Any]:
    """One row.

    Args:
        label: of the row.
        changes: values by dotted keys.
        paths: its run folder.
        base: the run folder of the config as it is.

    Returns:
        row, change; studies that both have judged; A and B of what ships, out-of-fold; gain, the
        row's A minus the config's (below 0 is better), with gain_low and gain_high, its paired 95 %
        bootstrap interval; members_A, of the plain mean of the members; auc_levels (mean of seven)
        and auc_overall; training_s, of all its networks together; trained, how many fold models
        were trained for this row alone; fault, empty.
    """
    labels, own, usual = _answers(paths, base, SHIPPED)
    low, high = bootstrap_interval(labels, own, others=usual)
    aucs = [auc(labels[:, k], own[:, k]) for k in range(len(TARGETS))]
    _, mean, _ = _answers(paths, base, MEAN_OF_MEMBERS)
    return {
        "row": label,
        "change": _told(changes),
        "studies": len(labels),
        "A": metric(labels, own),
        "B": metric(labels, own, "global"),
        "gain": metric(labels, own) - metric(labels, usual),
        "gain_low": low,
        "gain_high": high,
        "members_A": metric(labels, mean),
        "auc_levels": float(np.mean(aucs[:-1])),
        "auc_overall": aucs[-1],
        "training_s": sum(_training_seconds(paths).values()),
        "trained": len(_training_seconds(paths).items() - _training_seconds(base).items()),
        "fault": "",
    }


def failed(label: str, changes: Mapping[str, Any], fault: str) -> dict[str, Any]:
    """The row of a change that could not be made."""
    return {"row": label, "change": _told(changes), "fault": fault}


def render(table: pd.DataFrame) -> str:
    """The table as text, the better rows marked."""
    lines = [f"{'row':32s} {'A':>7s} {'gain':>8s} {'paired 95 %':>18s} {'members':>8s} {'s':>7s}"]
    for row in table.to_dict("records"):
        if row["fault"]:
            lines.append(f"{row['row']:32s} failed: {row['fault']}")
            continue
        sure = " *" if row["gain_high"] < 0 or row["gain_low"] > 0 else ""
        lines.append(
            f"{row['row']:32s} {row['A']:7.4f} {row['gain']:+8.4f} {row['gain_low']:+8.4f} to "
            f"{row['gain_high']:+7.4f} {row['members_A']:8.4f} {row['training_s']:7.0f}{sure}"
        )
    lines.append(
        "A of what ships, out-of-fold; gain below 0: better than the config; * the interval"
    )
    lines.append(
        "is wholly on one side. members: A of their plain mean. s: training of all networks"
    )
    return "\n".join(lines)


def _told(changes: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}: {json.dumps(value)}" for key, value in changes.items())


def _answers(paths: RunPaths, base: RunPaths, model: str) -> tuple[Any, Any, Any]:
    """Labels, the row's and the config's probabilities (n, 8) of the studies that both judged."""
    wide, usual = (
        wide_predictions(read_table(place.table("predictions"), "predictions"), model)
        for place in (paths, base)
    )
    studies = read_table(base.table("studies"), "studies").set_index("study_uid")
    both = wide.index.intersection(usual.index)
    frames = (studies.loc[both, list(TARGETS)], wide.loc[both], usual.loc[both])
    labels, own, others = (frame.to_numpy(np.float64) for frame in frames)
    return labels, own, others


def _training_seconds(paths: RunPaths) -> dict[str, float]:
    """Seconds of each fold model's training, by its key and name."""
    found = {}
    for record in sorted((paths.root / "models").glob("*/fold_*/run.json")):
        run = read_json(record)
        found[f"{record.parent.relative_to(paths.root)} {run['inputs']['key']}"] = run["seconds"]
    return found

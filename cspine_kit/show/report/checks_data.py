"""Checks of what a run learns from: leaks, folds, features, studies lost, stale artifacts.

In: tables of a run. Out: `Check`s. Example::

    from cspine_kit.show.report.run import Run

    run = Run(config, paths, Path("submissions"))
    imbalance(run.train).verdict, constant_feature(run.features).figure
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import OVERALL, TARGETS
from cspine_kit.core.failures import NO_LEVELS
from cspine_kit.show.report.check import Check, some
from cspine_kit.stack.features.names import feature_columns, signal_of

UNEVEN, VERY_UNEVEN = 2.0, 3.5
"""Positives of a fold off their fair number, in standard deviations of a random deal: warn, fail.
The kit's own folds are dealt far more evenly than at random."""


def leak(
    train: pd.DataFrame | None,
    folds: pd.DataFrame | None,
    rows: Mapping[str, pd.DataFrame | None],
    lineage: Mapping[str, str],
) -> Check:
    """No row was made by a model that knew its study; no group lies in two folds.

    Args:
        train: studies with their fold.
        folds: folds.csv.
        rows: out-of-fold tables with fold and model_fold, by name.
        lineage: by trained model, what is wrong with its list of studies ("" for nothing).
    """
    name = "leak"
    if folds is None or train is None:
        return Check(name, "not yet", "no folds")
    faults = [fault for fault in lineage.values() if fault]
    if "group" in folds:
        split = folds.groupby("group")["fold"].nunique()
        if (split > 1).any():
            faults.append(f"groups in two folds: {some(split.index[split > 1])}")
    fold_of, looked = folds.set_index("study_uid")["fold"], 0
    for table, frame in rows.items():
        if frame is None:
            continue
        looked += len(frame)
        wrong = frame[frame["fold"] != frame["model_fold"]]
        if len(wrong):
            faults.append(
                f"{len(wrong)} rows of {table} come from a model that knew their study "
                f"({some(wrong['study_uid'].unique())})"
            )
        moved = frame[frame["study_uid"].map(fold_of) != frame["fold"]]["study_uid"].unique()
        if len(moved):
            faults.append(f"{table}: studies in another fold than folds.csv says: {some(moved)}")
    if faults:
        return Check(name, "fail", "; ".join(faults), "scores are not to be trusted; make oof anew")
    told = f"{looked:,} rows, each by the model that was held out from its study; " * bool(looked)
    told += f"{len(lineage)} models' own lists of studies agree; " * bool(lineage)
    return Check(name, "pass", f"{told}no group in two folds")


def imbalance(train: pd.DataFrame | None) -> Check:
    """Folds hold alike shares of positives."""
    name = "fold imbalance"
    if train is None or (train["fold"] < 0).all():
        return Check(name, "not yet", "no folds")
    dealt = train[train["fold"] >= 0]
    by_fold = dealt.groupby("fold")[list(TARGETS)]
    count, size = by_fold.sum(), by_fold.size()
    fair = np.outer(size / len(dealt), count.sum())
    spread = np.sqrt(fair * (1.0 - size.to_numpy()[:, None] / len(dealt)))
    # Positives come whole: half a study more or less is no imbalance.
    off = np.maximum(np.abs(count.to_numpy() - fair) - 0.5, 0.0) / np.maximum(spread, 0.5)
    k, j = np.unravel_index(int(off.argmax()), off.shape)
    fold, target = count.index[k], TARGETS[j]
    told = (
        "no target off by more than half a study"
        if off.max() == 0.0
        else (
            f"worst: {target} in fold {fold}, {count.iloc[k, j]:.0f} positives of {size.iloc[k]} "
            f"studies where {fair[k, j]:.1f} were fair"
        )
    )
    advice = "let cspine folds deal anew (delete folds.csv), or mend your own folds.file"
    empty = count.index[(count[OVERALL] == 0) | (count[OVERALL] == size)]
    if len(empty):
        told = f"fold {some(empty)} holds one class of patients only"
        return Check(name, "fail", told, advice)
    if off.max() > VERY_UNEVEN:
        return Check(name, "fail", told, advice)
    if off.max() > UNEVEN:
        return Check(name, "warn", told, advice)
    sizes = f"{len(count)} folds of {size.min()} to {size.max()} studies"
    return Check(name, "pass", f"{sizes}; {told}")


def constant_feature(features: pd.DataFrame | None) -> Check:
    """No feature says the same of every study."""
    name = "constant feature"
    if features is None:
        return Check(name, "not yet", "no features")
    columns = feature_columns(features.columns)
    values = features[columns]
    flat = [c for c in columns if values[c].nunique(dropna=True) <= 1]
    if not flat:
        return Check(name, "pass", f"none of {len(columns)} features is constant")
    spoken = [c for c in columns if signal_of(c) == "fracture"]
    members = dict.fromkeys(c.split("__")[0] for c in spoken)
    dead = [m for m in members if all(c in flat for c in spoken if c.startswith(f"{m}__"))]
    told = f"{len(flat)} of {len(columns)} are constant: {some(flat)}"
    if dead:
        return Check(
            name,
            "fail",
            f"{told}; all fracture statistics of {some(dead)}",
            "such a member says nothing: look at its curves below",
        )
    return Check(
        name,
        "warn",
        told,
        "harmless to trees: a member with one stack of each level has no spread; else look whether "
        "the member or table behind it is whole",
    )


def stale(state: Mapping[str, Any]) -> Check:
    """Everything was made from the present config and from what stands before it.

    Args:
        state: of `show.info.describe`.
    """
    name = "stale artifacts"
    stages = state.get("stages", {})
    if not stages:
        return Check(name, "not yet", "nothing is made")
    old = [stage for stage, value in stages.items() if value["state"] == "stale"]
    partly = [f"{s} {v['state']}" for s, v in stages.items() if v["state"].startswith("partly")]
    missing = [stage for stage, value in stages.items() if value["state"] == "missing"]
    told = "; ".join(
        [
            *([f"older than what they are made from: {', '.join(old)}"] if old else []),
            *([f"unfinished: {', '.join(partly)}"] if partly else []),
            *(
                [f"config changed in {', '.join(state['changed_parts'])}"]
                if state["changed_parts"]
                else []
            ),
            *([f"not made yet: {', '.join(missing)}"] if missing else []),
        ]
    )
    if old:
        return Check(name, "fail", told, f"next: {state['next']}")
    if partly or state["changed_parts"]:
        return Check(name, "warn", told, f"next: {state['next']}")
    return Check(name, "pass", told or f"{len(stages)} stages, all up to date")


def left_out(failures: pd.DataFrame | None, train: pd.DataFrame | None) -> Check:
    """No study was lost on the way, but for scans that show none of the levels."""
    name = "studies left out"
    if failures is None or train is None:
        return Check(name, "not yet", "no out-of-fold table")
    bare = failures["cause"].astype(str).str.contains(NO_LEVELS, regex=False)
    empty, failures = failures.loc[bare, "study_uid"].nunique(), failures[~bare]
    lost = failures["study_uid"].nunique()
    if not lost and not empty:
        return Check(name, "pass", f"all {len(train)} labelled studies went all the way")
    if not lost:
        told = f"{empty} studies whose scans show none of C1..C7; the others went all the way"
        return Check(name, "warn", told, "look at them: cspine montage, cspine levels FOLDER")
    share = lost / max(1, len(train) + lost)
    cause = failures["cause"].value_counts()
    told = f"{lost} studies ({share:.1%}); most often: {cause.index[0]} ({cause.iloc[0]})"
    told += f"; besides, {empty} whose scans show none of C1..C7" if empty else ""
    return Check(
        name, "fail" if share > 0.05 else "warn", told, "cspine inspect FOLDER says what is wrong"
    )

"""Numbered checks of a run: what a careful reader would look for first.

In: a `Run`. Out: `Check`s: pass, warn, fail or not yet, each with its figure and what to do.
Example::

    from cspine_kit.show.report.run import Run

    found = run_checks(Run(config, paths, Path("submissions")), {})
    [(check.number, check.name, check.verdict) for check in found]

Each check is a function of tables, so that it can be tried on made faults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import OVERALL, TARGETS
from cspine_kit.core.metric import Form
from cspine_kit.core.numbers import FloatArray, logit, sigmoid
from cspine_kit.show.report.fracture import labels_and_probs
from cspine_kit.show.report.run import Run
from cspine_kit.stack.features.names import feature_columns, signal_of
from cspine_kit.stack.model.stack import SHIPPED, STACK
from cspine_kit.stack.scores.baselines import CONSTANT, MEAN_OF_MEMBERS

Verdict = Literal["pass", "warn", "fail", "not yet"]

SHOWN = 4
UNEVEN, VERY_UNEVEN = 2.0, 3.5
"""Positives of a fold off their fair number, in standard deviations of a random deal: warn, fail.
The kit's own folds are dealt far more evenly than at random."""

SLOPE_WARN, SLOPE_FAIL = (0.8, 1.25), (0.5, 2.0)
FEWEST = 20
"""Fewer positives, or negatives, say nothing about a slope."""

SHIFT_WARN, SHIFT_FAIL = 3.0, 6.0
"""Standard errors between the mean answer on test and on training studies."""

Z95 = 1.96


@dataclass(frozen=True)
class Check:
    """One check: its number on the page, what was found, and what to do about it."""

    name: str
    verdict: Verdict
    figure: str
    advice: str = ""
    number: int = 0


def _some(values: Any) -> str:
    listed = [str(v) for v in values]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


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
            faults.append(f"groups in two folds: {_some(split.index[split > 1])}")
    fold_of, looked = folds.set_index("study_uid")["fold"], 0
    for table, frame in rows.items():
        if frame is None:
            continue
        looked += len(frame)
        wrong = frame[frame["fold"] != frame["model_fold"]]
        if len(wrong):
            faults.append(
                f"{len(wrong)} rows of {table} come from a model that knew their study "
                f"({_some(wrong['study_uid'].unique())})"
            )
        moved = frame[frame["study_uid"].map(fold_of) != frame["fold"]]["study_uid"].unique()
        if len(moved):
            faults.append(f"{table}: studies in another fold than folds.csv says: {_some(moved)}")
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
        told = f"fold {_some(empty)} holds one class of patients only"
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
    dead = [c for c in flat if signal_of(c) == "fracture"]
    return Check(
        name,
        "fail" if dead else "warn",
        f"{len(flat)} of {len(columns)} are constant: {_some(dead or flat)}",
        "a member whose fracture statistics are constant says nothing: look at its curves below"
        if dead
        else "harmless to trees; look whether the member or table behind it is whole",
    )


def slope_of(y: FloatArray, p: FloatArray) -> tuple[float, float]:
    """Slope of the log-odds in a logistic regression of labels on predictions, and its standard
    error; 1 is calibrated, below 1 overconfident. Newton's method on (n,) arrays."""
    x = np.column_stack([np.ones(len(y)), logit(p)])
    beta = np.array([0.0, 1.0])
    for _ in range(50):
        q = sigmoid(x @ beta)
        hessian = (x * (q * (1.0 - q))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (y - q))
        beta = beta + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-8:
            break
    return float(beta[1]), float(np.sqrt(np.linalg.inv(hessian)[1, 1]))


def calibration(train: pd.DataFrame | None, predictions: pd.DataFrame | None) -> Check:
    """The log-odds of what ships are as steep as they should be, out-of-fold."""
    name = "calibration slope"
    if train is None or predictions is None:
        return Check(name, "not yet", "no predictions")
    y, p = labels_and_probs(train, predictions, SHIPPED)
    verdict: Verdict = "pass"
    told = []
    for part, where in (("patient", slice(7, 8)), ("levels", slice(0, 7))):
        labels, probs = y[:, where].ravel(), p[:, where].ravel()
        if min(labels.sum(), (1.0 - labels).sum()) < FEWEST:
            told.append(f"{part}: too few fractures to say")
            continue
        slope, error = slope_of(labels, probs)
        told.append(
            f"{part} {slope:.2f} (95 % {slope - Z95 * error:.2f} to {slope + Z95 * error:.2f})"
        )
        certain = abs(slope - 1.0) > Z95 * error
        if certain and not SLOPE_FAIL[0] <= slope <= SLOPE_FAIL[1]:
            verdict = "fail"
        elif certain and not SLOPE_WARN[0] <= slope <= SLOPE_WARN[1] and verdict == "pass":
            verdict = "warn"
    if all("too few" in part for part in told):
        verdict = "not yet"
    advice = (
        ""
        if verdict in ("pass", "not yet")
        else ("below 1 the answers are too sure (fewer rounds, more l2), above 1 too timid")
    )
    return Check(name, verdict, "; ".join(told) + "; 1 is calibrated", advice)


def harmful_member(worth: pd.DataFrame | None, form: Form) -> Check:
    """No member makes the stack certainly worse."""
    name = "a member that hurts"
    if worth is None:
        return Check(name, "not yet", "no stack")
    if worth.empty:
        return Check(name, "pass", "a single member: nothing to compare it with")
    low = worth.sort_values(form).iloc[0]
    ends = f"{low[f'{form}_low']:+.4f} to {low[f'{form}_high']:+.4f}"
    told = f"least worth: {low['member']}, {low[form]:+.4f} (95 % {ends})"
    bad = worth[worth[f"{form}_high"] < 0.0]
    if len(bad):
        kept = bad.loc[bad["kept"].astype(bool), "member"]
        advice = "train it anew or drop it from the config; see its curves below"
        if len(kept):
            return Check(name, "fail", f"{told}; ships all the same: {_some(kept)}", advice)
        return Check(name, "warn", f"{told}; left out of what ships", advice)
    if low[form] < 0.0:
        return Check(name, "warn", told, "not certain on so few studies; watch it as data grows")
    return Check(name, "pass", told)


def worse_than_mean(scores: pd.DataFrame | None, form: Form) -> Check:
    """The stack beats the plain mean of the members and every other baseline."""
    name = "stack worse than mean"
    if scores is None:
        return Check(name, "not yet", "no scores")
    by_model = scores.set_index("model")
    rows = [m for m in (SHIPPED, STACK, MEAN_OF_MEMBERS, CONSTANT) if m in by_model.index]
    told = ", ".join(f"{m} {by_model.loc[m, form]:.4f}" for m in rows)
    own, rival = by_model.loc[SHIPPED], by_model.get(f"{form}_baseline")
    ends = (own[f"{form}_gain_low"], own[f"{form}_gain_high"]) if rival is not None else (-1, -1)
    against = f"{told}; against {own.get(f'{form}_baseline')} 95 % {ends[0]:+.4f} to {ends[1]:+.4f}"
    found: tuple[Verdict, str] = ("pass", against)
    if own[form] > by_model.loc[CONSTANT, form]:
        found = ("fail", f"{told}: a constant answers better")
    elif own["shipped_model"] != STACK:
        found = ("warn", f"{told}; so {own['shipped_model']} ships")
    elif own[form] > by_model.loc[MEAN_OF_MEMBERS, form]:
        found = ("fail", told)
    elif ends[0] > 0.0:
        found = ("fail", f"{against}: certainly worse")
    elif ends[1] > 0.0:
        found = ("warn", f"{against}: not certainly better")
    advice = "look at importances and the members' worth; more studies, fewer or better members"
    return Check(name, *found, "" if found[0] == "pass" else advice)


def shift(predictions: pd.DataFrame | None, submission: pd.DataFrame | None) -> Check:
    """Answers on test studies lie where out-of-fold answers lie.

    Args:
        predictions: contract `predictions`.
        submission: row_id, fractured.
    """
    name = "prevalence shift"
    if predictions is None or submission is None:
        return Check(name, "not yet", "no predictions" if predictions is None else "no submission")
    known = predictions[predictions["model"] == SHIPPED]
    found = []
    target = submission["row_id"].str.split("_", n=1).str[1]
    for each in TARGETS:
        own = known.loc[known["target"] == each, "prob"].to_numpy(np.float64)
        test = submission.loc[target == each, "fractured"].to_numpy(np.float64)
        if len(own) < 2 or len(test) < 2:
            continue
        error = np.sqrt(own.var() / len(own) + test.var() / len(test)) + 1e-9
        found.append((abs(test.mean() - own.mean()) / error, each, own.mean(), test.mean()))
    if not found:
        return Check(name, "not yet", "too few test studies to say")
    away, each, before, after = max(found)
    told = (
        f"farthest: {each}, mean {before:.3f} out-of-fold and {after:.3f} on test ({away:.1f} SE)"
    )
    advice = (
        "compare spacing and scanners of both (figures of the data); where the test set is known "
        "to differ, set stack.prevalence"
    )
    if away > SHIFT_FAIL:
        return Check(name, "fail", told, advice)
    return Check(
        name, "warn" if away > SHIFT_WARN else "pass", told, advice if away > SHIFT_WARN else ""
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
    """No study was lost on the way."""
    name = "studies left out"
    if failures is None or train is None:
        return Check(name, "not yet", "no out-of-fold table")
    lost = failures["study_uid"].nunique()
    if not lost:
        return Check(name, "pass", f"all {len(train)} labelled studies went all the way")
    share = lost / max(1, len(train) + lost)
    cause = failures["cause"].value_counts()
    told = f"{lost} studies ({share:.1%}); most often: {cause.index[0]} ({cause.iloc[0]})"
    return Check(
        name, "fail" if share > 0.05 else "warn", told, "cspine inspect FOLDER says what is wrong"
    )


def run_checks(run: Run, state: Mapping[str, Any]) -> list[Check]:
    """Every check, numbered.

    Args:
        run: the run.
        state: of `show.info.describe`, {} where it is not known.
    """
    form: Form = run.config.stack.form
    rows = {"vertebra": run.vertebra, "oof_slices": run.oof_slices, "features": run.features}
    found = [
        leak(run.train, run.folds, rows, run.lineage),
        imbalance(run.train),
        constant_feature(run.features),
        calibration(run.train, run.predictions),
        harmful_member(run.worth, form),
        worse_than_mean(run.scores, form),
        shift(run.predictions, run.submission),
        stale(state),
        left_out(run.failures, run.train),
    ]
    return [replace(check, number=i) for i, check in enumerate(found, start=1)]

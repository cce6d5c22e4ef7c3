"""Checks of what a run says: calibration, members that hurt, baselines, shift to the test set.

In: tables of a run. Out: `Check`s. Example::

    from cspine_kit.show.report.run import Run

    run = Run(config, paths, Path("submissions"))
    worse_than_mean(run.scores, "per_exam").verdict
    slope_of(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.2, 0.6, 0.4, 0.8]))[0]
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.metric import Form
from cspine_kit.core.numbers import FloatArray, logit, sigmoid
from cspine_kit.show.report.check import Check, Verdict, some
from cspine_kit.show.report.fracture import labels_and_probs
from cspine_kit.stack.model.stack import SHIPPED, STACK
from cspine_kit.stack.scores.baselines import CONSTANT, MEAN_OF_MEMBERS

SLOPE_WARN, SLOPE_FAIL = (0.8, 1.25), (0.5, 2.0)
FEWEST = 20
"""Fewer positives, or negatives, say nothing about a slope."""

SHIFT_WARN, SHIFT_FAIL = 3.0, 6.0
"""Standard errors between the mean answer on test and on training studies."""

Z95 = 1.96


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
            return Check(name, "fail", f"{told}; ships all the same: {some(kept)}", advice)
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

"""AUC, sensitivity, specificity and calibration with intervals, over studies and vertebrae.

In: `Cases`. Out: tables. Example::

    from cspine_kit.show.evaluation.cases import Cases

    truth = np.array([[0.0] * 8, [1.0] + [0.0] * 6 + [1.0]] * 20)
    probs = 0.1 + 0.7 * truth
    facts = pd.DataFrame({"coverage": ["parts", "all"] * 20})
    points = {t: {"best_f1": 0.5} for t in ("C1", "patient_overall")}
    cases = Cases([str(k) for k in range(40)], truth, probs, facts, points, {}, [])
    discrimination(cases).set_index("target").loc["patient", ["auc", "auc_low"]]

Intervals of shares of one target are Wilson's; those of AUC, and of all vertebrae together, come
from a bootstrap over studies, so that the seven of one patient do not count as seven patients.
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.metric import auc, auc_draws, evaluate
from cspine_kit.core.numbers import BoolArray, FloatArray
from cspine_kit.show.evaluation.cases import Cases
from cspine_kit.show.report.checks_scores import slope_of
from cspine_kit.show.report.figure import short
from cspine_kit.stack.scores.operating import confusion
from cspine_kit.stack.scores.table import calibration_error

VERTEBRAE = "all vertebrae"
REPEATS, SEED = 1000, 0
FEWEST = 10
"""Studies below which a subgroup is only counted, and fractures below which no slope is told."""


def _columns(name: str) -> list[int]:
    if name == VERTEBRAE:
        return list(range(len(LEVELS)))
    return [TARGETS.index(OVERALL if name == short(OVERALL) else name)]


NAMES = (short(OVERALL), VERTEBRAE, *LEVELS)
"""Rows of the tables: the patient, all vertebrae together, each."""


def _auc_interval(truth: FloatArray, probs: FloatArray) -> tuple[float, float]:
    """95 % bootstrap interval of the AUC of (n, k) truths and probabilities, studies drawn anew."""
    found = auc_draws(truth, probs, repeats=REPEATS, seed=SEED)
    kept = found[np.isfinite(found)]
    if len(kept) < REPEATS // 2:
        return float("nan"), float("nan")
    low, high = np.quantile(kept, [0.025, 0.975])
    return float(low), float(high)


def _known(truth: FloatArray, probs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(m,) of the levels that scans hold."""
    held = np.isfinite(probs)
    return truth[held], probs[held]


def _slope(y: FloatArray, p: FloatArray) -> float:
    """Slope of the log-odds, 1 is calibrated; NaN where there are too few of a kind."""
    return slope_of(y, p)[0] if min(y.sum(), len(y) - y.sum()) >= FEWEST else float("nan")


def discrimination(cases: Cases) -> pd.DataFrame:
    """One row for the patient, all vertebrae and each: n, fractured, AUC with its interval, Brier
    score, calibration error and slope."""
    rows = []
    for name in NAMES:
        truth, probs = (a[:, _columns(name)] for a in (cases.truth, cases.probs))
        y, p = _known(truth, probs)
        low, high = _auc_interval(truth, probs) if len(y) else (np.nan, np.nan)
        rows.append(
            {
                "target": name,
                "n": len(y),
                "fractured": int(y.sum()),
                "auc": auc(y, p) if len(y) else np.nan,
                "auc_low": low,
                "auc_high": high,
                "brier": float(np.mean((p - y) ** 2)) if len(y) else np.nan,
                "calibration_error": calibration_error(y, p) if len(y) else np.nan,
                "slope": _slope(y, p) if len(y) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _called(cases: Cases, point: str) -> BoolArray:
    """(n, 8) calls at a frozen point; a target without a threshold is never called."""
    limits = [cases.points.get(t, {}).get(point, np.inf) for t in TARGETS]
    calls: BoolArray = np.nan_to_num(cases.probs, nan=-1.0) >= np.array(limits)
    return calls


def operating(cases: Cases) -> pd.DataFrame:
    """One row for each target and frozen operating point: threshold, counts, sensitivity and
    specificity with 95 % intervals."""
    names = list(dict.fromkeys(p for t in TARGETS for p in cases.points.get(t, {})))
    rows = []
    for point in names:
        calls = _called(cases, point)
        for name in NAMES:
            columns = _columns(name)
            truth, held = cases.truth[:, columns], np.isfinite(cases.probs[:, columns])
            found = confusion(truth[held], calls[:, columns][held])
            one = cases.points.get(TARGETS[columns[0]], {}).get(point, np.nan)
            row: dict[str, object] = {
                "target": name,
                "point": point,
                "threshold": one if len(columns) == 1 else np.nan,
                **{n: int(found[n]) for n in ("tp", "fn", "tn", "fp")},
            }
            for share, hit, miss in (("sensitivity", "tp", "fn"), ("specificity", "tn", "fp")):
                wanted = 1.0 if share == "sensitivity" else 0.0
                low, high = _share_interval(truth, held, calls[:, columns], wanted)
                total = found[hit] + found[miss]
                row |= {share: found[hit] / total if total else np.nan}
                row |= {f"{share}_low": low, f"{share}_high": high}
            rows.append(row)
    return pd.DataFrame(rows)


def _share_interval(
    truth: FloatArray, held: BoolArray, calls: BoolArray, wanted: float
) -> tuple[float, float]:
    """Interval of the share of `wanted` (1 fractured, 0 not) that calls get right."""
    from scipy.stats import binomtest

    own, right = held & (truth == wanted), calls == (wanted > 0.5)
    if truth.shape[1] == 1:
        if not own.any():
            return float("nan"), float("nan")
        test = binomtest(int(right[own].sum()), int(own.sum()))
        low, high = test.proportion_ci(method="wilson")
        return float(low), float(high)
    hits, all_ = (right & own).sum(axis=1), own.sum(axis=1)
    drawn = np.random.default_rng(SEED).integers(0, len(truth), (REPEATS, len(truth)))
    totals = all_[drawn].sum(axis=1)
    if not totals.all():
        return float("nan"), float("nan")
    low, high = np.quantile(hits[drawn].sum(axis=1) / totals, [0.025, 0.975])
    return float(low), float(high)


def subgroups(cases: Cases, point: str) -> pd.DataFrame:
    """Patient and vertebra figures of each group of studies: n, fractured, AUC with its interval,
    sensitivity and specificity at one point."""
    calls = _called(cases, point)
    rows = []
    for field in cases.facts.columns:
        for group in sorted(cases.facts[field].unique()):
            chosen = (cases.facts[field] == group).to_numpy()
            for name in (short(OVERALL), VERTEBRAE):
                columns = _columns(name)
                truth, probs = cases.truth[chosen][:, columns], cases.probs[chosen][:, columns]
                y, p = _known(truth, probs)
                enough = int(chosen.sum()) >= FEWEST
                low, high = _auc_interval(truth, probs) if enough else (np.nan, np.nan)
                found = confusion(y, calls[chosen][:, columns][np.isfinite(probs)])
                row: dict[str, object] = {"by": field, "group": group, "target": name}
                row |= {"studies": int(chosen.sum()), "n": len(y), "fractured": int(y.sum())}
                row |= {"auc": auc(y, p) if enough else np.nan, "auc_low": low, "auc_high": high}
                for share, told in (("sensitivity", "recall"), ("specificity", "specificity")):
                    row[share] = found[told] if enough else np.nan
                rows.append(row)
    return pd.DataFrame(rows)


def metrics(cases: Cases) -> dict[str, float]:
    """The competition's metric in both forms, of the scans that hold all seven levels."""
    whole = np.isfinite(cases.probs).all(axis=1)
    if not whole.any():
        return {}
    score = evaluate(cases.truth[whole], cases.probs[whole])
    return {"A": score.per_exam, "B": score.whole, "studies": float(whole.sum())}

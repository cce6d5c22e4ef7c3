"""How good each model's out-of-fold predictions are, in one table.

In: contract `predictions`, labels, folds. Out: one row per model. Example::

    table = score_table(predictions, labels, fold_of)
    table[["model", "per_exam", "per_exam_low", "per_exam_high"]]

Log loss first, in both forms; then what a radiologist asks: AUC per level and per patient;
accuracy, precision, recall and F1 of the overall probability at thresholds that the other folds
have chosen (`scores.operating`); sensitivity at 90 % specificity, Brier score, calibration error.
"""

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.errors import TableError
from cspine_kit.core.metric import Form, auc, bootstrap_interval, metric
from cspine_kit.core.numbers import FloatArray, IntArray
from cspine_kit.stack.features.units import SHOWN
from cspine_kit.stack.scores.baselines import wide_predictions
from cspine_kit.stack.scores.operating import BEST_F1, confusion, nested_calls

LETTERS: dict[Form, str] = {"per_exam": "A", "global": "B"}
FORMS = tuple(LETTERS)
SPECIFICITY = 0.9
BINS = 10


def scores_by_source(
    predictions: pd.DataFrame, labels: pd.DataFrame, source: "pd.Series", model: str
) -> pd.DataFrame:
    """What one model is worth on the studies of each source, the largest first.

    Args:
        predictions: contract `predictions`.
        labels: study_uid and the targets.
        source: by study_uid.
        model: whose rows.
    """
    wide = wide_predictions(predictions, model)
    truth = labels.set_index("study_uid").loc[wide.index, list(TARGETS)].to_numpy(np.float64)
    probs, origin = wide.to_numpy(np.float64), source.reindex(wide.index).to_numpy()
    rows: list[dict[str, object]] = []
    for name in pd.Series(origin).value_counts().index:
        own = origin == name
        row: dict[str, object] = {"source": name, "studies": int(own.sum())}
        for form in FORMS:
            ends = bootstrap_interval(truth[own], probs[own], form, seed=0)
            row |= {form: metric(truth[own], probs[own], form)}
            row |= dict(zip((f"{form}_low", f"{form}_high"), ends, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def sensitivity_at(y: FloatArray, p: FloatArray, specificity: float = SPECIFICITY) -> float:
    """Share of positives above the threshold that leaves `specificity` of negatives below it."""
    negatives, positives = p[y < 0.5], p[y > 0.5]
    if len(negatives) == 0 or len(positives) == 0:
        return float("nan")
    threshold = np.quantile(negatives, specificity, method="higher")
    return float((positives > threshold).mean())


def calibration_error(y: FloatArray, p: FloatArray, bins: int = BINS) -> float:
    """Mean |observed - predicted| over equally filled bins, weighted by their size."""
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(abs(y[i].mean() - p[i].mean()) * len(i) for i in parts) / len(y))


def expected_interval(
    y: FloatArray,
    shipped: FloatArray,
    form: Form,
    *,
    gap: float,
    chains: int,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of what the mean over all fold chains will score on unseen studies.

    Out-of-fold, every study is seen by one chain. The bootstrap says how far one chain's score may
    lie from the printed one; averaging chains gains where fold models differ. How much they differ
    shows in what heads lose on a fold model they do not know, and the mean of K chains removes
    1 - 1 / K of what is each one's own: so much lower lies the lower end.

    Args:
        y, shipped: (n, 8) labels and out-of-fold probabilities of what ships.
        gap: strict minus crossing score of the stack, in the same form of the metric.
        chains: number of fold models.
        seed: of the bootstrap.
    """
    low, high = bootstrap_interval(y, shipped, form, seed=seed)
    return max(low - (1.0 - 1.0 / chains) * max(gap, 0.0), 0.0), high


def _row(y: FloatArray, p: FloatArray, fold: IntArray, seed: int) -> dict[str, float]:
    row: dict[str, float] = {"n_studies": len(y)}
    for form in FORMS:
        low, high = bootstrap_interval(y, p, form, seed=seed)
        per_fold = [metric(y[fold == k], p[fold == k], form) for k in np.unique(fold)]
        row |= {form: metric(y, p, form), f"{form}_low": low, f"{form}_high": high}
        row |= {f"{form}_fold_mean": float(np.mean(per_fold))}
        row |= {f"{form}_fold_std": float(np.std(per_fold))}
    row |= {f"auc_{t}": auc(y[:, j], p[:, j]) for j, t in enumerate(TARGETS)}
    overall, truth = p[:, -1], y[:, -1]
    calls = confusion(truth, nested_calls(y, p, fold, ())[BEST_F1][:, -1])
    row |= {name: calls[name] for name in ("accuracy", "precision", "recall", "f1")}
    row |= {
        "auc_levels": float(np.mean([row[f"auc_{t}"] for t in LEVELS])),
        "sensitivity_at_90": sensitivity_at(truth, overall),
        "brier": float(np.mean((overall - truth) ** 2)),
        "calibration_error": calibration_error(truth, overall),
    }
    return row


def score_table(
    predictions: pd.DataFrame,
    labels: pd.DataFrame,
    folds: pd.Series,
    *,
    seed: int = 0,
    baselines: tuple[str, ...] = (),
) -> pd.DataFrame:
    """One row per model, in the order of first appearance.

    Args:
        predictions: contract `predictions`; every model holds all eight targets of its studies.
        labels: study_uid and the eight targets.
        folds: fold by study_uid.
        seed: of the bootstrap; all models see the same draws.
        baselines: models among which the best is what the others are compared with.

    Returns:
        model, n_studies and, for each form f of per_exam (A) and global (B): f (over all studies),
        f_low, f_high (95 % bootstrap), f_fold_mean, f_fold_std (over the folds); auc_<target>,
        auc_levels, and of patient_overall accuracy, precision, recall, f1 (thresholds of the other
        folds), sensitivity_at_90, brier, calibration_error. With baselines, for each f: f_baseline
        (the best of them) and f_gain_low, f_gain_high, the paired interval of model minus that
        baseline (both below 0: certainly better).

    Raises:
        TableError: predictions of a study without labels.
    """
    truth = labels.set_index("study_uid")[list(TARGETS)]
    held: dict[str, tuple[FloatArray, FloatArray]] = {}
    rows = []
    for model in tqdm(dict.fromkeys(predictions["model"]), desc="scores", unit="model"):
        wide = wide_predictions(predictions, model)
        unknown = wide.index.difference(truth.index)
        if len(unknown):
            raise TableError(f"predictions: studies without labels: {list(unknown[:SHOWN])}")
        y = truth.loc[wide.index].to_numpy(np.float64)
        p = wide.to_numpy(np.float64)
        held[model] = (y, p)
        rows.append({"model": model, **_row(y, p, folds.reindex(wide.index).to_numpy(), seed)})
    table = pd.DataFrame(rows)
    known = [name for name in baselines if name in held]
    for form in FORMS if known else ():
        scores = table.set_index("model")[form]
        best = str(scores[known].astype(float).idxmin())
        intervals = [
            bootstrap_interval(*held[m], form, others=held[best][1], seed=seed)
            for m in table["model"]
        ]
        table[f"{form}_baseline"] = best
        table[f"{form}_gain_low"] = [low for low, _ in intervals]
        table[f"{form}_gain_high"] = [high for _, high in intervals]
    return table

"""How good each model's out-of-fold predictions are, in one table.

In: contract `predictions`, labels, folds. Out: one row per model. Example::

    table = score_table(predictions, labels, folds)
    table[["model", "per_exam", "global"]]
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import TableError
from cspine_kit.core.metric import Form, bootstrap_interval, metric
from cspine_kit.stack.baselines import wide_predictions

FORMS: tuple[Form, Form] = ("per_exam", "global")
SHOWN = 5


def score_table(
    predictions: pd.DataFrame, labels: pd.DataFrame, folds: pd.Series, *, seed: int = 0
) -> pd.DataFrame:
    """One row per model, in the order of first appearance.

    Args:
        predictions: contract `predictions`; every model holds all eight targets of its studies.
        labels: study_uid and the eight targets.
        folds: fold by study_uid.
        seed: of the bootstrap; all models see the same draws.

    Returns:
        model, n_studies and, for each form f of per_exam (A) and global (B): f (over all studies),
        f_low, f_high (95 % bootstrap), f_fold_mean, f_fold_std (over the folds).

    Raises:
        TableError: predictions of a study without labels.
    """
    truth = labels.set_index("study_uid")[list(TARGETS)]
    rows = []
    for model in dict.fromkeys(predictions["model"]):
        wide = wide_predictions(predictions, model)
        unknown = wide.index.difference(truth.index)
        if len(unknown):
            raise TableError(f"predictions: studies without labels: {list(unknown[:SHOWN])}")
        y = truth.loc[wide.index].to_numpy(np.float64)
        p = wide.to_numpy(np.float64)
        fold = folds.reindex(wide.index).to_numpy()
        row: dict[str, object] = {"model": model, "n_studies": len(wide)}
        for form in FORMS:
            low, high = bootstrap_interval(y, p, form, seed=seed)
            per_fold = [metric(y[fold == k], p[fold == k], form) for k in np.unique(fold)]
            row |= {form: metric(y, p, form), f"{form}_low": low, f"{form}_high": high}
            row |= {
                f"{form}_fold_mean": float(np.mean(per_fold)),
                f"{form}_fold_std": float(np.std(per_fold)),
            }
        rows.append(row)
    return pd.DataFrame(rows)

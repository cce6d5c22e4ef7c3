"""Every model on the test set: what the kernel predicted, and baselines that it does not run.

In: a run folder and the files beside a submission. Out: scores on the hidden truth where there is
one. Example::

    from cspine_kit.core.runs import read_json
    from cspine_kit.data.labels import read_labels

    found = predictions_on_test(config, paths, submission)          # contract `predictions`
    priors = read_json(bundle / "priors.json")
    scores = hidden_scores(found, read_labels(competition.solution_csv), priors)

The kernel leaves `predictions.parquet` and, per study, `features.parquet` beside the submission.
Fitted baselines are fitted here on all out-of-fold rows; the header baseline reads the run's own
tables.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config
from cspine_kit.core.metric import evaluate
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.tables import CONTRACTS, read_table
from cspine_kit.data.labels import training_labels

FEATURES, PREDICTIONS = "features.parquet", "predictions.parquet"


def _header_predictions(paths: RunPaths, study_uids: list[str]) -> pd.DataFrame:
    """The header-only baseline on test studies that the run's index knows."""
    from cspine_kit.stack.fallback.headers import HeaderFallback, read_headers

    studies = read_table(paths.table("studies"), "studies")
    studies = studies[studies["study_uid"].isin(study_uids)]
    headers = read_headers(read_table(paths.table("slices"), "slices"), studies)
    return HeaderFallback.load(paths.stack / "header").rows(headers)


def _fitted_baselines(config: Config, paths: RunPaths, features: pd.DataFrame) -> pd.DataFrame:
    """The fitted baselines on test features."""
    from cspine_kit.stack.scores.fitted import fitted_baselines

    known = read_table(paths.table("features"), "features")
    labels = training_labels(read_table(paths.table("studies"), "studies"))
    form, seed = config.stack.form, config.seed
    return fitted_baselines(known, labels, form, seed=seed, unseen=features)


def predictions_on_test(config: Config, paths: RunPaths, submission: Path) -> pd.DataFrame:
    """Rows of contract `predictions` of every model on the studies that the kernel predicted.

    Empty where no image model spoke for any study: then the kernel leaves no predictions.

    Args:
        config: the run's config.
        paths: its folder, with a finished stack.
        submission: the kernel's submission; its tables lie beside it.
    """
    if not submission.with_name(PREDICTIONS).exists():
        return pd.DataFrame(columns=list(CONTRACTS["predictions"].columns))
    predictions = pd.read_parquet(submission.with_name(PREDICTIONS))
    parts = [predictions, _header_predictions(paths, sorted(set(predictions["study_uid"])))]
    features = submission.with_name(FEATURES)
    if features.exists():
        parts.append(_fitted_baselines(config, paths, pd.read_parquet(features)))
    return pd.concat(parts, ignore_index=True)


def hidden_scores(
    predictions: pd.DataFrame, truth: pd.DataFrame, priors: dict[str, float]
) -> pd.DataFrame:
    """Metric A and B of every model on the test truth: model, test_per_exam, test_global.

    Args:
        predictions: of `predictions_on_test`.
        truth: study_uid and the eight targets.
        priors: what a study without predictions gets; the model `best_constant`.
    """
    labels = truth[list(TARGETS)].to_numpy(np.float64)
    constant = np.array([priors[t] for t in TARGETS])
    tables = {"best_constant": np.broadcast_to(constant, labels.shape)}
    for model, rows in predictions.groupby("model", sort=False):
        wide = rows.pivot(index="study_uid", columns="target", values="prob")
        wide = wide.reindex(index=truth["study_uid"], columns=list(TARGETS))
        tables[str(model)] = wide.fillna(priors).to_numpy()
    scores = {model: evaluate(labels, probs) for model, probs in tables.items()}
    return pd.DataFrame(
        [(model, s.per_exam, s.whole) for model, s in scores.items()],
        columns=["model", "test_per_exam", "test_global"],
    )

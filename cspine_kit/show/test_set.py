"""Every model on the test set: what the kernel predicted, and baselines that it does not run.

In: a run folder and the files beside a submission. Out: scores on the hidden truth where there is
one, and the shift of the test set's features. Example::

    from cspine_kit.data.labels import read_labels

    found = predictions_on_test(config, paths, submission)          # contract `predictions`
    priors = read_json(bundle / "priors.json")
    scores = hidden_scores(found, read_labels(competition.solution_csv), priors)
    shift = shift_on_test(paths, submission)

The kernel leaves `predictions.parquet` and, per study, `features.parquet` beside the submission.
Rivals are fitted here on all out-of-fold rows; the header baseline reads the run's own tables.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config
from cspine_kit.core.metric import evaluate
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import read_json
from cspine_kit.core.tables import CONTRACTS, read_table
from cspine_kit.data.labels import training_labels

FEATURES, PREDICTIONS = "features.parquet", "predictions.parquet"


def _header_predictions(paths: RunPaths, study_uids: list[str]) -> pd.DataFrame:
    """The header-only baseline on test studies that the run's index knows."""
    from cspine_kit.stack.fallback.headers import HeaderFallback, read_headers

    studies = read_table(paths.table("studies"), "studies")
    studies = studies[studies["study_uid"].isin(study_uids)]
    headers = read_headers(read_table(paths.table("slices"), "slices"), studies)
    return HeaderFallback.load(paths.stack / "header").test_rows(headers)


def _rival_predictions(config: Config, paths: RunPaths, features: pd.DataFrame) -> pd.DataFrame:
    """The fitted rivals on test features."""
    from cspine_kit.stack.scores.rivals import rival_test_predictions

    known = read_table(paths.table("features"), "features")
    labels = training_labels(read_table(paths.table("studies"), "studies"))
    return rival_test_predictions(known, labels, features, config.stack.form, seed=config.seed)


def predictions_on_test(config: Config, paths: RunPaths, submission: Path) -> pd.DataFrame:
    """Rows of contract `predictions` of every model on the studies that the kernel predicted.

    Empty where no image model spoke for any study: then the kernel leaves no predictions.

    Args:
        config: the run's config.
        paths: its folder, with a finished stack.
        submission: the kernel's submission; its tables lie beside it.
    """
    from cspine_kit.stack.model.blend import rank_predictions
    from cspine_kit.stack.model.stack import BLENDED

    if not submission.with_name(PREDICTIONS).exists():
        return pd.DataFrame(columns=list(CONTRACTS["predictions"].columns))
    predictions = pd.read_parquet(submission.with_name(PREDICTIONS))
    parts = [predictions, rank_predictions(predictions, BLENDED)]
    parts.append(_header_predictions(paths, sorted(set(predictions["study_uid"]))))
    features = submission.with_name(FEATURES)
    if features.exists():
        parts.append(_rival_predictions(config, paths, pd.read_parquet(features)))
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


def shift_on_test(paths: RunPaths, submission: Path) -> pd.DataFrame | None:
    """`stack.scores.shift.shift_report` of the test features; None where the kernel left none."""
    from cspine_kit.stack.scores.shift import shift_report

    features = submission.with_name(FEATURES)
    if not features.exists():
        return None
    reference = read_json(paths.stack / "models" / "reference.json")
    return shift_report(reference, pd.read_parquet(features))


def render_shift(report: pd.DataFrame, shown: int = 5) -> list[str]:
    """Lines: how many features are shifted, and the farthest ones."""
    moved = int(report["shifted"].sum())
    lines = [f"feature shift, training to test: {moved} of {len(report)} features shifted"]
    for row in report.head(max(shown, 1)).to_dict("records"):
        lines.append(
            f"  {row['feature']:32s} distance {row['ks']:.2f}, median {row['median_reference']:.3g}"
            f" -> {row['median']:.3g}{'  SHIFTED' if row['shifted'] else ''}"
        )
    return lines

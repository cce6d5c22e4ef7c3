"""Every model on the test set: what the kernel predicted, and baselines that it does not run.

In: a run folder and the files beside a submission. Out: scores on the hidden truth where there is
one, the shift of the test set's features, and the prevalence it seems to have. Example::

    predictions = predictions_on_test(config, paths, submission)    # contract `predictions`
    scores = hidden_scores(predictions, truth, priors)
    shift = shift_on_test(paths, submission)

The kernel leaves `predictions.parquet` and, per study, `features.parquet` beside the submission.
Rivals are fitted here on all out-of-fold rows; the header baseline reads the run's own tables.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import OVERALL, TARGETS
from cspine_kit.core.config import Config
from cspine_kit.core.metric import Form, evaluate
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import read_json
from cspine_kit.core.tables import CONTRACTS, read_table

FEATURES, PREDICTIONS = "features.parquet", "predictions.parquet"


def _header_predictions(paths: RunPaths, study_uids: list[str]) -> pd.DataFrame:
    """The header-only baseline on test studies that the run's index knows."""
    from cspine_kit.stack.fallback import HeaderFallback, read_headers

    studies = read_table(paths.table("studies"), "studies")
    studies = studies[studies["study_uid"].isin(study_uids)]
    headers = read_headers(read_table(paths.table("slices"), "slices"), studies)
    return HeaderFallback.load(paths.stack / "header").test_rows(headers)


def training_labels(paths: RunPaths) -> pd.DataFrame:
    """study_uid and the eight targets of every training study."""
    studies = read_table(paths.table("studies"), "studies")
    return studies.loc[studies["split"] == "train", ["study_uid", *TARGETS]].dropna()


def _rival_predictions(config: Config, paths: RunPaths, features: pd.DataFrame) -> pd.DataFrame:
    """The fitted rivals on test features."""
    from cspine_kit.stack.rivals import rival_test_predictions

    known, labels = read_table(paths.table("features"), "features"), training_labels(paths)
    return rival_test_predictions(known, labels, features, config.stack.form, seed=config.seed)


def predictions_on_test(config: Config, paths: RunPaths, submission: Path) -> pd.DataFrame:
    """Rows of contract `predictions` of every model on the studies that the kernel predicted.

    Empty where no image model spoke for any study: then the kernel leaves no predictions.

    Args:
        config: the run's config.
        paths: its folder, with a finished stack.
        submission: the kernel's submission; its tables lie beside it.
    """
    from cspine_kit.stack.blend import rank_predictions
    from cspine_kit.stack.booster import BLENDED

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
    """`stack.shift.shift_report` of the test features; None where the kernel left none."""
    from cspine_kit.stack.shift import shift_report

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


def expected_prevalence(
    predictions: pd.DataFrame, model: str, labels: pd.DataFrame, form: Form
) -> float:
    """Share of fractured studies in the test set, as a model's overall probabilities imply it.

    Args:
        predictions: of `predictions_on_test`.
        model: what ships.
        labels: of the training studies.
        form: what the model's probabilities minimize; its weights are taken out first.
    """
    from cspine_kit.stack.calibrate import estimate_prior
    from cspine_kit.stack.rivals import metric_ratio

    own = predictions[(predictions["model"] == model) & (predictions["target"] == OVERALL)]
    p = own["prob"].to_numpy(np.float64)
    y = labels[list(TARGETS)].to_numpy(np.float64)
    plain = p / (p + metric_ratio(y, form)[-1] * (1.0 - p))
    return estimate_prior(plain, float(y[:, -1].mean()))

"""What a submission scores on a truth that is known.

In: a submission, the truth. Out: both forms of the metric with intervals. Example::

    score_submission(submission, competition.solution_csv)["metric_per_exam"]
"""

from pathlib import Path
from typing import Any

import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.metric import bootstrap_interval, evaluate
from cspine_kit.data.labels import read_labels
from cspine_kit.infer.submission import read_submission


def truth_row_ids(truth: pd.DataFrame) -> pd.Series:
    """The row ids of a truth frame, study by study in the order of `TARGETS`."""
    return pd.Series([f"{uid}_{target}" for uid in truth["study_uid"] for target in TARGETS])


def score_submission(path: Path, truth_csv: Path) -> dict[str, Any]:
    """Score a submission file.

    Returns:
        metric_per_exam, metric_global, their 95 % bootstrap intervals, per_target (plain log loss)
        and n_studies.

    Raises:
        SubmissionError: the file is not a valid submission for these studies.
        DataError: the truth cannot be used.
    """
    truth = read_labels(truth_csv)
    probs = read_submission(path, truth_row_ids(truth)).to_numpy().reshape(-1, len(TARGETS))
    labels = truth[list(TARGETS)].to_numpy()
    score = evaluate(labels, probs)
    return {
        "metric_per_exam": score.per_exam,
        "metric_per_exam_interval": bootstrap_interval(labels, probs, "per_exam"),
        "metric_global": score.whole,
        "metric_global_interval": bootstrap_interval(labels, probs, "global"),
        "per_target": score.per_target,
        "n_studies": score.n_studies,
    }

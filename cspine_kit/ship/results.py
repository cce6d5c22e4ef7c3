"""The one table at the end: every model out-of-fold and, where the truth is known, on the test set.

In: `stack/scores.csv`, the kernel's predictions, a truth. Out: `submissions/<name>/results.csv`, a
ledger row, text. Example: `print(run_results(config, paths, Path("submissions")))`.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.metric import evaluate
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.runs import publish, read_json
from cspine_kit.ship.submission import (
    read_submission,
    read_truth,
    read_wanted_rows,
    score_submission,
)

SUBMISSION = "submission.csv"


def _hidden_scores(config: Config, paths: RunPaths, submission: Path) -> pd.DataFrame:
    """Metric A and B of every model on the test truth: model, test_per_exam, test_global.

    The submission file itself is scored as it lies; the other rows come from `predictions.parquet`,
    with the bundle's prior for a study that has none.
    """
    truth = read_truth(Competition(config.competition.dir).solution_csv)
    labels = truth[list(TARGETS)].to_numpy()
    priors = np.array([read_json(paths.bundle / "priors.json")[t] for t in TARGETS])
    tables = {"best_constant": np.broadcast_to(priors, labels.shape)}
    predictions = pd.read_parquet(submission.with_name("predictions.parquet"))
    for model, rows in predictions.groupby("model", sort=False):
        wide = rows.pivot(index="study_uid", columns="target", values="prob")
        wide = wide.reindex(index=truth["study_uid"], columns=list(TARGETS))
        tables[str(model)] = wide.fillna(dict(zip(TARGETS, priors, strict=True))).to_numpy()
    scores = {model: evaluate(labels, probs) for model, probs in tables.items()}
    return pd.DataFrame(
        [(model, s.per_exam, s.whole) for model, s in scores.items()],
        columns=["model", "test_per_exam", "test_global"],
    )


def _format(table: pd.DataFrame, hidden: bool) -> list[str]:
    head = f"{'model':28s} {'OOF A':>7s} {'folds':>15s} {'OOF B':>7s} {'folds':>15s}"
    lines = [head + (f" {'test A':>7s} {'test B':>7s}" if hidden else "")]
    for row in table.to_dict("records"):
        line = f"{row['model'] + (' *' if row['ships'] else ''):28s}"
        for form in ("per_exam", "global"):
            line += f" {row[form]:7.4f} {row[form + '_fold_mean']:7.4f}"
            line += f" ±{row[form + '_fold_std']:6.4f}"
        if hidden:
            # Rivals that the kernel does not run have no score on the test set.
            values = (row["test_per_exam"], row["test_global"])
            line += "".join(f" {'-' if np.isnan(v) else format(v, '.4f'):>7s}" for v in values)
        lines.append(line)
    lines.append("* ships. A = per exam, B = global; lower is better; folds: mean ± std over folds")
    return lines


def run_results(config: Config, paths: RunPaths, submissions: Path) -> str:
    """Check and score the submission, write results.csv and the ledger row.

    Returns:
        The table and where each file lies.

    Raises:
        ArtifactError: a stage has not run yet.
        SubmissionError: the submission is not valid.
    """
    from cspine_kit.ship.leaderboard import add_run

    folder = submissions / config.name
    submission, scores_csv = folder / SUBMISSION, paths.stack / "scores.csv"
    for path, make in ((scores_csv, "make stack"), (submission, "cspine kernel --config")):
        if not path.exists():
            raise ArtifactError(f"{path} is missing; run {make} first")
    competition = Competition(config.competition.dir)
    wanted = read_wanted_rows(competition.test_csv)
    read_submission(submission, wanted["row_id"])
    table = pd.read_csv(scores_csv)
    hidden = competition.solution_csv.exists()
    lines = []
    if hidden:
        table = table.merge(_hidden_scores(config, paths, submission), on="model", how="left")
    lines += _format(table, hidden)
    if hidden:
        score = score_submission(submission, competition.solution_csv)
        low, high = score["metric_per_exam_interval"]
        lines.append(
            f"\nsubmission on the hidden truth of {score['n_studies']} test studies: "
            f"A {score['metric_per_exam']:.4f} (95 % {low:.4f} to {high:.4f}), "
            f"B {score['metric_global']:.4f}"
        )
    results = folder / "results.csv"
    with publish(results) as temporary:
        table.to_csv(temporary, index=False)
    ledger = submissions / "leaderboard.csv"
    marker = folder / "kernel.json"
    minutes = read_json(marker)["seconds"] / 60 if marker.exists() else None
    add_run(ledger, config, table, submission, kernel_minutes=minutes)
    files = {
        "competition": competition.root,
        "out-of-fold slices": paths.table("oof_slices"),
        "stack": paths.stack,
        "bundle": paths.bundle,
        "kernel to push": Path("kernels/submit"),
        "submission": submission,
        "kernel log": folder / "kernel_log.jsonl",
        "results": results,
        "ledger": ledger,
    }
    lines += ["", *(f"{name:20s} {path}" for name, path in files.items())]
    return "\n".join(lines)

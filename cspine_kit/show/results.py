"""The one table at the end: every model out-of-fold and, where the truth is known, on the test set.

In: `stack/scores.csv`, the kernel's predictions, a truth. Out: `submissions/<name>/results.csv`, a
ledger row, text. Example: `print(run_results(config, paths, Path("submissions")))`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.paths import (
    KERNEL_LOG,
    KERNEL_MARKER,
    RESULTS,
    SUBMISSION,
    Competition,
    RunPaths,
)
from cspine_kit.core.runs import file_hash, publish, read_json
from cspine_kit.data.labels import read_labels
from cspine_kit.infer.manifest import MANIFEST
from cspine_kit.infer.score import score_submission, truth_row_ids
from cspine_kit.infer.submission import read_submission, read_wanted_rows
from cspine_kit.show.test_set import hidden_scores, predictions_on_test


def _format(table: pd.DataFrame, hidden: bool) -> list[str]:
    head = f"{'model':28s} {'OOF A':>7s} {'folds':>15s} {'OOF B':>7s} {'folds':>15s}"
    lines = [head + (f" {'test A':>7s} {'test B':>7s}" if hidden else "")]
    for row in table.to_dict("records"):
        line = f"{row['model'] + (' *' if row['ships'] else ''):28s}"
        for form in ("per_exam", "global"):
            line += f" {row[form]:7.4f} {row[form + '_fold_mean']:7.4f}"
            line += f" ±{row[form + '_fold_std']:6.4f}"
        if hidden:
            # Not every model answers in the kernel: folds of the training set, for one.
            values = (row["test_per_exam"], row["test_global"])
            line += "".join(f" {'-' if np.isnan(v) else format(v, '.4f'):>7s}" for v in values)
        lines.append(line)
    lines.append("* ships. A = per exam, B = global; lower is better; folds: mean ± std over folds")
    return lines


def _hidden_lines(
    paths: RunPaths, table: pd.DataFrame, submission: Path, solution: Path
) -> list[str]:
    """The submission on the known truth: its score beside what was printed, and its confusion at
    the thresholds frozen in the stack."""
    from cspine_kit.stack.scores.console import render_points
    from cspine_kit.stack.scores.operating import called, confusion

    score = score_submission(submission, solution)
    low, high = score["metric_per_exam_interval"]
    printed = table[table["ships"]].iloc[0]
    inside = printed["per_exam_low"] <= score["metric_per_exam"] <= printed["per_exam_high"]
    lines = [
        f"\nsubmission on the hidden truth of {score['n_studies']} test studies: "
        f"A {score['metric_per_exam']:.4f} (95 % {low:.4f} to {high:.4f}), "
        f"B {score['metric_global']:.4f}",
        f"out-of-fold, what ships had A {printed['per_exam']:.4f} (95 % "
        f"{printed['per_exam_low']:.4f} to {printed['per_exam_high']:.4f}): the hidden score lies "
        f"{'inside' if inside else 'outside'}",
    ]
    truth = read_labels(solution)
    y = truth[list(TARGETS)].to_numpy(np.float64)
    p = read_submission(submission, truth_row_ids(truth)).to_numpy().reshape(y.shape)
    points = read_json(paths.stack / "models" / "stack.json")["points"]
    rows = [
        {"target": t, "point": name, "threshold": points[t][name]}
        | confusion(y[:, j], called(p, points, name)[:, j])
        for j, t in enumerate(TARGETS)
        for name in points[t]
    ]
    return [*lines, "at the thresholds frozen in the stack:", render_points(pd.DataFrame(rows))]


def _kernel_run(paths: RunPaths, submission: Path) -> dict[str, Any]:
    """What `cspine kernel --config` wrote down about this submission; empty where it is not its.

    Raises:
        ArtifactError: it ran another bundle than the one whose scores would stand beside it.
    """
    marker = submission.with_name(KERNEL_MARKER)
    made: dict[str, Any] = read_json(marker) if marker.exists() else {}
    if made.get("sha256") != file_hash(submission):
        return {}
    manifest = paths.bundle / MANIFEST
    if made.get("manifest") != (file_hash(manifest) if manifest.exists() else None):
        raise ArtifactError(
            f"{submission} was made by another bundle than {paths.bundle} is now; "
            "run cspine kernel --config again"
        )
    return made


def run_results(config: Config, paths: RunPaths, submissions: Path) -> str:
    """Check and score the submission, write results.csv and the ledger row.

    Returns:
        The table and where each file lies.

    Raises:
        ArtifactError: a stage has not run yet, or the submission is another bundle's.
        SubmissionError: the submission is not valid.
    """
    from cspine_kit.show.leaderboard import add_run

    folder = submissions / config.name
    submission, scores_csv = folder / SUBMISSION, paths.stack / "scores.csv"
    for path, make in ((scores_csv, "make stack"), (submission, "cspine kernel --config")):
        if not path.exists():
            raise ArtifactError(f"{path} is missing; run {make} first")
    competition = Competition(config.competition.dir)
    wanted = read_wanted_rows(competition.test_csv)
    read_submission(submission, wanted["row_id"])
    made = _kernel_run(paths, submission)
    table = pd.read_csv(scores_csv)
    hidden = competition.solution_csv.exists()
    predictions = predictions_on_test(config, paths, submission)
    lines = []
    if hidden:
        priors = read_json(paths.bundle / "priors.json")
        truth = read_labels(competition.solution_csv)
        table = table.merge(hidden_scores(predictions, truth, priors), on="model", how="left")
    lines += _format(table, hidden)
    if hidden:
        lines += _hidden_lines(paths, table, submission, competition.solution_csv)
    if predictions.empty:
        lines.append("no study was predicted from its image: see the kernel log")
    results = folder / RESULTS
    with publish(results) as temporary:
        table.to_csv(temporary, index=False)
    ledger = submissions / "leaderboard.csv"
    minutes = made["seconds"] / 60 if made else None
    add_run(ledger, config, table, submission, kernel_minutes=minutes)
    files = {
        "competition": competition.root,
        "out-of-fold slices": paths.table("oof_slices"),
        "stack": paths.stack,
        "bundle": paths.bundle,
        "kernel to push": Path("kernels/submit"),
        "submission": submission,
        "kernel log": folder / KERNEL_LOG,
        "results": results,
        "ledger": ledger,
    }
    lines += ["", *(f"{name:20s} {path}" for name, path in files.items())]
    return "\n".join(lines)

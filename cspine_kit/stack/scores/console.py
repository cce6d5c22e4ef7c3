"""What `make stack` prints: scores, what each figure means, members' worth, operating points.

In: a run's stack folder. Out: text. Example: `print(render_stack(paths.stack))`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cspine_kit.core.metric import Form
from cspine_kit.core.runs import read_json
from cspine_kit.stack.scores.table import FORMS, LETTERS

NOTES = {
    "stack": "its folds cross the networks' folds, so the heads know outputs of every fold model, "
    "as those that ship do: what to expect of one chain on unseen studies",
    "stack_strict": "the same with the networks' folds: heads that have never seen an output of "
    "the fold model they judge; what to expect of networks trained anew",
    "stack_slices_only": "on slice statistics alone, without headers and what comes from elsewhere",
    "stack_all_members": "before members that certainly harm were left out",
    "stack_columns_absent": "the same where nothing is known of the raw columns",
    "shipped": "carries every choice (stack or mean, members left out) as other folds made it; its "
    "interval is for the mean over all chains, which gains where fold models differ",
}
SCORES = (
    "{model:30s} {per_exam:7.4f} {per_exam_low:6.3f} to {per_exam_high:5.3f} "
    "{global:7.4f} {global_low:6.3f} to {global_high:5.3f} {auc_levels:8.3f} "
    "{auc_patient_overall:8.3f} {recall:7.3f} {f1:6.3f} {calibration_error:6.3f}"
)
SCORES_HEAD = (
    f"{'model':30s} {'A':>7s} {'95 %':>15s} {'B':>7s} {'95 %':>15s} {'AUC lev':>8s} "
    f"{'AUC pat':>8s} {'recall':>7s} {'F1':>6s} {'ECE':>6s}"
)
SCORES_FOOT = (
    "* ships. A = per exam, B = global, lower is better. AUC pat, recall and F1 (thresholds\n"
    "of other folds) and calibration error (ECE) are of patient_overall."
)
SOURCE = (
    "shipped on {studies} studies of {source}: A {per_exam:.4f} (95 % {per_exam_low:.4f} to "
    "{per_exam_high:.4f}), B {global:.4f}"
)
POINTS = (
    "{target:16s} {point:17s} {threshold:9.3f} {accuracy:8.3f} {precision:9.3f} {recall:7.3f} "
    "{specificity:7.3f} {f1:6.3f} {tp:5.0f} {fp:5.0f} {fn:5.0f} {tn:5.0f}"
)
POINTS_HEAD = (
    f"{'target':16s} {'point':17s} {'threshold':>9s} {'accuracy':>8s} {'precision':>9s} "
    f"{'recall':>7s} {'specif.':>7s} {'F1':>6s} {'TP':>5s} {'FP':>5s} {'FN':>5s} {'TN':>5s}"
)


def render_scores(table: pd.DataFrame, notes: Mapping[str, str] | None = None) -> str:
    """The columns a reader wants first, as text; `*` marks what ships.

    Args:
        table: of `score_table`; a column `ships` marks one row.
        notes: lines of explanation by model, printed for the models in the table.
    """
    ships = table.get("ships", pd.Series(False, index=table.index)).astype(bool)
    marked = table.assign(model=table["model"] + ships.map({True: " *", False: ""}))
    lines = [SCORES_HEAD, *(SCORES.format(**row) for row in marked.to_dict("records"))]
    for row in table[ships].to_dict("records"):
        lines += [render_gain(row, form) for form in FORMS]
    known = set(table["model"])
    lines += [SCORES_FOOT, *(f"{m}: {note}" for m, note in (notes or {}).items() if m in known)]
    return "\n".join(lines)


def render_gain(row: Mapping[Any, Any], form: Form) -> str:
    """A row of `score_table` against the best baseline, in one form."""
    return (
        f"{LETTERS[form]}: {row['model']} minus the best baseline, {row[f'{form}_baseline']}, "
        f"paired 95 %: {row[f'{form}_gain_low']:+.4f} to {row[f'{form}_gain_high']:+.4f}"
    )


def render_worth(worth: pd.DataFrame, form: Form) -> list[str]:
    """One line per member: how much the loss rises without it, in one form of the metric."""
    lines = []
    for row in worth.to_dict("records"):
        low, high = row[f"{form}_low"], row[f"{form}_high"]
        verdict = "" if row["kept"] else "; certainly harmful, left out of what ships"
        forced = "; certainly harmful, kept by stack.keep" if row["kept"] and high < 0 else ""
        lines.append(
            f"worth of {row['member']}: {LETTERS[form]} rises by {row[form]:+.4f} without it "
            f"(95 % {low:+.4f} to {high:+.4f}){verdict or forced}"
        )
    return lines


def render_points(table: pd.DataFrame) -> str:
    """A table of operating points as text."""
    return "\n".join([POINTS_HEAD, *(POINTS.format(**row) for row in table.to_dict("records"))])


def render_stack(folder: Path) -> str:
    """The score table, what its rows mean, the members' worth and the operating points.

    Args:
        folder: `RunPaths.stack` of a finished run.
    """
    table = pd.read_csv(folder / "scores.csv")
    lines = [render_scores(table, NOTES), f"ships: {table['shipped_model'].iloc[0]}"]
    form = read_json(folder / "models" / "stack.json")["notes"]["form"]
    lines += render_worth(pd.read_csv(folder / "worth.csv"), form)
    sources = pd.read_csv(folder / "sources.csv")
    if len(sources) > 1:
        lines += [SOURCE.format(**row) for row in sources.to_dict("records")]
    points = pd.read_csv(folder / "operating.csv")
    lines += ["", "operating points, counted at thresholds of other folds:", render_points(points)]
    return "\n".join(lines)

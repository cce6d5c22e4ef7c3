"""What `make stack` prints: scores, what each figure means, members' worth, operating points.

In: a run's stack folder. Out: text. Example: `print(render_stack(paths.stack))`.
"""

from pathlib import Path

import pandas as pd

from cspine_kit.stack.scores.operating import render_points
from cspine_kit.stack.scores.table import render_scores

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


def render_worth(worth: pd.DataFrame, letter: str = "A", form: str = "per_exam") -> list[str]:
    """One line per member: how much the loss rises without it."""
    lines = []
    for row in worth.to_dict("records"):
        low, high = row[f"{form}_low"], row[f"{form}_high"]
        verdict = "" if row["kept"] else "; certainly harmful, left out of what ships"
        forced = "; certainly harmful, kept by stack.keep" if row["kept"] and high < 0 else ""
        lines.append(
            f"worth of {row['member']}: {letter} rises by {row[form]:+.4f} without it "
            f"(95 % {low:+.4f} to {high:+.4f}){verdict or forced}"
        )
    return lines


def render_stack(folder: Path) -> str:
    """The score table, what its rows mean, the members' worth and the operating points.

    Args:
        folder: `RunPaths.stack` of a finished run.
    """
    table = pd.read_csv(folder / "scores.csv")
    lines = [render_scores(table, NOTES), f"ships: {table['shipped_model'].iloc[0]}"]
    lines += render_worth(pd.read_csv(folder / "worth.csv"))
    points = pd.read_csv(folder / "operating.csv")
    lines += ["", "operating points, counted at thresholds of other folds:", render_points(points)]
    return "\n".join(lines)

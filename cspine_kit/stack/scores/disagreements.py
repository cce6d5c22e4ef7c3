"""Labels that what ships contradicts most, out-of-fold: for a human to look at, never corrected.

In: contract `predictions`, labels. Out: a table, the strongest disagreement first. Example::

    table = disagreements(predictions, labels, "shipped")
    print(render(table))

A wrong label and a wrong model look alike here: only the images tell.
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.numbers import log_losses
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import publish
from cspine_kit.core.tables import read_table
from cspine_kit.stack.model.stack import SHIPPED
from cspine_kit.stack.scores.baselines import wide_predictions

DISAGREEMENTS = "disagreements.csv"
SHOWN = 10
LEAST = 0.5
"""From this far apart on, label and probability disagree."""


def disagreements(predictions: pd.DataFrame, labels: pd.DataFrame, model: str) -> pd.DataFrame:
    """Rows study_uid, target, label, prob, loss, fold of all that disagree.

    Args:
        predictions: out-of-fold.
        labels: study_uid and the targets.
        model: whose predictions.
    """
    own = predictions[predictions["model"] == model]
    wide = wide_predictions(predictions, model)
    truth = labels.set_index("study_uid").loc[wide.index, list(TARGETS)].to_numpy(np.float64)
    probs = wide.to_numpy(np.float64)
    apart = np.abs(truth - probs) > LEAST
    study, target = np.nonzero(apart)
    fold = own.drop_duplicates("study_uid").set_index("study_uid")["fold"]
    table = pd.DataFrame(
        {
            "study_uid": wide.index[study],
            "target": np.array(TARGETS)[target],
            "label": truth[apart].astype(np.int64),
            "prob": probs[apart],
            "loss": log_losses(truth, probs)[apart],
            "fold": fold.loc[wide.index[study]].to_numpy(np.int64),
        }
    )
    return table.sort_values(["loss", "study_uid"], ascending=[False, True], ignore_index=True)


def write_disagreements(paths: RunPaths) -> pd.DataFrame:
    """Those of what ships in a run, also as `stack/disagreements.csv`."""
    predictions = read_table(paths.table("predictions"), "predictions")
    labels = read_table(paths.table("studies"), "studies")
    table = disagreements(predictions, labels, SHIPPED)
    path, text = paths.stack / DISAGREEMENTS, table.to_csv(index=False)
    if not path.exists() or path.read_text() != text:
        with publish(path) as temporary:
            temporary.write_text(text)
    return table


def render(table: pd.DataFrame) -> str:
    """The first rows as text."""
    lines = [
        f"{row['study_uid']:66s} {row['target']:16s} labelled {row['label']}, "
        f"said {row['prob']:.3f}"
        for row in table.head(SHOWN).to_dict("records")
    ]
    head = f"labels that the stack contradicts, {len(lines)} of {len(table)}; look at the images:"
    return "\n".join([head, *lines])

"""Levels against a truth that is known of every vertebra: a phantom competition's own.

In: levels of its studies, `truth/levels.csv`. Out: figures. Example::

    truth = read_truth(competition, "train")
    found = levels[levels["model_fold"] == levels["study_uid"].map(fold_of)]
    figures(judge(found, truth))["near"]               # share of levels within half a vertebra
"""

from typing import Any

import pandas as pd

from cspine_kit.core.paths import Competition, Split
from cspine_kit.data.centers import HALF_VERTEBRA_MM

PLAIN = "plain"
"""A whole neck, of no variety."""

SURE = 0.9


def read_truth(competition: Competition, split: Split) -> pd.DataFrame:
    """Table study_uid, variety, level, present, center_z_mm of a phantom competition's split."""
    path = competition.root / "truth" / "levels.csv"
    rows = pd.read_csv(path, keep_default_na=False)
    rows["variety"] = rows["variety"].replace("", PLAIN)
    kept = ["study_uid", "variety", "level", "present", "center_z_mm"]
    return rows.loc[rows["split"] == split, kept]


def judge(levels: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Levels beside their truth.

    Returns:
        The rows of `levels` with variety, present_true, center_z_mm_true, right (present or absent
        is told rightly) and error_mm (signed; NaN unless the level is there and said to be).
    """
    both = levels.merge(truth, on=["study_uid", "level"], suffixes=("", "_true"))
    both["right"] = both["present"] == both["present_true"]
    shown = both["present"] & both["present_true"]
    both["error_mm"] = (both["center_z_mm"] - both["center_z_mm_true"]).where(shown)
    return both


def figures(judged: pd.DataFrame) -> dict[str, Any]:
    """What levels are worth.

    Returns:
        studies; present_right: share of levels of which present or absent is told rightly; of the
        levels said to be there: near, the share within half a vertebra (a level that is not there
        is not near), sure, the share with a confidence of at least 0.9, and sure_near, how many of
        those are near; errors in mm of levels that are there and said to be.
    """
    said = judged[judged["present"]]
    away, near = judged["error_mm"].abs(), said["error_mm"].abs() <= HALF_VERTEBRA_MM
    sure = said["confidence"] >= SURE
    numbers = {
        "present_right": judged["right"].mean(),
        "near": near.mean(),
        "sure": sure.mean(),
        "sure_near": near[sure].mean(),
        "error_mean_mm": away.mean(),
        "error_median_mm": away.median(),
        "error_95_mm": away.quantile(0.95),
    }
    told = {name: round(float(value), 4) for name, value in numbers.items() if pd.notna(value)}
    return {"studies": int(judged["study_uid"].nunique()), **told}


def by_variety(judged: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Figures of each variety of phantoms, and of all."""
    own = {str(name): figures(rows) for name, rows in judged.groupby("variety", sort=True)}
    return {**own, "all": figures(judged)}

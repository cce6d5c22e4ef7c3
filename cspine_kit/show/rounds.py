"""What rounds of pseudo-labels are worth: levels decoded after each, against masks and truth.

In: a finished vertebra stage. Out: a row for each round and truth. Example::

    table = rounds_table(config, paths)
    table.loc[table["truth"] == "masks", ["round", "present_right", "error_median_mm"]]

Masks are those of the competition, never pseudo-masks; every study is judged by models that have
not learned from it. A phantom also knows the truth of studies without masks.
"""

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import Config
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.tables import MASK_COLUMNS, read_table
from cspine_kit.data.centers import HALF_VERTEBRA_MM
from cspine_kit.vision.calibration import true_centers
from cspine_kit.vision.names import VERTEBRA
from cspine_kit.vision.tasks.vertebra import combined, decode_study

COLUMNS = (
    *("round", "networks", "truth", "studies", "present_right"),
    *("error_median_mm", "error_95_mm", "near"),
)


def rounds_table(config: Config, paths: RunPaths) -> pd.DataFrame:
    """Columns `COLUMNS`: present or absent told rightly, error of the centers of levels that are
    there, and the share of levels said that lie within half a vertebra.

    Raises:
        ArtifactError: the vertebra stage has not run yet.
    """
    rows = read_table(paths.table(VERTEBRA), VERTEBRA)
    rows = rows[rows["fold"] == rows["model_fold"]]
    truths = {"masks": mask_truth(read_table(paths.table("slices"), "slices"))}
    phantom = Competition(config.competition.dir).levels_truth
    if phantom.exists():
        truths["phantom"] = pd.read_csv(phantom, dtype={"study_uid": str})
    found: list[dict[str, object]] = []
    for number in range(len(config.stage_rounds)):
        names = list(config.stage_after(number))
        levels = _decoded(rows, names)
        for name, truth in truths.items():
            of = {"round": number, "networks": " + ".join(names), "truth": name}
            found.append(of | _worth(levels, truth))
    return pd.DataFrame(found, columns=list(COLUMNS))


def mask_truth(slices: pd.DataFrame) -> pd.DataFrame:
    """study_uid, level, present, center_z_mm by the masks; levels that an end of the scan cuts are
    left out.

    Args:
        slices: table of this name.
    """
    parts = []
    masked = slices.dropna(subset=list(MASK_COLUMNS))
    for uid, own in masked.groupby("study_uid", sort=True):
        centers = true_centers(own.sort_values("slice_idx"))
        part = {"study_uid": uid, "level": LEVELS, "center_z_mm": centers}
        parts.append(pd.DataFrame(part).dropna())
    if not parts:
        return pd.DataFrame(columns=["study_uid", "level", "center_z_mm", "present"])
    joined = pd.concat(parts, ignore_index=True)
    return joined.assign(present=np.isfinite(joined["center_z_mm"]))


def _decoded(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    parts = []
    for uid, own in rows[rows["member"].isin(names)].groupby("study_uid", sort=True):
        said = [own[own["member"] == name] for name in names]
        if all(len(part) for part in said):
            ordered = [part.sort_values("at_mm", ascending=False) for part in said]
            parts.append(decode_study(combined(ordered)).assign(study_uid=uid))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _worth(levels: pd.DataFrame, truth: pd.DataFrame) -> dict[str, object]:
    if levels.empty or truth.empty:
        return {"studies": 0}
    both = levels.merge(truth, on=["study_uid", "level"], suffixes=("", "_true"))
    there = both["present_true"].astype(bool)
    away = (both["center_z_mm"] - both["center_z_mm_true"]).abs()
    error = away[both["present"] & there]
    near = (away <= HALF_VERTEBRA_MM)[both["present"]] & there[both["present"]]
    return {
        "studies": both["study_uid"].nunique(),
        "present_right": float((both["present"] == there).mean()),
        "error_median_mm": float(error.median()),
        "error_95_mm": float(error.quantile(0.95)),
        "near": float(near.mean()),
    }

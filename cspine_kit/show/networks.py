"""What each network of the vertebra stage is worth: the levels that the decode finds by it.

In: a finished vertebra stage. Out: a row for each network alone, for all together after each round
of pseudo-labels, and truth. Example::

    table = networks_table(config, paths)
    table.loc[table["truth"] == "masks", ["networks", "in_scan_right", "error_median_mm"]]

Masks are those of the competition, never pseudo-masks; every study is judged by models that have
not learned from it. A phantom also knows the truth of studies without masks.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import Config
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.core.tables import MASK_COLUMNS, read_table
from cspine_kit.data.centers import HALF_VERTEBRA_MM
from cspine_kit.vision.names import VERTEBRA
from cspine_kit.vision.oof.calibration import true_centers
from cspine_kit.vision.tasks.vertebra import combined, decode_study

COLUMNS = (
    *("round", "networks", "truth", "studies", "in_scan_right"),
    *("error_median_mm", "error_95_mm", "near"),
)


def networks_table(
    config: Config, paths: RunPaths, also: Sequence[Sequence[str]] = ()
) -> pd.DataFrame:
    """Columns `COLUMNS`: whether a level is in the scan told rightly, error of the centers of
    levels that are, and the share of levels said that lie within half a vertebra.

    Args:
        config: of the run.
        paths: its folder.
        also: networks of the last round to be heard together, besides each alone and all.

    Raises:
        ArtifactError: the vertebra stage has not run yet.
    """
    rows = read_table(paths.table(VERTEBRA), VERTEBRA)
    rows = rows[rows["fold"] == rows["model_fold"]]
    truths = {"masks": mask_truth(read_table(paths.table("slices"), "slices"))}
    phantom = Competition(config.competition.dir).levels_truth
    if phantom.exists():
        truths["phantom"] = pd.read_csv(phantom, dtype={"study_uid": str})
    together = [list(config.stage_after(k)) for k in range(len(config.stage_rounds))]
    speakers = [(k, names) for k, names in enumerate(together)]
    if len(together[-1]) > 1:
        some = [[name] for name in together[-1]] + [list(names) for names in also]
        speakers = [(len(together) - 1, names) for names in some] + speakers
    found: list[dict[str, object]] = []
    for number, names in speakers:
        levels = _own(paths, rows) if names == together[-1] else _decoded(rows, names)
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


def _own(paths: RunPaths, rows: pd.DataFrame) -> pd.DataFrame:
    """Levels as the run has decoded them, of each study by the model of its own fold."""
    levels = read_table(paths.table("levels"), "levels")
    folds = rows.drop_duplicates("study_uid").set_index("study_uid")["fold"]
    return levels[levels["study_uid"].map(folds) == levels["model_fold"]]


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
        "in_scan_right": float((both["present"] == there).mean()),
        "error_median_mm": float(error.median()),
        "error_95_mm": float(error.quantile(0.95)),
        "near": float(near.mean()),
    }

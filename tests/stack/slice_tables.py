"""A generator of slice tables: the truth is known, the models' errors are drawn."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS

PREVALENCE = (0.0723, 0.1412, 0.0362, 0.0535, 0.0802, 0.1372, 0.1947)
"""Of the real 2,019 studies (C1..C7)."""


@dataclass(frozen=True)
class World:
    """One synthetic competition: labels, folds, out-of-fold slices and crops."""

    labels: pd.DataFrame
    folds: pd.DataFrame
    slices: pd.DataFrame
    crops: pd.DataFrame


def draw_labels(n: int, rng: np.random.Generator, boost: float = 1.0) -> np.ndarray:
    """Labels (n, 7) with the real prevalence; a study's levels share a severity, neighbors break
    together."""
    severity = rng.normal(size=(n, 1))
    own = rng.normal(size=(n, 9))
    drive = 0.35 * severity + 0.55 * own[:, 1:8] + 0.35 * (own[:, :7] + own[:, 2:9])
    drive /= np.sqrt(0.35**2 + 0.55**2 + 2 * 0.35**2)
    cut = np.array(
        [np.quantile(drive[:, k], 1 - min(0.6, boost * q)) for k, q in enumerate(PREVALENCE)]
    )
    return (drive > cut).astype(np.float64)


def make_world(
    n: int = 60,
    *,
    n_folds: int = 3,
    members: tuple[str, ...] = ("a", "b"),
    noise: float = 0.7,
    boost: float = 2.0,
    step_mm: float = 2.0,
    diffuse: bool = False,
    seed: int = 0,
) -> World:
    """Studies whose slice logits depend on the truth through known noise.

    A fracture shows on a part of its level only, some barely; a third of all levels carry something
    that looks like one; fold models differ in bias and scale; each level has noise shared by all
    members (an odd-looking bone) and noise of each member. A `diffuse` world's fractures raise the
    whole level: then no statistic knows more than the mean does.
    """
    rng = np.random.default_rng(seed)
    truth = draw_labels(n, rng, boost)
    uids = [f"1.2.{i + 10}" for i in range(n)]
    fold = rng.permutation(np.arange(n) % n_folds)
    bias = rng.normal(scale=0.4, size=(len(members), n_folds, 7))
    scale = rng.uniform(0.8, 1.25, size=(len(members), n_folds))
    slices, crops = [], []
    for i, uid in enumerate(uids):
        heights = rng.normal(18.0, 1.5, size=7).clip(12, 24)
        edges = 30.0 + np.concatenate([[0], np.cumsum(heights)])
        z = np.arange(0.0, edges[-1] + 30.0, step_mm)
        center = (edges[:-1] + edges[1:]) / 2
        visible = 4.0 - 8.0 * np.abs(z[:, None] - center) / heights
        spot = center + rng.uniform(-0.3, 0.3, size=7) * heights
        width = rng.uniform(0.08, 0.35, size=7) * heights
        contrast = 3.0 * np.exp(rng.normal(scale=0.5, size=7)) * truth[i]
        mimic = 2.0 * np.exp(rng.normal(scale=0.5, size=7)) * (rng.random(7) < 0.35)
        shown = (contrast + mimic) * np.exp(-0.5 * ((z[:, None] - spot) / width) ** 2)
        if diffuse:
            shown = np.broadcast_to(0.7 * contrast, shown.shape)
        oddness = rng.normal(scale=noise, size=7)
        k = int(fold[i])
        for m, name in enumerate(members):
            own = rng.normal(scale=0.6 * noise, size=7)
            grain = rng.normal(scale=0.5, size=(len(z), 7))
            logits = -2.6 + shown + oddness + own + bias[m, k] + grain
            frame = {"member": name, "study_uid": uid, "slice_idx": np.arange(len(z))}
            frame |= {"model_fold": k, "fold": k, "z_mm": -z}
            seen = visible + rng.normal(scale=0.5, size=visible.shape)
            frame |= dict(zip(VERTEBRA_COLUMNS, seen.T, strict=True))
            frame |= dict(zip(FRACTURE_COLUMNS, (scale[m, k] * logits).T, strict=True))
            slices.append(pd.DataFrame(frame))
        inside = visible > 0
        for j, level in enumerate(LEVELS):
            rows = np.flatnonzero(inside[:, j])
            crop = {"study_uid": uid, "level": level, "model_fold": k}
            crop |= {"z0": rows[0], "z1": rows[-1], "center_z_mm": -center[j]}
            crop |= {"center_y_px": 100.0, "center_x_px": 100.0, "confidence": 0.9}
            crops.append(crop | {"source": "model"})
    labels = pd.DataFrame(truth, columns=list(LEVELS))
    labels.insert(0, "study_uid", uids)
    labels.insert(1, OVERALL, truth.max(axis=1))
    folds = pd.DataFrame({"study_uid": uids, "group": uids, "stratum": 0, "fold": fold})
    return World(
        labels=labels[["study_uid", *TARGETS]],
        folds=folds,
        slices=pd.concat(slices, ignore_index=True),
        crops=pd.DataFrame(crops),
    )

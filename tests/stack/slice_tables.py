"""A generator of slice tables: the truth is known, the models' errors are drawn.

In: sizes and a seed. Out: a `World`: out-of-fold tables and, where asked for, hidden studies that
every fold model has predicted, as a kernel sees them. Example::

    world = make_world(600, hidden=2000, seed=1)
    aggregate(world.hidden.slices, world.hidden.levels)

Fold models of one member differ in bias, in scale and in what they make of a study, by what the
demo's two members show on its 40 hidden studies (log-mean-exp of a level's logits, whose spread
over studies is 1.8): the bias of a level has a standard deviation of 0.53 over fold models, the
logarithm of the scale one of 0.11, and two fold models correlate by 0.80 (0.74 to 0.85).
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import AXIAL, LEVELS, OVERALL, TARGETS
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS

PREVALENCE = (0.0723, 0.1412, 0.0362, 0.0535, 0.0802, 0.1372, 0.1947)
"""Of the real 2,019 studies (C1..C7)."""


BIAS_SD = 0.5
SCALE_RANGE = (0.8, 1.25)
OWN_NOISE = 0.8
"""Of each fold model, beside the noise that all models share."""


@dataclass(frozen=True)
class World:
    """One synthetic competition: labels, folds, slices and levels; `hidden` has fold -1."""

    labels: pd.DataFrame
    folds: pd.DataFrame
    slices: pd.DataFrame
    levels: pd.DataFrame
    hidden: "World | None" = None


@dataclass(frozen=True)
class FoldModels:
    """How every member's fold models err: bias (members, folds, 7) and scale (members, folds)."""

    names: tuple[str, ...]
    bias: np.ndarray
    scale: np.ndarray
    noise: float
    step_mm: float
    diffuse: bool


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


@dataclass(frozen=True)
class Seen:
    """One study as one fold model of one member sees it: (n,) axial z_mm, (n, 7) logits."""

    member: str
    study_uid: str
    model_fold: int
    fold: int
    z_mm: np.ndarray
    vertebra: np.ndarray
    fracture: np.ndarray


def draw_study(
    rng: np.random.Generator,
    uid: str,
    truth: np.ndarray,
    *,
    models: FoldModels,
    model_folds: tuple[int, ...],
    fold: int,
) -> tuple[list[Seen], list[dict]]:
    """One study as some fold models see it, and its levels."""
    heights = rng.normal(18.0, 1.5, size=7).clip(12, 24)
    edges = 30.0 + np.concatenate([[0], np.cumsum(heights)])
    z = np.arange(0.0, edges[-1] + 30.0, models.step_mm)
    center = (edges[:-1] + edges[1:]) / 2
    visible = 4.0 - 8.0 * np.abs(z[:, None] - center) / heights
    spot = center + rng.uniform(-0.3, 0.3, size=7) * heights
    width = rng.uniform(0.08, 0.35, size=7) * heights
    contrast = 3.0 * np.exp(rng.normal(scale=0.5, size=7)) * truth
    mimic = 2.0 * np.exp(rng.normal(scale=0.5, size=7)) * (rng.random(7) < 0.35)
    shown = (contrast + mimic) * np.exp(-0.5 * ((z[:, None] - spot) / width) ** 2)
    if models.diffuse:
        shown = np.broadcast_to(0.7 * contrast, shown.shape)
    oddness = rng.normal(scale=models.noise, size=7)
    inside = [np.flatnonzero(visible[:, j] > 0) for j in range(len(LEVELS))]
    slices, levels = [], []
    for k in model_folds:
        for m, name in enumerate(models.names):
            own = rng.normal(scale=OWN_NOISE * models.noise, size=7)
            grain = rng.normal(scale=0.5, size=(len(z), 7))
            logits = models.scale[m, k] * (-2.6 + shown + oddness + own + models.bias[m, k] + grain)
            seen = visible + rng.normal(scale=0.5, size=visible.shape)
            slices.append(Seen(name, uid, k, fold, -z, seen, logits))
        for j, level in enumerate(LEVELS):
            row = {"study_uid": uid, "level": level, "model_fold": k, "present": True}
            row |= {"z_top_mm": -z[inside[j][0]], "z_bottom_mm": -z[inside[j][-1]]}
            row |= {"center_z_mm": -center[j], "center_y_mm": 50.0, "center_x_mm": 50.0}
            levels.append(row | {"confidence": 0.9, "source": "model"})
    return slices, levels


def slice_table(seen: list[Seen]) -> pd.DataFrame:
    """Contract `oof_slices` (but for its order)."""
    counts = [len(s.z_mm) for s in seen]
    frame = {
        name: np.repeat([getattr(s, name) for s in seen], counts)
        for name in ("member", "study_uid")
    }
    frame["plane"] = AXIAL
    frame["position"] = np.concatenate([np.arange(n) for n in counts])
    frame["slice_idx"] = frame["position"]
    frame |= {
        name: np.repeat([getattr(s, name) for s in seen], counts) for name in ("model_fold", "fold")
    }
    frame["at_mm"] = np.concatenate([s.z_mm for s in seen])
    vertebra = np.concatenate([s.vertebra for s in seen])
    fracture = np.concatenate([s.fracture for s in seen])
    frame |= dict(zip(VERTEBRA_COLUMNS, vertebra.T, strict=True))
    frame |= dict(zip(FRACTURE_COLUMNS, fracture.T, strict=True))
    return pd.DataFrame(frame)


def make_world(
    n: int = 60,
    *,
    n_folds: int = 3,
    members: tuple[str, ...] = ("a", "b"),
    noise: float = 0.7,
    boost: float = 2.0,
    step_mm: float = 2.0,
    diffuse: bool = False,
    hidden: int = 0,
    seed: int = 0,
) -> World:
    """Studies whose slice logits depend on the truth through known noise.

    A fracture shows on a part of its level only, some barely; a third of all levels carry something
    that looks like one; fold models differ in bias and scale; each level has noise shared by all
    members (an odd-looking bone) and noise of each fold model. A `diffuse` world's fractures raise
    the whole level: then no statistic knows more than the mean does. `hidden` studies are drawn
    after all others, so the training tables do not depend on their number.
    """
    rng = np.random.default_rng(seed)
    truth = draw_labels(n, rng, boost)
    fold = rng.permutation(np.arange(n) % n_folds)
    bias = rng.normal(scale=BIAS_SD, size=(len(members), n_folds, 7))
    scale = rng.uniform(*SCALE_RANGE, size=(len(members), n_folds))
    models = FoldModels(members, bias, scale, noise, step_mm, diffuse)
    uids = [f"1.2.{i + 10}" for i in range(n)]
    alone = [(int(k),) for k in fold]
    known = _world(rng, uids, truth, fold=fold, models=models, model_folds=alone)
    if not hidden:
        return known
    uids, test = [f"1.3.{i + 10}" for i in range(hidden)], np.full(hidden, -1)
    every = [tuple(range(n_folds))] * hidden
    drawn = draw_labels(hidden, rng, boost)
    unseen = _world(rng, uids, drawn, fold=test, models=models, model_folds=every)
    return replace(known, hidden=unseen)


def _world(
    rng: np.random.Generator,
    uids: list[str],
    truth: np.ndarray,
    *,
    fold: np.ndarray,
    models: FoldModels,
    model_folds: list[tuple[int, ...]],
) -> World:
    slices, levels = [], []
    for uid, own_truth, k, seen_by in zip(uids, truth, fold, model_folds, strict=True):
        rows, seven = draw_study(
            rng, uid, own_truth, models=models, model_folds=seen_by, fold=int(k)
        )
        slices += rows
        levels += seven
    labels = pd.DataFrame(truth, columns=list(LEVELS))
    labels.insert(0, "study_uid", uids)
    labels.insert(1, OVERALL, truth.max(axis=1))
    return World(
        labels=labels[["study_uid", *TARGETS]],
        folds=pd.DataFrame({"study_uid": uids, "group": uids, "stratum": 0, "fold": fold}),
        slices=slice_table(slices),
        levels=pd.DataFrame(levels),
    )

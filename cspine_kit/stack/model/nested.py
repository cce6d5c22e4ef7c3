"""Fitting both heads with everything chosen on inner folds, and predicting what was held out.

In: a `Sample` of out-of-fold rows, folds. Out: `Heads`, out-of-fold probabilities. Example::

    sample = sample_of(features, labels, config.stack)
    heads, settings = fit_heads(sample, seed=1)
    fold = sample.labels["fold"].to_numpy()
    probs, absent, chosen = cross_fit(sample, fold, seed=1)

A row's features come from a network that never saw its study; `sample_of` checks that. The heads
that predict it in `cross_fit` have never seen it either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import N_LEVELS, TARGETS
from cspine_kit.core.config import StackConfig
from cspine_kit.core.errors import TableError
from cspine_kit.core.metric import row_weights
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray
from cspine_kit.core.runs import derive_seed
from cspine_kit.stack.features.names import COLUMN, feature_columns
from cspine_kit.stack.features.units import SHOWN
from cspine_kit.stack.model.design import FeatureTable, level_design, overall_design
from cspine_kit.stack.model.folds import Progress, deal_folds, each_fold
from cspine_kit.stack.model.head import Settings, Task, fit_head
from cspine_kit.stack.model.stack import Heads

INNER_FOLDS = 4
BLANK = 0.5
"""Share of the training studies whose raw columns are blanked."""


@dataclass(frozen=True)
class Sample:
    """Out-of-fold rows and their labels, study by study."""

    table: FeatureTable
    labels: pd.DataFrame
    config: StackConfig

    @property
    def y(self) -> FloatArray:
        """(n, 8) labels in the order of `TARGETS`."""
        return self.labels[list(TARGETS)].to_numpy(np.float64)

    def take(self, rows: BoolArray) -> "Sample":
        """Some studies."""
        labels = self.labels[rows].reset_index(drop=True)
        return Sample(self.table.take(rows), labels, self.config)


HeadSettings = tuple[Settings, Settings]


def fit_heads(
    sample: Sample, *, seed: int, settings: HeadSettings | None = None
) -> tuple[Heads, HeadSettings]:
    """Both heads on all studies of a sample; everything is chosen on inner folds.

    The overall head learns from inner out-of-fold probabilities: it never sees the level head's
    opinion of a study that the level head was fitted on.
    """
    table, y, config = sample.table, sample.y, sample.config
    blank = np.random.default_rng(derive_seed(seed, "blank")).random(table.n) < BLANK
    table = table.without(COLUMN, blank)
    w = row_weights(y, config.form)
    w_level, w_overall = w[:, :N_LEVELS].ravel(), w[:, N_LEVELS]
    inner = deal_folds(sample.labels, seed, INNER_FOLDS, table.model_fold)
    task = Task(
        level_design(table),
        y[:, :N_LEVELS].ravel(),
        w_level / w_level.mean(),
        np.repeat(inner, N_LEVELS),
    )
    known = settings or (None, None)
    level, level_probs = fit_head(task, config, seed=derive_seed(seed, "level"), settings=known[0])
    levels = level_probs.reshape(-1, N_LEVELS)
    task = Task(overall_design(table, levels), y[:, N_LEVELS], w_overall / w_overall.mean(), inner)
    overall, _ = fit_head(task, config, seed=derive_seed(seed, "overall"), settings=known[1])
    return Heads(table.columns, level, overall), (level.settings, overall.settings)


def cross_fit(
    sample: Sample,
    fold: IntArray,
    *,
    seed: int,
    jobs: int = 0,
    settings: Mapping[int, HeadSettings] | None = None,
    progress: Progress | None = None,
) -> tuple[FloatArray, FloatArray, dict[int, HeadSettings]]:
    """Out-of-fold probabilities: fold k by heads that were fitted on the other folds.

    Args:
        sample, fold: n studies, (n,) folds.
        seed, jobs, progress: as in `each_fold`.
        settings: what another fit of the same folds has chosen, to be taken as it is.

    Returns:
        (n, 8) probabilities, the same with all raw columns blanked, and what was chosen by fold.
    """
    clip = sample.config.clip
    everything = np.ones(sample.table.n, dtype=bool)
    bare = sample.table.without(COLUMN, everything)

    def fit(k: int) -> tuple[Heads, HeadSettings]:
        known = None if settings is None else settings[k]
        return fit_heads(sample.take(fold != k), seed=derive_seed(seed, k), settings=known)

    fitted = each_fold(fit, fold.tolist(), jobs, progress)
    probs, absent = np.zeros_like(sample.y), np.zeros_like(sample.y)
    for k, (heads, _) in fitted.items():
        held = fold == k
        probs[held] = heads.predict(sample.table.take(held))
        absent[held] = heads.predict(bare.take(held))
    chosen = {k: own for k, (_, own) in fitted.items()}
    return np.clip(probs, clip, 1.0 - clip), np.clip(absent, clip, 1.0 - clip), chosen


def _aligned_labels(labels: pd.DataFrame, study_uid: Any) -> pd.DataFrame:
    """Labels in the order of the studies.

    Raises:
        TableError: a study without labels, doubled labels, or a label that is not 0 or 1.
    """
    doubled = labels.loc[labels["study_uid"].duplicated(), "study_uid"].head(SHOWN).tolist()
    if doubled:
        raise TableError(f"labels: studies given twice: {doubled}")
    aligned = labels.set_index("study_uid", drop=False).reindex(list(study_uid))
    values = aligned[list(TARGETS)].to_numpy(np.float64)
    wrong = ~np.isin(values, (0.0, 1.0)).all(axis=1)
    if wrong.any():
        names = [str(u) for u in np.asarray(study_uid)[wrong][:SHOWN]]
        raise TableError(f"labels: {int(wrong.sum())} studies without labels 0 / 1: {names}")
    return aligned.reset_index(drop=True)


def sample_of(features: pd.DataFrame, labels: pd.DataFrame, config: StackConfig) -> Sample:
    """Checked out-of-fold rows.

    Raises:
        TableError: rows that may have leaked, or faulty labels.
    """
    leaked = features[features["fold"] != features["model_fold"]]
    if len(leaked):
        rows = leaked[["study_uid", "fold", "model_fold"]].head(SHOWN).to_dict("records")
        raise TableError(f"features: rows made by a model that may have seen their study: {rows}")
    table = FeatureTable.of(features, tuple(feature_columns(features.columns)))
    return Sample(table, _aligned_labels(labels, table.study_uid), config)

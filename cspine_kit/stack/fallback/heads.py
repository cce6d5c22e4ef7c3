"""Two heads that read one row of header features per study: the levels and the overall.

In: features (n, columns), labels (n, 8), inner folds. Out: `HeaderHeads`. Example::

    x, levels = rng.normal(size=(60, 3)), rng.random((60, 7)) < 0.1
    y = np.column_stack([levels, levels.any(axis=1)]).astype(float)
    heads = fit_header_heads(x, y, np.arange(60) % 4, config.stack, seed=1)
    heads.predict(x[:5])                         # (5, 8)

The signal is weak and made of fine steps (a site's slice spacing): many shallow random trees over a
ridge, and a pull back to the constant where the inner folds do not prove a gain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import N_LEVELS, TARGETS
from cspine_kit.core.config import StackConfig
from cspine_kit.core.metric import row_weights
from cspine_kit.core.numbers import FloatArray, IntArray, log_losses, logit, sigmoid
from cspine_kit.core.runs import derive_seed
from cspine_kit.stack.model.folds import Progress, deal_folds, each_fold
from cspine_kit.stack.model.head import Design, Head, Task, fit_head

HEADER_STACK = StackConfig(
    form="per_exam",
    folds=5,
    seeds=3,
    rounds=600,
    patience=60,
    learning_rate=0.03,
    num_leaves=15,
    min_rows=10,
    feature_fraction=0.4,
    bagging_fraction=0.7,
    extra_trees=True,
    l2=2.0,
    clip=0.003,
)

SUPPORT_STACK = HEADER_STACK.model_copy(update={"seeds": 1, "rounds": 200, "patience": 20})
"""The same in a tenth of the time, for where headers only support something better."""

DOUBT = 1.0
"""Standard errors by which a gain must exceed chance: settings were chosen on the same rows."""

FEW_STUDIES, INNER_FOLDS = 30, 4


def header_designs(x: FloatArray) -> tuple[Design, Design]:
    """Features (n, columns) as the level head (seven rows per study) and the overall see them."""
    free = np.zeros(x.shape[1], dtype=bool)

    def design(rows: FloatArray, category: IntArray, kinds: int) -> Design:
        tree = rows.astype(np.float32)
        return Design(rows, tree, category, kinds, tuple(free), np.ones(len(free)), free)

    level = np.tile(np.arange(N_LEVELS), len(x))
    wide = design(np.repeat(x, N_LEVELS, axis=0), level, N_LEVELS)
    return wide, design(x, np.zeros(len(x), dtype=np.int64), 1)


@dataclass(frozen=True)
class HeaderHeads:
    """Fitted heads; `trust` in [0, 1]: how far they move from `constant` (8,), in log-odds."""

    level: Head
    overall: Head
    constant: FloatArray
    trust: float
    clip: float

    def predict(self, x: FloatArray) -> FloatArray:
        """Probabilities (n, 8) of features (n, columns)."""
        odds = np.tile(logit(self.constant), (len(x), 1))
        if self.trust > 0.0:
            levels, overall = header_designs(x)
            raw = [self.level.odds(levels).reshape(-1, N_LEVELS), self.overall.odds(overall)]
            odds += self.trust * (np.column_stack(raw) - odds)
        return np.clip(sigmoid(odds), self.clip, 1.0 - self.clip)

    def save(self, folder: Path, stem: str) -> dict[str, Any]:
        """Write the boosters into `folder`; returns the rest as plain values."""
        heads = {"level": self.level, "overall": self.overall}
        return vars(self) | {n: head.save(folder, f"{stem}_{n}") for n, head in heads.items()}

    @classmethod
    def load(cls, folder: Path, value: dict[str, Any]) -> "HeaderHeads":
        """Inverse of `save`."""
        heads = {name: Head.load(folder, value[name]) for name in ("level", "overall")}
        return cls(**{**value, **heads, "constant": np.asarray(value["constant"])})


def proven_share(y: FloatArray, probs: FloatArray, others: FloatArray, w: FloatArray) -> float:
    """How much of the way from `others` to `probs` held-out rows justify, 0..1.

    1 - (`DOUBT` standard errors of the mean gain over the gain)^2, at least 0: the positive-part
    James-Stein factor. 0 where the gain is no larger than its errors or rests on fewer than
    `FEW_STUDIES`, near 1 where it is certain.
    """
    gain = (w * (log_losses(y, others) - log_losses(y, probs))).sum(axis=1)
    mean, error = gain.mean(), gain.std() / np.sqrt(len(gain))
    proven = mean > 0 and len(gain) >= FEW_STUDIES
    return float(max(0.0, 1.0 - (DOUBT * error / mean) ** 2)) if proven else 0.0


def _rates(task: Task) -> FloatArray:
    """Rate of each category, smoothed by one row at the common rate (that one by a row at 1/2)."""
    design, hits = task.design, task.weights * task.y
    common = (hits.sum() + 0.5) / (task.weights.sum() + 1.0)
    counts = [np.bincount(design.category, v, design.n_categories) for v in (hits, task.weights)]
    rates: FloatArray = (counts[0] + common) / (counts[1] + 1.0)
    return rates


def fit_header_heads(
    x: FloatArray, y: FloatArray, inner: IntArray, config: StackConfig, *, seed: int
) -> HeaderHeads:
    """Fit both heads; ridge strength, tree count and trust are chosen on the inner folds.

    Args:
        x, y, inner: (n, columns) finite features, (n, 8) labels, (n,) inner fold of each study.
        config: form, clip and the boosters' settings.
        seed: of the boosters.
    """
    w = row_weights(y, config.form)
    parts = (
        (y[:, :N_LEVELS].ravel(), w[:, :N_LEVELS].ravel(), np.repeat(inner, N_LEVELS)),
        (y[:, N_LEVELS], w[:, N_LEVELS], inner),
    )
    heads, held, others, constant = [], [], [], []
    for (labels, weights, split), design in zip(parts, header_designs(x), strict=True):
        task = Task(design, labels, weights / weights.mean(), split)
        head, probs = fit_head(task, config, seed=derive_seed(seed, len(labels)))
        rates = np.zeros(len(labels))
        for _, rest, out in task.splits():
            rates[out] = _rates(rest)[design.category[out]]
        heads.append(head)
        held.append(probs.reshape(len(x), -1))
        others.append(rates.reshape(len(x), -1))
        constant.append(_rates(task))
    probs, flat = np.column_stack(held), np.column_stack(others)
    trust = proven_share(y, probs, flat, w)
    return HeaderHeads(heads[0], heads[1], np.concatenate(constant), trust, config.clip)


def heads_by_fold(
    x: FloatArray,
    labels: pd.DataFrame,
    fold: IntArray,
    config: StackConfig,
    *,
    seeds: Mapping[int, int],
    jobs: int = 0,
    progress: Progress | None = None,
) -> dict[int, HeaderHeads]:
    """For each fold, heads fitted on the other studies.

    Args:
        x, fold: (n, columns) finite features, (n,) folds.
        labels: study_uid, the eight targets, and optionally group, of the same n studies.
        config: form, clip and the boosters' settings.
        seeds: by fold.
        jobs, progress: as in `each_fold`.
    """
    y = labels[list(TARGETS)].to_numpy(np.float64)

    def fit(k: int) -> HeaderHeads:
        rest = fold != k
        inner = deal_folds(labels[rest].reset_index(drop=True), seeds[k], INNER_FOLDS)
        return fit_header_heads(x[rest], y[rest], inner, config, seed=seeds[k])

    return each_fold(fit, seeds, jobs, progress)


def held_out(heads: Mapping[int, HeaderHeads], x: FloatArray, fold: IntArray) -> FloatArray:
    """Probabilities (n, 8) of each row by its fold's heads, else (fold -1) the mean of all."""
    probs = np.mean([own.predict(x) for own in heads.values()], axis=0)
    for k, own in heads.items():
        rows = fold == k
        probs[rows] = own.predict(x[rows])
    return probs

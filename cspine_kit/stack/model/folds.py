"""Folds of the stack: groups whole, labels spread evenly, across the networks' folds.

In: labels (study_uid, targets, optionally group), strata. Out: a fold per study. Example::

    fold = deal_folds(labels, 1, 5, strata=labels["fold"].to_numpy())
    pd.crosstab(fold, labels["fold"].to_numpy())         # stack folds by networks' folds

Every stack fold then holds studies of every fold model, and the heads that predict it have learned
from outputs of every fold model, as the heads that ship have.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.numbers import IntArray
from cspine_kit.core.runs import fingerprint
from cspine_kit.stack.model.linear import one_blas_thread

Fitted = TypeVar("Fitted")
Progress = Callable[[], object]


def deal_folds(labels: pd.DataFrame, seed: int, n: int, strata: IntArray | None = None) -> IntArray:
    """Fold 0..n-1 of each study.

    Args:
        labels: one row per study; groups come from the column `group` where there is one.
        seed: of the order among equals.
        n: folds.
        strata: (studies,) spread evenly too; without it the overall label alone is.
    """
    group = labels["group" if "group" in labels else "study_uid"].to_numpy()
    frame = pd.DataFrame({"positive": labels[OVERALL].to_numpy(np.float64)})
    keys = ["positive"]
    if strata is not None:
        frame = frame.assign(stratum=strata, levels=labels[list(LEVELS)].to_numpy().sum(axis=1))
        keys = ["positive", "stratum", "levels"]
    of_group = frame.groupby(group).max()[keys]
    tie = [fingerprint(seed, str(name)) for name in of_group.index]
    dealt = of_group.assign(tie=tie).sort_values([*keys, "tie"]).index
    fold_of = dict(zip(dealt, np.arange(len(dealt)) % n, strict=True))
    return np.array([fold_of[name] for name in group], dtype=np.int64)


def each_fold(
    fit: Callable[[int], Fitted], folds: Iterable[int], jobs: int, progress: Progress | None
) -> dict[int, Fitted]:
    """What `fit` gives for every fold, `jobs` (0: the usable cores) at a time; `progress` is called
    after each.

    Threads suffice: LightGBM releases the lock, and each booster runs on one thread, so that the
    same inputs and seed give the same bytes for any `jobs`.
    """

    def one(k: int) -> Fitted:
        found = fit(k)
        if progress is not None:
            progress()
        return found

    order = sorted(set(folds))
    with one_blas_thread(), ThreadPoolExecutor(min(jobs or usable_cores(), len(order))) as pool:
        return dict(zip(order, pool.map(one, order), strict=True))

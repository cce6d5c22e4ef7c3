"""The stack: per outer fold a level head and an overall head, fitted nested and grouped.

In: features (`aggregate`) and labels. Out: a `Stack`, which predicts the eight targets of
out-of-fold and of test studies by the same code. Example::

    stack = fit_stack(features, labels, config.stack, seed=config.seed, jobs=2)
    stack.predict(features)              # out-of-fold: fold k is predicted by heads without fold k
    stack.save(Path("models")); Stack.load(Path("models")).predict(test_features)

Heads k never see fold k. At test time the features of fold model k go through heads k, and
probabilities are averaged last.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import N_LEVELS, OVERALL, TARGETS
from cspine_kit.core.config import StackConfig
from cspine_kit.core.errors import ArtifactError, TableError
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.metric import row_weights
from cspine_kit.core.numbers import FloatArray, IntArray
from cspine_kit.core.runs import derive_seed, fingerprint, publish, read_json, write_json
from cspine_kit.stack.fallback.heads import SUPPORT_STACK, HeaderHeads, fit_header_heads
from cspine_kit.stack.features.aggregate import feature_columns
from cspine_kit.stack.features.units import SHOWN
from cspine_kit.stack.model.blend import blend, greedy_weights, plain_weights, search_weights
from cspine_kit.stack.model.calibrate import Finish, fit_finish, shift_prior
from cspine_kit.stack.model.design import FeatureTable, level_design, overall_design
from cspine_kit.stack.model.head import Head, Task, fit_head
from cspine_kit.stack.model.linear import one_blas_thread
from cspine_kit.stack.model.search import search
from cspine_kit.stack.scores.baselines import (
    MEAN_OF_MEMBERS,
    all_predictions,
    average_folds,
    formulas,
)

STACK, CALIBRATED, BLEND = "stack", "stack_calibrated", "blend"
STACK_MODELS = (STACK, CALIBRATED, BLEND, f"{BLEND}_search", f"{BLEND}_mean")
"""The raw heads; with calibration, coherence and clip; greedy, searched and plain blends with the
fixed formulas named in `COMPONENTS`."""

COMPONENTS = (MEAN_OF_MEMBERS, "maximum", "top5_mean")
BLENDED = (STACK, *COMPONENTS)
"""What every blend mixes."""

INNER_FOLDS = 4


@dataclass(frozen=True)
class FoldHeads:
    """What is fitted without fold k; `blends` maps a blend's name to weights by component."""

    header: HeaderHeads
    level: Head
    overall: Head
    finish: Finish
    blends: dict[str, dict[str, float]]

    def predict(self, table: FeatureTable) -> FloatArray:
        """Raw probabilities (n units, 8): the levels first, the overall from them."""
        lifts = self.header.lifts(table.site)
        levels = self.level.predict(level_design(table, lifts)).reshape(-1, N_LEVELS)
        overall = self.overall.predict(overall_design(table, levels, lifts))
        return np.column_stack([levels, overall])

    def models(
        self, table: FeatureTable, formula_probs: Mapping[str, FloatArray], clip: float
    ) -> dict[str, FloatArray]:
        """(n units, 8) probabilities of every model of `STACK_MODELS`."""
        raw = self.predict(table)
        parts = {STACK: raw, **{name: formula_probs[name] for name in COMPONENTS}}
        blends = {name: blend(parts, weights) for name, weights in self.blends.items()}
        models = {name: np.clip(p, clip, 1.0 - clip) for name, p in {STACK: raw, **blends}.items()}
        return {**models, CALIBRATED: self.finish.apply(raw)}


@dataclass(frozen=True)
class Stack:
    """Fitted heads per fold and the feature columns they read.

    `clip`: probabilities end inside [clip, 1 - clip]. `ships`: the model that `predict` follows by
    default, "mean_of_members" where nothing fitted beats that mean on outer folds. `rates`: shares
    of positives in the training labels; with `prevalence`, the overall share expected in the test
    set, test rows (fold -1) are shifted to it. `notes`: figures for the report.
    """

    columns: tuple[str, ...]
    folds: dict[int, FoldHeads]
    clip: float
    rates: tuple[float, ...]
    prevalence: float | None = None
    ships: str = STACK
    notes: dict[str, Any] = field(default_factory=dict)

    def predict(self, features: pd.DataFrame, model: str | None = None) -> pd.DataFrame:
        """Probabilities of the eight targets, averaged over the fold models present.

        Args:
            features: rows of `aggregate`; out-of-fold rows have one model_fold per study, test rows
                all of them.
            model: one of `STACK_MODELS` or a fixed formula (`baselines.formulas`); by default what
                ships.

        Returns:
            study_uid and the eight targets in order, one row per study, sorted.

        Raises:
            TableError: a feature column is missing or not finite, a study without its seven levels,
                or a model_fold without heads.
        """
        units, models = self._models(features)
        return average_folds(units, models[self.ships if model is None else model])

    def predict_all(self, features: pd.DataFrame) -> pd.DataFrame:
        """Every model and fixed formula as rows of contract `predictions`; raises as `predict`."""
        units, models = self._models(features)
        fold = features.drop_duplicates("study_uid").set_index("study_uid")["fold"]
        return all_predictions(units, models, fold)

    def _models(self, features: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, FloatArray]]:
        """Units (study_uid) and (n units, 8) probabilities by model."""
        table = FeatureTable.of(features, self.columns)
        unknown = sorted(set(table.model_fold.tolist()) - set(self.folds))
        if unknown:
            raise TableError(
                f"features: model_fold {unknown} has no heads; the stack holds {sorted(self.folds)}"
            )
        fixed = formulas(features)
        models = {name: np.zeros((table.n, len(TARGETS))) for name in STACK_MODELS}
        for k, heads in self.folds.items():
            rows = table.model_fold == k
            if rows.any():
                own = {name: probs[rows] for name, probs in fixed.items()}
                for name, probs in heads.models(table.take(rows), own, self.clip).items():
                    models[name][rows] = probs
        if self.prevalence is not None:
            models = {name: self._shifted(probs, table.fold < 0) for name, probs in models.items()}
        return pd.DataFrame({"study_uid": table.study_uid}), {**fixed, **models}

    def _shifted(self, probs: FloatArray, test: NDArray[np.bool_]) -> FloatArray:
        """Test rows at the expected prevalence; levels keep their share of fractured studies."""
        shifted = probs.copy()
        ratio = (self.prevalence or self.rates[-1]) / self.rates[-1]
        for j, rate in enumerate(self.rates):
            shifted[test, j] = shift_prior(probs[test, j], rate, min(rate * ratio, 0.99))
        return np.clip(shifted, self.clip, 1.0 - self.clip)

    def save(self, folder: Path) -> None:
        """Write stack.json and one LightGBM text file per booster, atomically; no pickle."""
        folds: dict[str, Any] = {}
        with publish(folder) as temporary:
            temporary.mkdir()
            for k, heads in self.folds.items():
                folds[str(k)] = {
                    name: head.save(temporary, f"fold_{k}_{name}")
                    for name, head in (("level", heads.level), ("overall", heads.overall))
                }
                folds[str(k)]["header"] = heads.header.save(temporary, f"fold_{k}_header")
                folds[str(k)]["finish"] = heads.finish.to_json()
                folds[str(k)]["blends"] = heads.blends
            meta: dict[str, Any] = {
                "columns": list(self.columns),
                "clip": self.clip,
                "ships": self.ships,
            }
            meta |= {"rates": list(self.rates), "prevalence": self.prevalence}
            write_json(temporary / "stack.json", {**meta, "notes": self.notes, "folds": folds})

    @classmethod
    def load(cls, folder: Path, faults: dict[str, str] | None = None) -> "Stack":
        """Read what `save` wrote.

        Args:
            folder: holds stack.json and the boosters.
            faults: gets a fold whose files cannot be read, by "stack fold k", instead of an error.

        Raises:
            ArtifactError: no stack.json in the folder.
        """
        if not (folder / "stack.json").exists():
            raise ArtifactError(f"no stack.json in {folder}; run make stack first")
        raw = read_json(folder / "stack.json")
        folds = {}
        for k, v in raw["folds"].items():
            try:
                folds[int(k)] = FoldHeads(
                    HeaderHeads.load(folder, v["header"]),
                    Head.load(folder, v["level"]),
                    Head.load(folder, v["overall"]),
                    Finish.from_json(v["finish"]),
                    v["blends"],
                )
            except Exception as error:
                if faults is None:
                    raise
                faults[f"stack fold {k}"] = f"{type(error).__name__}: {error}"
        return cls(
            columns=tuple(raw["columns"]),
            folds=folds,
            clip=raw["clip"],
            rates=tuple(raw["rates"]),
            prevalence=raw["prevalence"],
            ships=raw["ships"],
            notes=raw["notes"],
        )


def inner_folds(labels: pd.DataFrame, seed: int, n: int = INNER_FOLDS) -> IntArray:
    """Inner fold 0..n-1 of each study: groups stay whole, positives are spread evenly.

    Groups come from the column `group` where there is one, else each study is its own.
    """
    group = labels["group" if "group" in labels else "study_uid"]
    positive = labels.groupby(group.to_numpy())[OVERALL].max()
    order = sorted(positive.index, key=lambda g: (positive[g], fingerprint(seed, str(g))))
    fold_of = {g: i % n for i, g in enumerate(order)}
    return np.array([fold_of[g] for g in group], dtype=np.int64)


def _fit_fold(
    table: FeatureTable,
    labels: pd.DataFrame,
    formula_probs: Mapping[str, FloatArray],
    config: StackConfig,
    seed: int,
) -> FoldHeads:
    """Everything fitted on the studies given.

    The overall head, the finish and the blends learn from inner out-of-fold probabilities, so that
    none of them sees a head's opinion of a study that the head was fitted on.
    """
    y = labels[list(TARGETS)].to_numpy(np.float64)
    w = row_weights(y, config.form)
    w_level, w_overall = w[:, :N_LEVELS].ravel(), w[:, N_LEVELS]
    inner = inner_folds(labels, seed)
    header, lifts = fit_header_heads(
        table.site, y, inner, SUPPORT_STACK.model_copy(update={"form": config.form}), seed=seed
    )
    task = Task(
        level_design(table, lifts),
        y[:, :N_LEVELS].ravel(),
        w_level / w_level.mean(),
        np.repeat(inner, N_LEVELS),
    )
    if config.search_minutes > 0:
        config = search(task, config, seed=derive_seed(seed, "search"))
    level, level_probs = fit_head(task, config, seed=derive_seed(seed, "level"))
    levels = level_probs.reshape(-1, N_LEVELS)
    task = Task(
        overall_design(table, levels, lifts), y[:, N_LEVELS], w_overall / w_overall.mean(), inner
    )
    overall, overall_probs = fit_head(task, config, seed=derive_seed(seed, "overall"))
    held_out = np.column_stack([levels, overall_probs])
    parts = {STACK: held_out, **{name: formula_probs[name] for name in COMPONENTS}}
    blends = {
        BLEND: greedy_weights(parts, y, w),
        f"{BLEND}_search": search_weights(parts, y, w),
        f"{BLEND}_mean": plain_weights(parts),
    }
    return FoldHeads(
        header, level, overall, fit_finish(held_out, y, w, inner, clip=config.clip), blends
    )


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


def fit_stack(
    features: pd.DataFrame,
    labels: pd.DataFrame,
    config: StackConfig,
    *,
    seed: int,
    jobs: int = 0,
    progress: Callable[[], object] | None = None,
) -> Stack:
    """Fit the heads of every fold on the out-of-fold rows of the other folds.

    Args:
        features: out-of-fold rows of `aggregate` (fold == model_fold), at least two folds.
        labels: study_uid and the eight targets of every study in `features`; an optional column
            `group` keeps patients together in the inner folds.
        config: the stack's section.
        seed: the experiment's seed; same inputs and seed give the same bytes for any `jobs`.
        jobs: folds fitted at the same time; 0 means the usable cores.
        progress: called after each fold.

    Raises:
        TableError: rows that may have leaked, fewer than two folds, or faulty labels.
    """
    leaked = features[features["fold"] != features["model_fold"]]
    if len(leaked):
        rows = leaked[["study_uid", "fold", "model_fold"]].head(SHOWN).to_dict("records")
        raise TableError(f"features: rows made by a model that may have seen their study: {rows}")
    columns = tuple(feature_columns(features))
    table = FeatureTable.of(features, columns)
    aligned = _aligned_labels(labels, table.study_uid)
    folds = sorted({int(k) for k in table.model_fold})
    if len(folds) < 2:
        raise TableError(f"features: a nested stack needs two folds or more, got {folds}")
    fixed = formulas(features)

    def fit(k: int) -> FoldHeads:
        rest = table.model_fold != k
        heads = _fit_fold(
            table.take(rest),
            aligned[rest].reset_index(drop=True),
            {name: probs[rest] for name, probs in fixed.items()},
            config,
            derive_seed(seed, k),
        )
        if progress is not None:
            progress()
        return heads

    # Threads suffice: LightGBM releases the lock, and each booster runs on one thread, so that
    # results do not depend on how many run at once.
    workers = min(jobs or usable_cores(), len(folds))
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        fitted = dict(zip(folds, pool.map(fit, folds), strict=True))
    rates = np.clip(aligned[list(TARGETS)].to_numpy(np.float64).mean(axis=0), 0.001, 0.999)
    return Stack(columns, fitted, config.clip, tuple(rates.tolist()), config.prevalence)

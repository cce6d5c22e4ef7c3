"""A stack on DICOM headers alone: what can be said before a pixel is read.

In: a table of slice headers (StudyInstanceUID, slice_number, ImageHeight, ImageWidth,
SliceThickness, ImagePositionPatient_x/y/z) and train.csv. Out: nested, grouped out-of-fold
predictions, scores beside the constants. Example::

    result = run_headers(slice_headers, competition.train_csv, Path("oof/headers"))
    result["metric_per_exam"], result["metric_global"]

Geometry tells sites and protocols apart, and sites differ in how often they see a fracture: a few
hundredths of log loss that cost nothing, and the floor that every image model must beat.

The server's form of the metric is not proven and each form wants other probabilities, so both are
fitted: models `stack_per_exam` and `stack_global`; `stack` lies half-way in log-odds and is close
to the best in both.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import OVERALL, TARGETS
from cspine_kit.core.config import StackConfig
from cspine_kit.core.errors import DataError, TableError
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.metric import Form, best_constant
from cspine_kit.core.numbers import BoolArray, FloatArray, IntArray, logit, sigmoid
from cspine_kit.core.runs import (
    derive_seed,
    file_hash,
    fingerprint,
    is_fresh,
    publish,
    read_json,
    run_record,
    write_json,
)
from cspine_kit.core.tables import write_table
from cspine_kit.data.labels import read_labels
from cspine_kit.stack.fallback.heads import HEADER_STACK, fit_header_heads
from cspine_kit.stack.headers.features import header_features
from cspine_kit.stack.model.folds import deal_folds
from cspine_kit.stack.model.linear import one_blas_thread
from cspine_kit.stack.scores.baselines import long_predictions
from cspine_kit.stack.scores.table import FORMS, score_table

N_FOLDS, INNER_FOLDS = 5, 4
FOLD_SEEDS = 3
"""Repeats of the whole cross-validation over other folds; the spread over them is reported."""

STACK = "stack"

VERSION = 2
SHOWN = 5


def outer_folds(labels: pd.DataFrame, seed: int, n: int = N_FOLDS) -> IntArray:
    """Fold of each study, stratified by patient_overall; a study is its own group."""
    rng = np.random.default_rng(derive_seed(seed, "header folds"))
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[OVERALL].to_numpy()[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % n
    return fold


def _fit_predict(
    x: FloatArray,
    y: FloatArray,
    labels: pd.DataFrame,
    held: BoolArray,
    config: StackConfig,
    *,
    seed: int,
) -> FloatArray:
    """Probabilities (held, 8); everything is chosen and fitted on the other rows."""
    inner = deal_folds(labels[~held].reset_index(drop=True), seed, INNER_FOLDS)
    heads = fit_header_heads(x[~held], y[~held], inner, config, seed=seed)
    return heads.predict(x[held])


def header_predictions(
    features: pd.DataFrame, labels: pd.DataFrame, *, seed: int, jobs: int = 0
) -> pd.DataFrame:
    """Nested out-of-fold predictions of one fold seed, contract `predictions`.

    Args:
        features: `header_features`, one row per study of `labels`.
        labels: `read_labels`.
        seed: of the folds and of everything drawn inside them.
        jobs: folds fitted at once; 0 means the usable cores. Results do not depend on it.

    Raises:
        TableError: studies without labels or labels without headers.
    """
    odd = set(features["study_uid"]) ^ set(labels["study_uid"])
    if odd:
        raise TableError(
            f"headers and labels: {len(odd)} studies are in one only: {sorted(odd)[:SHOWN]}"
        )
    x = features.set_index("study_uid").loc[labels["study_uid"]].to_numpy(np.float64)
    y = labels[list(TARGETS)].to_numpy(np.float64)
    fold = outer_folds(labels, seed)
    shape = y.shape
    tables = {f"best_constant_{form}": np.zeros(shape) for form in FORMS}
    tables |= {f"{STACK}_{form}": np.zeros(shape) for form in FORMS}

    def fit(job: tuple[int, Form]) -> FloatArray:
        k, form = job
        config = HEADER_STACK.model_copy(update={"form": form})
        return _fit_predict(x, y, labels, fold == k, config, seed=derive_seed(seed, form, k))

    todo = [(k, form) for k in range(N_FOLDS) for form in FORMS]
    with one_blas_thread(), ThreadPoolExecutor(jobs or usable_cores()) as pool:
        found = tqdm(pool.map(fit, todo), total=len(todo), desc=f"headers, seed {seed}", unit="fit")
        for (k, form), probs in zip(todo, found, strict=True):
            tables[f"{STACK}_{form}"][fold == k] = probs
            tables[f"best_constant_{form}"][fold == k] = best_constant(y[fold != k], form)
    tables[STACK] = sigmoid(np.mean([logit(tables[f"{STACK}_{form}"]) for form in FORMS], axis=0))
    fold_of = pd.Series(fold, index=labels["study_uid"])
    rows = []
    for model, probs in tables.items():
        wide = pd.DataFrame(probs, columns=list(TARGETS))
        wide.insert(0, "study_uid", labels["study_uid"])
        rows.append(long_predictions(model, wide, fold_of))
    return pd.concat(rows, ignore_index=True)


def read_headers_file(path: Path) -> pd.DataFrame:
    """Slice headers of a parquet file.

    Raises:
        DataError: unreadable.
    """
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"headers {path} cannot be read as parquet: {error}") from error


def run_headers(
    headers: Path, labels: Path, out: Path, *, seed: int = 0, jobs: int = 0
) -> dict[str, Any]:
    """Cross-validate over several fold seeds and write predictions, scores and run.json into `out`.

    `predictions.parquet` holds the out-of-fold rows of fold seed `seed`, of model `stack`;
    `predictions_all.parquet` the constants and both single-form stacks too; `scores.csv` the scores
    of every model and fold seed.

    Returns:
        metric_per_exam and metric_global of `predictions.parquet`; `models`: mean of both forms
        over the fold seeds for every model; `fold_seeds`; n_studies.

    Raises:
        DataError: a file is absent or unreadable, or labels are faulty.
        TableError: headers are faulty, or a study is in one of the two tables only.
    """
    for path in (headers, labels):
        if not path.is_file():
            raise DataError(f"{path} is not a file; see --help for the two tables that are needed")
    key = fingerprint(VERSION, file_hash(headers), file_hash(labels), seed, HEADER_STACK)
    summary = out / "headers.json"
    if is_fresh(summary, key):
        result: dict[str, Any] = read_json(summary)
        return result
    with run_record(out, "headers", inputs={"headers": file_hash(headers)}) as results:
        features = header_features(read_headers_file(headers))
        truth = read_labels(labels)
        scores = []
        seeds = [seed + i for i in range(FOLD_SEEDS)]
        for fold_seed in seeds:
            predictions = header_predictions(features, truth, seed=fold_seed, jobs=jobs)
            fold = predictions.drop_duplicates("study_uid").set_index("study_uid")["fold"]
            table = score_table(predictions, truth, fold)
            scores.append(table.assign(fold_seed=fold_seed))
            if fold_seed == seed:
                own = predictions[predictions["model"] == STACK]
                write_table(own, out / "predictions.parquet", "predictions")
                write_table(predictions, out / "predictions_all.parquet", "predictions")
        table = pd.concat(scores, ignore_index=True)
        with publish(out / "scores.csv") as temporary:
            table.to_csv(temporary, index=False)
        mean = table.groupby("model", sort=False)[list(FORMS)].mean()
        written = table[(table["model"] == STACK) & (table["fold_seed"] == seed)].iloc[0]
        result = {
            "metric_per_exam": float(written["per_exam"]),
            "metric_global": float(written["global"]),
            "model": STACK,
            "models": {m: {f: float(mean.loc[m, f]) for f in FORMS} for m in mean.index},
            "fold_seeds": seeds,
            "n_studies": len(truth),
        }
        results.update(result)
        write_json(summary, result, key)
    return result

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

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import OVERALL, TARGETS
from cspine_kit.core.errors import TableError
from cspine_kit.core.metric import best_constant
from cspine_kit.core.numbers import IntArray, logit, sigmoid
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
from cspine_kit.stack.fallback.heads import HEADER_STACK, heads_by_fold, held_out
from cspine_kit.stack.features.units import SHOWN
from cspine_kit.stack.headers.features import header_features, read_headers
from cspine_kit.stack.scores.baselines import all_predictions
from cspine_kit.stack.scores.table import FORMS, score_table

N_FOLDS = 5
FOLD_SEEDS = 3
"""Repeats of the whole cross-validation over other folds; the spread over them is reported."""

STACK = "stack"

VERSION = 2


def outer_folds(labels: pd.DataFrame, seed: int, n: int = N_FOLDS) -> IntArray:
    """Fold of each study, stratified by patient_overall; a study is its own group."""
    rng = np.random.default_rng(derive_seed(seed, "header folds"))
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[OVERALL].to_numpy()[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % n
    return fold


def header_predictions(
    features: pd.DataFrame, labels: pd.DataFrame, *, seed: int, jobs: int = 0
) -> pd.DataFrame:
    """Nested out-of-fold predictions of one fold seed, contract `predictions`.

    Args:
        features, labels: of `header_features` and `read_labels`, the same studies.
        seed: of the folds and of everything drawn inside them.
        jobs: as in `each_fold`.

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
    constants = {f"best_constant_{form}": np.zeros(y.shape) for form in FORMS}
    models = {}
    with tqdm(total=N_FOLDS * len(FORMS), desc=f"headers, seed {seed}", unit="fit") as bar:
        for form in FORMS:
            config = HEADER_STACK.model_copy(update={"form": form})
            seeds = {k: derive_seed(seed, form, k) for k in range(N_FOLDS)}
            heads = heads_by_fold(
                x, labels, fold, config, seeds=seeds, jobs=jobs, progress=bar.update
            )
            models[f"{STACK}_{form}"] = held_out(heads, x, fold)
            for k in seeds:
                constants[f"best_constant_{form}"][fold == k] = best_constant(y[fold != k], form)
    middle = sigmoid(np.mean([logit(p) for p in models.values()], axis=0))
    uid = labels["study_uid"].to_numpy(dtype=object)
    return all_predictions(uid, {**constants, **models, STACK: middle}, pd.Series(fold, index=uid))


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
    features, truth = header_features(read_headers(headers)), read_labels(labels)
    key = fingerprint(VERSION, file_hash(headers), file_hash(labels), seed, HEADER_STACK)
    summary = out / "headers.json"
    if is_fresh(summary, key):
        result: dict[str, Any] = read_json(summary)
        return result
    with run_record(out, "headers", inputs={"headers": file_hash(headers)}) as results:
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

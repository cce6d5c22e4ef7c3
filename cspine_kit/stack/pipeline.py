"""`make stack`: from out-of-fold slices to boosters, predictions of every model, and their scores.

In: tables `slices`, `studies`, `levels`, `oof_slices` and folds.csv of a run folder, and the files
that `stack.external` and `stack.columns` name. Out: tables `features` and `predictions`, and
`stack/` (models/ with stack.json and LightGBM text, header/ with the header-only fallback,
imputer.json, external.json, scores.csv, worth.csv, operating.csv, sources.csv, calibration.png,
run.json). Example::

    table = run_stack(config, paths)
    table.loc[table["ships"], ["model", "shipped_model", "per_exam", "global"]]

Finished work is skipped: the key is made of the inputs' keys, the config's section and the seed.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_kit.core.config import Config
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import (
    file_hash,
    fingerprint,
    is_fresh,
    publish,
    run_record,
    stored_key,
    write_json,
)
from cspine_kit.core.tables import read_table, write_table
from cspine_kit.stack.fallback.headers import HEADERS, fit_fallback
from cspine_kit.stack.fallback.imputer import FILE as IMPUTER
from cspine_kit.stack.inputs import SCORE_TABLES, Inputs, read_inputs
from cspine_kit.stack.model.fit import STRICT, Fit, fit_count, fit_stack
from cspine_kit.stack.model.stack import SHIPPED, STACK
from cspine_kit.stack.scores.baselines import (
    CONSTANT,
    MEAN_OF_MEMBERS,
    all_predictions,
    held_out_constant,
    wide_predictions,
)
from cspine_kit.stack.scores.fitted import fitted_baselines
from cspine_kit.stack.scores.operating import operating_table
from cspine_kit.stack.scores.pictures import draw_calibration
from cspine_kit.stack.scores.table import (
    FORMS,
    expected_interval,
    score_table,
    scores_by_source,
)

log = logging.getLogger(__name__)

VERSION = 12
"""Raised when the room's code gives other results from the same inputs."""

INPUTS = ("slices", "studies", "levels", "oof_slices", *SCORE_TABLES)


def stack_key(config: Config, paths: RunPaths) -> str:
    """Fingerprint of everything the stack depends on."""
    tables = {name: stored_key(paths.table(name)) for name in INPUTS}
    folds = file_hash(paths.folds) if paths.folds.exists() else None
    own = config.stack
    files = [*(e.oof for e in own.external), *([own.columns] if own.columns is not None else [])]
    hashes = [file_hash(p) if p.is_file() else None for p in files]
    return fingerprint(VERSION, tables, folds, hashes, own, config.seed)


@contextmanager
def _step(name: str, total: int = 1) -> "Iterator[tqdm[Any]]":
    """A progress bar of one stage."""
    with tqdm(total=total, desc=f"stack: {name}", unit="step") as bar:
        yield bar
        bar.update(total - bar.n)


def run_stack(config: Config, paths: RunPaths) -> pd.DataFrame:
    """Fit, score and save the stack; returns the score table, one row per model.

    The column `ships` is true for one row, `shipped`: what the kernel will answer. Its score
    carries every choice (stack or plain mean, members left out) as made on other folds; the column
    `shipped_model` names what was chosen on all.

    Raises:
        ArtifactError: an input table is absent.
        DataError: an external file cannot be used.
        TableError: an input breaks its contract, or a study has no fold or labels.
    """
    key = stack_key(config, paths)
    scores = paths.stack / "scores.csv"
    if is_fresh(scores, key):
        log.info("stack is up to date in %s", paths.stack)
        return pd.read_csv(scores)
    with run_record(paths.stack, STACK, inputs={"stack_key": key}) as results:
        with _step("read"):
            inputs = read_inputs(config.stack, paths)
        with _step("statistics"):
            features = inputs.features()
            table = paths.table("features")
            write_table(inputs.labelled(features), table, "features", key)
        options: dict[str, Any] = {"seed": config.seed, "jobs": config.execution.jobs}
        with _step("headers", inputs.fold.nunique() + 1) as bar:
            fallback, headers = fit_fallback(
                inputs.headers, inputs.labels, config.stack, progress=bar.update, **options
            )
        with _step("fit", fit_count(features, config.stack)) as bar:
            fit = fit_stack(
                features,
                inputs.seen.drop(columns="fold"),
                config.stack,
                without=inputs.features,
                progress=bar.update,
                **options,
            )
        with _step("baselines"):
            predictions = _predictions(inputs, features, headers, fit, config)
        with _step("scores"):
            table = _scores(predictions, inputs, fit)
            operating = operating_table(
                fit.y, fit.probs[SHIPPED], fit.fold, config.stack.sensitivities
            )
        write_table(predictions, paths.table("predictions"), "predictions", key)
        fit.stack.save(paths.stack / "models")
        fallback.save(paths.stack / "header")
        inputs.extras(tuple(fit.stack.notes["left_out"])).save(paths.stack, config.stack)
        order = tuple(fit.worth.sort_values(config.stack.form)["member"])
        write_json(paths.stack / IMPUTER, vars(replace(inputs.imputer, order=order)))
        source = read_table(paths.table("studies"), "studies").set_index("study_uid")["source"]
        sources = scores_by_source(predictions, inputs.labels, source, SHIPPED)
        frames = {"worth": fit.worth, "operating": operating, "sources": sources}
        for name, frame in frames.items():
            with publish(paths.stack / f"{name}.csv") as temporary:
                frame.to_csv(temporary, index=False)
        shown = [MEAN_OF_MEMBERS, SHIPPED]
        draw_calibration(predictions, inputs.labels, shown, paths.stack / "calibration.png")
        _say(fit, inputs)
        results |= {"ships": fit.stack.ships, "imputed": inputs.imputed, "lost": inputs.lost}
        results |= {"scores": table.to_dict("records")}
        with publish(scores, key) as temporary:
            table.to_csv(temporary, index=False)
    return pd.read_csv(scores)


def _predictions(
    inputs: Inputs, features: pd.DataFrame, headers: pd.DataFrame, fit: Fit, config: Config
) -> pd.DataFrame:
    """Out-of-fold rows of every model for every study.

    A study that no member has seen gets what the kernel answers there: its header prediction.
    """
    form, fold = config.stack.form, inputs.fold
    constant = held_out_constant(inputs.y, fold.to_numpy(np.int64), form)
    parts = [
        all_predictions(fold.index.to_numpy(dtype=object), {CONSTANT: constant}, fold),
        headers,
        fitted_baselines(features, inputs.seen, form, seed=config.seed),
        all_predictions(fit.study_uid, fit.probs, fold),
    ]
    found = pd.concat(parts, ignore_index=True)
    lost = headers[~headers["study_uid"].isin(set(inputs.seen["study_uid"]))]
    others = [m for m in dict.fromkeys(found["model"]) if m not in (CONSTANT, HEADERS)]
    return pd.concat([found, *(lost.assign(model=m) for m in others)], ignore_index=True)


def _scores(predictions: pd.DataFrame, inputs: Inputs, fit: Fit) -> pd.DataFrame:
    models = list(dict.fromkeys(predictions["model"]))
    fixed = tuple(m for m in models if m != SHIPPED and not m.startswith(STACK))
    table = score_table(predictions, inputs.labels, inputs.fold, baselines=fixed)
    table["ships"] = table["model"] == SHIPPED
    if STRICT in fit.probs and fit.stack.ships == STACK:
        by_model = table.set_index("model")
        p = wide_predictions(predictions, SHIPPED).loc[inputs.labels["study_uid"]].to_numpy()
        for form in FORMS:
            gap = float(by_model.loc[STRICT, form] - by_model.loc[STACK, form])
            ends = [f"{form}_low", f"{form}_high"]
            table.loc[table["ships"], ends] = expected_interval(
                inputs.y, p, form, gap=gap, chains=len(fit.stack.folds)
            )
    return table.assign(shipped_model=fit.stack.ships)


def _say(fit: Fit, inputs: Inputs) -> None:
    """What a reader of the console must not miss."""
    for name, count in inputs.imputed.items():
        log.warning("member %s: %d studies are missing and were imputed", name, count)
    if inputs.lost:
        log.warning("%d studies were seen by no member; headers answer for them", inputs.lost)
    for name in fit.stack.notes["left_out"]:
        log.warning("member %s certainly makes the stack worse and does not ship", name)
    if fit.stack.ships != STACK:
        log.warning("the stack does not beat the plain mean of the members; the mean ships")

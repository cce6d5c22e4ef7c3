"""`make stack`: from out-of-fold slices to boosters, predictions of every model, and their scores.

In: tables `slices`, `studies`, `crops`, `oof_slices` and folds.csv of one run folder, and the files
that `stack.external` and `stack.columns` name. Out: tables `features` and `predictions`, and
`stack/` (models/ with stack.json and LightGBM text, header/ with the header-only fallback,
imputer.json, external.json, scores.csv, worth.csv, operating.csv, calibration.png, levels.png,
run.json). Example::

    table = run_stack(load_config(Path("configs/demo.yaml")), RunPaths(Path("oof/demo")))

Finished work is skipped: the key is made of the inputs' keys, the config's section and the seed.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config, StackConfig
from cspine_kit.core.errors import ArtifactError, TableError
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
from cspine_kit.stack.external.extras import Extras
from cspine_kit.stack.external.features import fit_external
from cspine_kit.stack.external.read import (
    Scores,
    check_scores,
    read_columns,
    read_scores,
    value_names,
)
from cspine_kit.stack.fallback.headers import HEADERS, fit_fallback, read_headers
from cspine_kit.stack.fallback.imputer import FILE as IMPUTER
from cspine_kit.stack.fallback.imputer import fit_imputer
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.features.names import RAW, SITE, signal_of
from cspine_kit.stack.model.fit import Fit, fit_count, fit_stack
from cspine_kit.stack.model.stack import SHIPPED, STACK, Stack
from cspine_kit.stack.scores.baselines import (
    CONSTANT,
    MEAN_OF_MEMBERS,
    all_predictions,
    constant_predictions,
    formulas,
)
from cspine_kit.stack.scores.fitted import fitted_baselines
from cspine_kit.stack.scores.operating import choose_points, operating_table
from cspine_kit.stack.scores.pictures import draw_calibration, draw_levels
from cspine_kit.stack.scores.table import score_table

log = logging.getLogger(__name__)

VERSION = 9
"""Raised when the room's code gives other results from the same inputs."""

INPUTS = ("slices", "studies", "crops", "oof_slices")
SHOWN = 5


def _labels(paths: RunPaths, slices: pd.DataFrame) -> pd.DataFrame:
    """Labels, fold and group of every study of folds.csv, whether a network has seen it or not.

    Raises:
        ArtifactError: no folds.csv.
        TableError: a study of the slice table without fold or in another fold than its slices say,
            or a study without labels.
    """
    if not paths.folds.exists():
        raise ArtifactError(f"no folds at {paths.folds}; run make oof (cspine folds) first")
    folds = pd.read_csv(paths.folds, dtype={"study_uid": str, "group": str})
    seen = slices[["study_uid", "fold"]].drop_duplicates().sort_values("study_uid")
    joined = seen.merge(folds, on="study_uid", how="left", suffixes=("_slices", ""))
    lost = joined.loc[joined["fold"].isna(), "study_uid"].head(SHOWN).tolist()
    if lost:
        raise TableError(f"folds.csv: studies of the slice table in no fold: {lost}")
    moved = joined.loc[joined["fold"] != joined["fold_slices"], "study_uid"].head(SHOWN).tolist()
    if moved:
        raise TableError(
            f"folds.csv: studies in another fold than their out-of-fold slices: {moved}; "
            "the folds changed since make oof"
        )
    studies = read_table(paths.table("studies"), "studies")
    joined = folds.merge(studies[["study_uid", *TARGETS]], on="study_uid", how="left")
    bare = joined.loc[joined[list(TARGETS)].isna().any(axis=1), "study_uid"].head(SHOWN).tolist()
    if bare:
        raise TableError(f"studies: no labels for {bare}")
    keep = ["study_uid", *TARGETS, "fold", *(c for c in ("group",) if c in joined)]
    return joined[keep].astype({"fold": "int64"}).sort_values("study_uid", ignore_index=True)


def _external_files(config: StackConfig) -> list[Path]:
    files = [e.oof for e in config.external]
    return [*files, *([config.columns] if config.columns is not None else [])]


def stack_key(config: Config, paths: RunPaths) -> str:
    """Fingerprint of everything the stack depends on."""
    tables = {name: stored_key(paths.table(name)) for name in INPUTS}
    folds = file_hash(paths.folds) if paths.folds.exists() else None
    files = [file_hash(p) if p.is_file() else None for p in _external_files(config.stack)]
    return fingerprint(VERSION, tables, folds, files, config.stack, config.seed)


@contextmanager
def _step(name: str, total: int = 1) -> Iterator["tqdm[None]"]:
    with tqdm(total=total, desc=f"stack: {name}", unit="step") as bar:
        yield bar
        bar.update(total - bar.n)


def run_stack(config: Config, paths: RunPaths) -> pd.DataFrame:
    """Fit, score and save the stack; returns the score table, one row per model.

    The column `ships` is true for one row, `shipped`: what the kernel will answer. Its score carries
    every choice (stack or plain mean, members left out) as made on other folds; the column
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
            slices = read_table(paths.table("oof_slices"), "oof_slices")
            crops = read_table(paths.table("crops"), "crops")
            labels = _labels(paths, slices)
        fold = labels.set_index("study_uid")["fold"]
        given = [read_scores(e.name, e.oof) for e in config.stack.external]
        for own in given:
            for line in check_scores(own, labels):
                log.warning("%s", line)
        jobs = config.execution.jobs
        with _step("headers", len(fold.unique())) as bar:
            headers = read_headers(
                read_table(paths.table("slices"), "slices"),
                read_table(paths.table("studies"), "studies").query("study_uid in @fold.index"),
            )
            fallback = fit_fallback(
                headers, labels, config.stack, seed=config.seed, jobs=jobs, progress=bar.update
            )
        imputer = fit_imputer(slices)
        complete, imputed = imputer.complete(slices)
        builder = _Builder(complete, crops, given, config.stack)
        with _step("statistics"):
            features = builder.features(())
        seen = labels[labels["study_uid"].isin(set(features["study_uid"]))]
        label_of = seen.set_index("study_uid")[list(TARGETS)].stack()
        at = pd.MultiIndex.from_frame(features[["study_uid", "level"]])
        write_table(
            features.assign(label=label_of.reindex(at).to_numpy()),
            *(paths.table("features"), "features", key),
        )
        with _step("fit", fit_count(features, config.stack)) as bar:
            fit = fit_stack(
                features,
                seen.drop(columns="fold"),
                config.stack,
                seed=config.seed,
                jobs=jobs,
                without=builder.features,
                progress=bar.update,
            )
        with _step("baselines"):
            baselines = [
                constant_predictions(labels, fold, config.stack.form),
                fallback.out_of_fold(headers, fold),
                fitted_baselines(features, seen, config.stack.form, seed=config.seed),
            ]
            probs = {**formulas(features), **fit.probs}
            own_rows = all_predictions(fit.study_uid, probs, fold)
        predictions = _with_lost(pd.concat([*baselines, own_rows], ignore_index=True), fold)
        own = {name for name in fit.probs if name.startswith(STACK)} | {SHIPPED}
        named = tuple(m for m in dict.fromkeys(predictions["model"]) if m not in own)
        with _step("scores"):
            table = score_table(predictions, labels, fold, baselines=named)
        table["ships"] = table["model"] == SHIPPED
        table["shipped_model"] = fit.stack.ships
        stack, operating = with_points(fit, seen, config.stack)
        shown = [CONSTANT, MEAN_OF_MEMBERS, SHIPPED]
        draw_calibration(predictions, labels, shown[1:], paths.stack / "calibration.png")
        draw_levels(table, shown, paths.stack / "levels.png")
        write_table(predictions, paths.table("predictions"), "predictions", key)
        stack.save(paths.stack / "models")
        fallback.save(paths.stack / "header")
        builder.extras.save(paths.stack, config.stack)
        order = tuple(fit.worth.sort_values(config.stack.form)["member"])
        write_json(paths.stack / IMPUTER, replace(imputer, order=order).to_json())
        for name, frame in (("worth", fit.worth), ("operating", operating)):
            with publish(paths.stack / f"{name}.csv") as temporary:
                frame.to_csv(temporary, index=False)
        lost = len(labels) - len(seen)
        imputed |= {name: n for name, n in builder.imputed.items() if n}
        _say(fit, imputed, lost)
        results |= {"ships": stack.ships, "imputed": imputed, "lost": lost}
        results |= {"scores": table.to_dict("records")}
        with publish(scores, key) as temporary:
            table.to_csv(temporary, index=False)
    return pd.read_csv(scores)


class _Builder:
    """Features of all members or of some, from the same tables."""

    def __init__(
        self,
        slices: pd.DataFrame,
        crops: pd.DataFrame,
        given: list[Scores],
        config: StackConfig,
    ) -> None:
        self.slices, self.crops = slices, crops
        base = aggregate(slices, crops)
        table = None if config.columns is None else read_columns(config.columns)
        self.extras = Extras(
            fit_external(base, given),
            () if table is None else tuple(value_names(table)),
            {s.name: s.probs for s in given},
            table,
        )
        self.base = base
        self.imputed: dict[str, int] = {}

    def features(self, dropped: tuple[str, ...]) -> pd.DataFrame:
        """Out-of-fold features without the dropped members."""
        rest = self.slices[~self.slices["member"].isin(dropped)]
        if rest.empty:
            base = self.base[[c for c in self.base if "__" not in c or signal_of(c) == SITE]]
        else:
            base = self.base if len(rest) == len(self.slices) else aggregate(rest, self.crops)
        model, columns = self.extras.model.without(dropped), self.extras.columns
        extras = replace(self.extras, model=model, columns=() if RAW in dropped else columns)
        features, imputed = extras.add_counted(base)
        self.imputed |= imputed
        return features


def with_points(fit: Fit, labels: pd.DataFrame, config: StackConfig) -> tuple[Stack, pd.DataFrame]:
    """The stack with its operating points frozen, and what they give out-of-fold."""
    y = labels.set_index("study_uid").loc[list(fit.study_uid), list(TARGETS)].to_numpy(np.float64)
    points = choose_points(y, fit.probs[SHIPPED], config.sensitivities)
    table = operating_table(y, fit.probs[SHIPPED], fit.fold, config.sensitivities)
    return replace(fit.stack, points=points), table


def _with_lost(predictions: pd.DataFrame, fold: pd.Series) -> pd.DataFrame:
    """Every model answers a study that no member has seen as the kernel does: from headers."""
    headers = predictions[predictions["model"] == HEADERS]
    parts = [predictions]
    for model, rows in predictions.groupby("model", sort=False):
        lost = headers[~headers["study_uid"].isin(set(rows["study_uid"]))]
        parts.append(lost.assign(model=model))
    return pd.concat(parts, ignore_index=True)


def _say(fit: Fit, imputed: dict[str, int], lost: int) -> None:
    """What a reader of the console must not miss."""
    for name, count in imputed.items():
        log.warning("member %s: %d studies are missing and were imputed", name, count)
    if lost:
        log.warning("%d studies were seen by no member; headers answer for them, as on Kaggle", lost)
    for name in fit.stack.notes["left_out"]:
        log.warning("member %s certainly makes the stack worse and does not ship", name)
    if fit.stack.ships != STACK:
        log.warning("the stack does not beat the plain mean of the members; the mean ships")

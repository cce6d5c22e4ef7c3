"""`make stack`: from out-of-fold slices to boosters, predictions of every model, and their scores.

In: tables `slices`, `studies`, `crops`, `oof_slices` and folds.csv of one run folder. Out: tables
`features` and `predictions`, and `stack/` (models/ with stack.json and LightGBM text, header/ with
the header-only fallback, scores.csv, importances.csv, contributions.csv, calibration.png,
levels.png, run.json). Example::

    table = run_stack(config, paths)

Finished work is skipped: the key is made of the inputs' keys, the config's section and the seed.
"""

import logging
from dataclasses import replace

import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config
from cspine_kit.core.errors import ArtifactError, TableError
from cspine_kit.core.metric import evaluate
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
from cspine_kit.stack.fallback.completing import complete
from cspine_kit.stack.fallback.headers import fit_fallback, read_headers
from cspine_kit.stack.fallback.stand_ins import STAND_INS, StandIns, fit_stand_ins, rank_members
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.model.blend import RANKED, rank_predictions
from cspine_kit.stack.model.stack import (
    BLEND,
    BLENDED,
    CALIBRATED,
    STACK,
    STACK_MODELS,
    Stack,
    fit_stack,
)
from cspine_kit.stack.scores.baselines import CONSTANT, MEAN_OF_MEMBERS, constant_predictions
from cspine_kit.stack.scores.explain import contributions, importances
from cspine_kit.stack.scores.pictures import draw_calibration, draw_levels
from cspine_kit.stack.scores.rivals import rival_predictions
from cspine_kit.stack.scores.shift import feature_reference
from cspine_kit.stack.scores.table import score_table

log = logging.getLogger(__name__)

TOP_PARTS = 8
"""Contributions kept per study and level."""

SHIPPABLE = (STACK, CALIBRATED, BLEND)

VERSION = 8
"""Raised when the room's code gives other results from the same inputs."""

INPUTS = ("slices", "studies", "crops", "oof_slices")
SHOWN = 5


def _labels(paths: RunPaths, slices: pd.DataFrame) -> pd.DataFrame:
    """Labels, fold and group of every study in the slice table.

    Raises:
        ArtifactError: no folds.csv.
        TableError: a study without fold, in another fold than its slices say, or without labels.
    """
    if not paths.folds.exists():
        raise ArtifactError(f"no folds at {paths.folds}; run make oof (cspine folds) first")
    folds = pd.read_csv(paths.folds, dtype={"study_uid": str, "group": str})
    wanted = slices[["study_uid", "fold"]].drop_duplicates().sort_values("study_uid")
    joined = wanted.merge(folds, on="study_uid", how="left", suffixes=("_slices", ""))
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
    joined = joined.merge(studies[["study_uid", *TARGETS]], on="study_uid", how="left")
    bare = joined.loc[joined[list(TARGETS)].isna().any(axis=1), "study_uid"].head(SHOWN).tolist()
    if bare:
        raise TableError(f"studies: no labels for {bare}")
    keep = ["study_uid", *TARGETS, "fold", *(c for c in ("group",) if c in joined)]
    return joined[keep].astype({"fold": "int64"})


def stack_key(config: Config, paths: RunPaths) -> str:
    """Fingerprint of everything the stack depends on."""
    tables = {name: stored_key(paths.table(name)) for name in INPUTS}
    folds = file_hash(paths.folds) if paths.folds.exists() else None
    return fingerprint(VERSION, tables, folds, config.stack, config.seed)


def run_stack(config: Config, paths: RunPaths) -> pd.DataFrame:
    """Fit, score and save the stack; returns the score table, one row per model.

    The column `ships` is true for the model that the kernel will use: the best of `SHIPPABLE` on
    the outer folds in the configured form where it beats the plain mean of the members, else that
    mean.

    Raises:
        ArtifactError: an input table is absent.
        TableError: an input breaks its contract, or a study has no fold or labels.
    """
    key = stack_key(config, paths)
    scores = paths.stack / "scores.csv"
    if is_fresh(scores, key):
        log.info("stack is up to date in %s", paths.stack)
        return pd.read_csv(scores)
    with run_record(paths.stack, STACK, inputs={"stack_key": key}) as results:
        slices, spoken_for = complete(read_table(paths.table("oof_slices"), "oof_slices"))
        if spoken_for:
            log.warning("stack: studies where other members stand in, by member: %s", spoken_for)
        crops = read_table(paths.table("crops"), "crops")
        labels = _labels(paths, slices)
        fold = labels.set_index("study_uid")["fold"]
        studies = read_table(paths.table("studies"), "studies")
        headers = read_headers(
            read_table(paths.table("slices"), "slices"),
            studies[studies["study_uid"].isin(fold.index)],
        )
        jobs = config.execution.jobs
        with tqdm(total=config.folds.n, desc="headers", unit="fold") as bar:
            fallback = fit_fallback(
                headers,
                labels,
                config.stack,
                seed=config.seed,
                jobs=jobs,
                progress=lambda: bar.update(1),
            )
        features = aggregate(slices, crops)
        label_of = labels.set_index("study_uid")[list(TARGETS)].stack()
        at = pd.MultiIndex.from_frame(features[["study_uid", "level"]])
        features = features.assign(label=label_of.reindex(at).to_numpy())
        features = write_table(features, paths.table("features"), "features", key)
        with tqdm(total=config.folds.n, desc="stack", unit="fold") as bar:
            stack = fit_stack(
                features,
                labels,
                config.stack,
                seed=config.seed,
                jobs=jobs,
                progress=lambda: bar.update(1),
            )
        fixed = stack.predict_all(features)
        predictions = pd.concat(
            [
                constant_predictions(labels, fold, config.stack.form),
                fallback.out_of_fold(headers, fold),
                fixed[~fixed["model"].isin(STACK_MODELS)],
                rival_predictions(features, labels, config.stack.form, seed=config.seed),
                fixed[fixed["model"].isin(STACK_MODELS)],
                rank_predictions(fixed, BLENDED),
            ],
            ignore_index=True,
        )
        own = {*STACK_MODELS, RANKED}
        baselines = tuple(m for m in dict.fromkeys(predictions["model"]) if m not in own)
        table = score_table(predictions, labels, fold, baselines=baselines)
        stack = _guarded(stack, table, config)
        shown = list(dict.fromkeys((CONSTANT, MEAN_OF_MEMBERS, stack.ships)))
        draw_calibration(predictions, labels, shown[1:], paths.stack / "calibration.png")
        draw_levels(table, shown, paths.stack / "levels.png")
        table["ships"] = table["model"] == stack.ships
        write_table(predictions, paths.table("predictions"), "predictions", key)
        stack.save(paths.stack / "models")
        fallback.save(paths.stack / "header")
        write_json(paths.stack / "models" / "reference.json", feature_reference(features))
        stand_ins = _stand_ins(stack, slices, crops, labels, config)
        write_json(paths.stack / STAND_INS, stand_ins.to_json())
        parts = contributions(stack, features)
        for name, frame in (
            ("importances", importances(parts)),
            ("contributions", parts.groupby(["study_uid", "level"]).head(TOP_PARTS)),
        ):
            with publish(paths.stack / f"{name}.csv") as temporary:
                frame.to_csv(temporary, index=False)
        results |= {"stand_ins": spoken_for}
        results |= {"ships": stack.ships, "scores": table.to_dict("records")}
        with publish(scores, key) as temporary:
            table.to_csv(temporary, index=False)
    return pd.read_csv(scores)


def _stand_ins(
    stack: Stack, slices: pd.DataFrame, crops: pd.DataFrame, labels: pd.DataFrame, config: Config
) -> StandIns:
    """Stand-ins of every member, ranked by what the shipped model loses without it."""
    truth = labels.set_index("study_uid")[list(TARGETS)]
    members = slices["member"].nunique()
    with tqdm(total=members * (members + 1) // 2, desc="member ranking", unit="try") as bar:

        def loss(table: pd.DataFrame) -> float:
            found = stack.predict(aggregate(table, crops)).set_index("study_uid")
            score = evaluate(truth.loc[found.index].to_numpy(), found[list(TARGETS)].to_numpy())
            bar.update(1)
            return score.per_exam if config.stack.form == "per_exam" else score.whole

        return rank_members(fit_stand_ins(slices), slices, loss)


def _guarded(stack: Stack, table: pd.DataFrame, config: Config) -> Stack:
    """Ship the best of the fitted models, or the members' plain mean where none beats it.

    Only what needs no other study may ship, so rank means and rivals are not candidates.
    """
    score = table.set_index("model")[config.stack.form].astype(float)
    ships = str(score[list(SHIPPABLE)].idxmin())
    if score[ships] >= score[MEAN_OF_MEMBERS]:
        log.warning(
            "%s (%.4f) does not beat the mean of members (%.4f) out-of-fold; the mean ships",
            ships,
            score[ships],
            score[MEAN_OF_MEMBERS],
        )
        ships = MEAN_OF_MEMBERS
    notes = {
        str(k): {"level": h.level.notes, "overall": h.overall.notes} for k, h in stack.folds.items()
    }
    return replace(stack, ships=ships, notes={"form": config.stack.form, "folds": notes})

"""A stack of anybody's out-of-fold scores, or of slice headers alone, without slices of one's own.

In: CSV files of study-level scores or none, train.csv, slice headers. Out: contract `predictions`
of the best constants, every file, their means and the nested stack; scores with paired intervals.
Example::

    from cspine_kit.stack.scores.baselines import wide_predictions

    for member in config.members:
        wide_predictions(predictions, member).to_csv(f"{member}.csv")
    files = [Path(f"{member}.csv") for member in config.members]
    result = run_external(files, competition.train_csv, Path("oof/merge"))
    result["metric_per_exam"], result["metric_global"]

Each form of the metric wants other probabilities, so both are fitted: `shipped_per_exam` and
`shipped_global` are the stack where it beats the plain mean on other folds, else that mean.

Headers alone tell sites and protocols apart, and sites differ in how often they see a fracture: a
few hundredths of log loss that cost nothing, and the floor that every image model must beat.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.config import StackConfig
from cspine_kit.core.errors import DataError
from cspine_kit.core.numbers import FloatArray
from cspine_kit.core.runs import file_hash, publish, run_record, write_json
from cspine_kit.core.tables import write_table
from cspine_kit.data.labels import read_labels
from cspine_kit.stack.external.extras import Extras
from cspine_kit.stack.external.read import Scores, check_scores, read_scores
from cspine_kit.stack.fallback.headers import HEADER_STACK
from cspine_kit.stack.features.names import ALL, SITE
from cspine_kit.stack.headers.features import header_features, read_headers
from cspine_kit.stack.model.fit import Fit, fit_count, fit_stack
from cspine_kit.stack.model.stack import SHIPPED
from cspine_kit.stack.scores.baselines import (
    CONSTANT,
    all_predictions,
    formulas,
    held_out_constant,
)
from cspine_kit.stack.scores.console import render_gain, render_scores, render_worth
from cspine_kit.stack.scores.table import FORMS, LETTERS, score_table

EXTERNAL_STACK = HEADER_STACK.model_copy(update={"num_leaves": 7, "min_rows": 20, "l2": 5.0})
"""Few weak columns and scanner's handwriting: many random shallow trees over the line."""


def read_members(paths: Sequence[Path]) -> list[Scores]:
    """The files as members named by their stems.

    Raises:
        DataError: a faulty file, or two of one name.
    """
    names = [p.stem.lower().replace("-", "_").replace("__", "_") for p in paths]
    if len(set(names)) < len(names):
        raise DataError(f"external files need different names, got {names}")
    return [read_scores(name, path) for name, path in zip(names, paths, strict=True)]


def skeleton(labels: pd.DataFrame, members: Sequence[Scores]) -> pd.DataFrame:
    """One row per study and level, without features; folds as the files name them.

    Raises:
        DataError: files that name different folds for one study.
    """
    uid = labels["study_uid"]
    named = pd.DataFrame({m.name: m.fold.reindex(uid) for m in members if m.fold is not None})
    if named.shape[1]:
        torn = named.index[named.nunique(axis=1) > 1]
        if len(torn):
            raise DataError(f"external files name different folds, e.g. for study {torn[0]}")
        fold = named.bfill(axis=1).iloc[:, 0].fillna(-1).to_numpy(np.int64)
    else:
        fold = np.zeros(len(uid), dtype=np.int64)
    frame = pd.DataFrame({"study_uid": np.repeat(uid.to_numpy(), N_LEVELS)})
    return frame.assign(
        level=np.tile(np.array(LEVELS), len(uid)),
        model_fold=np.repeat(fold, N_LEVELS),
        fold=np.repeat(fold, N_LEVELS),
    )


def with_headers(features: pd.DataFrame, headers: Path) -> pd.DataFrame:
    """The same with what headers say about each scanner; studies without headers are an error.

    Raises:
        DataError: unreadable headers, or studies without any.
    """
    table = header_features(read_headers(headers)).set_index("study_uid")
    lost = sorted(set(features["study_uid"]) - set(table.index))
    if lost:
        raise DataError(f"headers {headers} lack {len(lost)} studies, e.g. {lost[0]}")
    own = table.loc[features["study_uid"]].add_prefix(f"{ALL}__{SITE}__")
    return pd.concat([features, own.reset_index(drop=True)], axis=1)


def stack_scores(
    base: pd.DataFrame,
    members: Sequence[Scores],
    labels: pd.DataFrame,
    config: StackConfig,
    *,
    seed: int = 0,
    jobs: int = 0,
) -> tuple[pd.DataFrame, Fit]:
    """Features and the fitted stack of the studies in `labels`; `base`: their `skeleton`."""

    def build(dropped: tuple[str, ...]) -> pd.DataFrame:
        return Extras.fit(base, [m for m in members if m.name not in dropped]).add(base)[0]

    features = build(())
    with tqdm(total=fit_count(features, config), desc=f"stack, {config.form}", unit="fit") as bar:
        fit = fit_stack(
            features, labels, config, seed=seed, jobs=jobs, without=build, progress=bar.update
        )
    return features, fit


def run_external(
    files: Sequence[Path],
    labels: Path,
    out: Path,
    *,
    headers: Path | None = None,
    seed: int = 0,
    jobs: int = 0,
) -> dict[str, Any]:
    """Stack the files and write predictions.parquet, scores.csv, external.json and run.json.

    Args:
        files: study-level scores, out-of-fold; none for a stack of headers alone.
        labels: train.csv.
        out: folder.
        headers: slice headers (parquet or CSV), for what they say about a scanner.
        seed: of the folds and of everything drawn inside them.
        jobs: folds fitted at once; 0 means the usable cores.

    Returns:
        metric_per_exam and metric_global of what ships in that form; `ships` by form; `models`:
        both forms of every model; `worth` by form and member; `warnings`; `n_studies`.

    Raises:
        DataError: a faulty file, or files and labels that share no study.
    """
    members = read_members(files)
    truth = read_labels(labels)
    named = [m.probs.index.to_series() for m in members] or [truth["study_uid"]]
    covered = truth[truth["study_uid"].isin(pd.concat(named))].reset_index(drop=True)
    warnings = [line for m in members for line in check_scores(m, covered)] if len(covered) else []
    if covered.empty:
        raise DataError(f"no study of {labels} is in {[str(f) for f in files]}")
    if len(covered) < len(truth):
        warnings.append(f"{len(truth) - len(covered)} studies of {labels} are in no file: left out")
    base = skeleton(covered, members)
    if headers is not None:
        base = with_headers(base, headers)
    inputs = {str(f): file_hash(f) for f in (*files, labels, *filter(None, [headers]))}
    settings = EXTERNAL_STACK if members else HEADER_STACK
    with run_record(out, "external", inputs=inputs) as results:
        fixed: dict[str, FloatArray] = {}
        fitted: dict[str, FloatArray] = {}
        ships, worth = {}, {}
        for form in FORMS:
            config = settings.model_copy(update={"form": form})
            features, fit = stack_scores(base, members, covered, config, seed=seed, jobs=jobs)
            fixed[f"{CONSTANT}_{form}"] = held_out_constant(fit.y, fit.fold, form)
            known = formulas(features)
            fitted |= {f"{n}_{form}": p for n, p in fit.probs.items() if n not in known}
            ships[form], worth[form] = fit.stack.ships, fit.worth.to_dict("records")
        fixed |= known
        fold = pd.Series(fit.fold, index=fit.study_uid)
        predictions = all_predictions(fit.study_uid, fixed | fitted, fold)
        table = score_table(predictions, covered, fold, baselines=tuple(fixed), seed=seed)
        write_table(predictions, out / "predictions.parquet", "predictions")
        with publish(out / "scores.csv") as temporary:
            table.to_csv(temporary, index=False)
        scores = table.set_index("model")
        result = {
            **{f"metric_{f}": float(scores.loc[f"{SHIPPED}_{f}", f]) for f in FORMS},
            "ships": ships,
            "models": {m: {f: float(scores.loc[m, f]) for f in FORMS} for m in scores.index},
            "worth": worth,
            "warnings": warnings,
            "n_studies": len(covered),
        }
        results.update(result)
        write_json(out / "external.json", result)
    return result


def render_external(out: Path, result: dict[str, Any]) -> str:
    """The score table and what ships, as text."""
    table = pd.read_csv(out / "scores.csv").set_index("model", drop=False)
    lines = [*result["warnings"], f"{result['n_studies']} studies, out-of-fold"]
    lines.append(render_scores(table))
    for form in FORMS:
        row = table.loc[f"{SHIPPED}_{form}"]
        lines.append(f"{LETTERS[form]}: {result['ships'][form]} ships, {row[form]:.4f}")
        lines.append(render_gain(row, form))
        lines += render_worth(pd.DataFrame(result["worth"][form]), form)
    return "\n".join(lines)

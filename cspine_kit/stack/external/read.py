"""Somebody else's predictions, and columns of any kind, from CSV files, checked.

In: study-level scores (study id and eight probabilities, or row_id,fractured; an optional column
`fold`), or raw columns (study_uid, optionally level, and anything). Out: `Scores`; a frame of
numbers. Example::

    from cspine_kit.stack.scores.baselines import wide_predictions

    wide_predictions(predictions, "mean_of_members").to_csv("theirs.csv")
    theirs = read_scores("theirs", Path("theirs.csv"))
    warnings = check_scores(theirs, labels)
    labels[["study_uid"]].assign(age=61, sex="F").to_csv("patients.csv", index=False)
    columns = read_columns(Path("patients.csv"))             # study_uid, age, sex_F
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, OVERALL, TARGETS
from cspine_kit.core.errors import DataError
from cspine_kit.core.metric import metric
from cspine_kit.stack.features.units import SHOWN

STUDY = ("study_uid", "StudyInstanceUID")
TOO_GOOD = 0.15
"""Metric A below this is better than anybody was on the real competition's studies."""

FEW_CATEGORIES = 12
"""Text columns with more different values than this are refused: they are names, not kinds."""


@dataclass(frozen=True)
class Scores:
    """One file: probabilities (study_uid by `TARGETS`), and the fold that its author names."""

    name: str
    probs: pd.DataFrame
    fold: pd.Series | None = None


def _read(path: Path, what: str) -> pd.DataFrame:
    text = dict.fromkeys((*STUDY, "row_id", "level"), str)
    try:
        frame = pd.read_csv(path, dtype=text)
    except (OSError, ValueError) as error:
        raise DataError(f"{what} {path} cannot be read: {error}") from error
    return frame.rename(columns={STUDY[1]: STUDY[0]})


def _from_rows(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Wide form of row_id,fractured."""
    parts = frame["row_id"].str.split("_", n=1, expand=True).reindex(columns=[0, 1])
    strange = frame.loc[~parts[1].isin(TARGETS), "row_id"].head(SHOWN).tolist()
    if strange:
        raise DataError(f"{path}: row ids must end in _C1.._C7 or _{OVERALL}: {strange}")
    twice = frame.loc[frame["row_id"].duplicated(), "row_id"].head(SHOWN).tolist()
    if twice:
        raise DataError(f"{path}: rows given twice: {twice}")
    frame = frame.assign(study_uid=parts[0], target=parts[1])
    wide = frame.pivot(index="study_uid", columns="target", values="fractured")
    return wide.reindex(columns=list(TARGETS)).reset_index()


def read_scores(name: str, path: Path) -> Scores:
    """Read and check one file of scores.

    Raises:
        DataError: unreadable, another shape, a study twice, a value that is no probability, or a
            fold that is no whole number; names the file, the first cases and what to do.
    """
    frame = _read(path, f"external member {name!r}:")
    if {"row_id", "fractured"} <= set(frame.columns):
        frame = _from_rows(frame, path)
    missing = [c for c in (STUDY[0], *TARGETS) if c not in frame]
    if missing or frame.empty:
        raise DataError(
            f"{path}: "
            + (f"columns {missing} are missing" if missing else "no rows")
            + "; give study_uid and the eight targets, or row_id,fractured"
        )
    uid = frame[STUDY[0]]
    twice = uid[uid.duplicated() | uid.isna()].head(SHOWN).tolist()
    if twice:
        raise DataError(f"{path}: studies given twice or without a name: {twice}")
    values = frame[list(TARGETS)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = ~((values >= 0.0) & (values <= 1.0))
    if wrong.any():
        row, column = (int(i[0]) for i in np.nonzero(wrong))
        raise DataError(
            f"{path}: {int(wrong.sum())} values are no probabilities, the first is "
            f"{frame[TARGETS[column]].iloc[row]!r} ({TARGETS[column]} of {uid.iloc[row]})"
        )
    fold = None
    if "fold" in frame:
        numbers = pd.to_numeric(frame["fold"], errors="coerce")
        if (numbers.isna() | (numbers < 0) | (numbers % 1 != 0)).any():
            raise DataError(f"{path}: column fold must hold whole numbers from 0 on")
        fold = pd.Series(numbers.to_numpy(np.int64), index=uid)
    probs = pd.DataFrame(values, index=pd.Index(uid, name=STUDY[0]), columns=list(TARGETS))
    return Scores(name, probs.sort_index(), fold)


def check_scores(scores: Scores, labels: pd.DataFrame) -> list[str]:
    """What a reader should know of a file: studies it lacks, and figures too good to be honest.

    Args:
        scores: of `read_scores`.
        labels: study_uid and the eight targets of the studies wanted.

    Raises:
        DataError: it has none of the studies.
    """
    known = labels["study_uid"].isin(scores.probs.index).to_numpy()
    if not known.any():
        raise DataError(
            f"external member {scores.name!r} has none of the {len(labels)} studies; its first is "
            f"{scores.probs.index[0]!r}, wanted e.g. {labels['study_uid'].iloc[0]!r}"
        )
    lines = []
    others = int((~scores.probs.index.isin(labels["study_uid"])).sum())
    if not known.all() or others:
        lines.append(
            f"external member {scores.name}: {int((~known).sum())} of {len(labels)} studies are "
            f"missing and imputed, {others} others are ignored"
        )
    own = labels[known]
    loss = metric(
        own[list(TARGETS)].to_numpy(np.float64),
        scores.probs.loc[own["study_uid"], list(TARGETS)].to_numpy(np.float64),
    )
    if loss < TOO_GOOD:
        lines.append(
            f"external member {scores.name}: metric A {loss:.4f} is suspiciously good; has its "
            "model learned from these studies? Out-of-fold scores are needed"
        )
    return lines


def read_columns(path: Path) -> pd.DataFrame:
    """Raw columns of any kind, as numbers: study_uid (and level where the file has it) and values.

    Text with up to `FEW_CATEGORIES` different values becomes one 0 / 1 column per value.

    Raises:
        DataError: unreadable, no study_uid, a key twice, an unknown level, or text that is no kind.
    """
    frame = _read(path, "columns")
    key = [c for c in (STUDY[0], "level") if c in frame]
    if STUDY[0] not in key or len(frame.columns) == len(key):
        raise DataError(f"{path}: needs study_uid and at least one column, got {list(frame)}")
    if "level" in key and not frame["level"].isin(LEVELS).all():
        raise DataError(f"{path}: level must be C1..C7, got {sorted(set(frame['level']))[:SHOWN]}")
    twice = frame.loc[frame.duplicated(key), key].head(SHOWN).to_dict("records")
    if twice:
        raise DataError(f"{path}: rows given twice: {twice}")
    found = [frame[key]]
    for column in frame.columns.difference(key, sort=False):
        name = "".join(c if c.isalnum() else "_" for c in str(column)).strip("_").replace("__", "_")
        values = frame[column]
        numbers = pd.to_numeric(values, errors="coerce")
        if (numbers.isna() == values.isna()).all():
            found.append(numbers.astype(np.float64).rename(name))
            continue
        if values.nunique() > FEW_CATEGORIES:
            raise DataError(
                f"{path}: column {column!r} holds {values.nunique()} different texts; give "
                f"numbers, or at most {FEW_CATEGORIES} kinds"
            )
        kinds = pd.get_dummies(values.astype(str), prefix=name, dtype=np.float64)
        known = [f"{name}_{kind}" for kind in sorted(values.dropna().astype(str).unique())]
        found.append(kinds[known].where(values.notna(), axis=0))
    return pd.concat(found, axis=1)


def value_names(columns: pd.DataFrame) -> list[str]:
    """Raw columns of a frame of `read_columns`."""
    return [c for c in columns.columns if c not in (STUDY[0], "level")]

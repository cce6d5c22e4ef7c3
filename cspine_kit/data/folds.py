"""Folds: grouped, stratified over labels and masks, in a CSV that wins over the generator.

In: training rows of `studies`. Out: study_uid, group, stratum, fold. Example::

    folds = settle_folds(studies, config.folds, paths.folds, config.seed)

Greedy stratification after Sechidis et al. (2011, "On the stratification of multi-label data"): the
rarest label still to be dealt goes first, always to the fold that lacks it most.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS, OVERALL
from cspine_kit.core.config import FoldsConfig
from cspine_kit.core.errors import DataError
from cspine_kit.core.paths import COMPETITION
from cspine_kit.core.runs import derive_seed, publish
from cspine_kit.core.sheets import read_sheet

COLUMNS = ("study_uid", "group", "stratum", "fold")
SHOWN = 3


def _labels(studies: pd.DataFrame) -> NDArray[np.float64]:
    """What is balanced over folds (n, 13): each target, several fractures, masks, boxes, size."""
    levels = studies[list(LEVELS)].to_numpy(dtype=np.float64)
    mask = studies["has_mask"].to_numpy(dtype=np.float64)
    overall = studies[OVERALL].to_numpy(dtype=np.float64)
    columns = [levels, overall, levels.sum(axis=1) > 1, mask, mask * overall]
    if "has_boxes" in studies:
        columns.append(studies["has_boxes"].to_numpy(dtype=np.float64))
    return np.nan_to_num(np.column_stack(columns))


def _strata(studies: pd.DataFrame) -> list[str]:
    """Readable stratum: fractured levels, then whether there is a mask ("C2+C5/mask", "none")."""
    return [
        ("+".join(level for level in LEVELS if row[level] == 1) or "none")
        + ("/mask" if row["has_mask"] else "")
        for row in studies.to_dict("records")
    ]


def _deal(labels: NDArray[np.float64], sizes: NDArray[np.float64], n: int, seed: int) -> list[int]:
    """Fold of each group.

    Args:
        labels: (groups, labels) number of positive studies of each group.
        sizes: (groups,) number of studies.
        n: folds.
        seed: breaks ties.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    wanted = np.tile(labels.sum(axis=0) / n, (n, 1))
    room = np.full(n, sizes.sum() / n)
    folds = np.full(len(labels), -1)
    left = list(order)
    while left:
        counts = (labels[left] > 0).sum(axis=0)
        rarest = int(np.where(counts > 0, counts, len(labels) + 1).argmin())
        chosen = [g for g in left if labels[g, rarest] > 0] if counts.any() else left
        # Large groups first: they are the hardest to place.
        for group in sorted(chosen, key=lambda g: -sizes[g]):
            need = wanted[:, rarest] if counts.any() else room
            best = max(
                range(n), key=lambda k: (round(float(need[k]), 6), round(float(room[k]), 6), -k)
            )
            folds[group] = best
            wanted[best] -= labels[group]
            room[best] -= sizes[group]
        placed = set(chosen)
        left = [g for g in left if g not in placed]
    return [int(fold) for fold in folds]


def make_folds(studies: pd.DataFrame, *, n: int, seed: int) -> pd.DataFrame:
    """Deal studies to `n` folds, the competition's own as if there were no others.

    So a run with `competition.extra` and one without it have the same folds where both have a
    study, and their scores differ by what the others are worth.

    Args:
        studies: training rows of `studies`; an additional column `group` keeps studies of one
            patient, or near-duplicate volumes, together.
        n: folds.
        seed: of the ties.

    Returns:
        study_uid, group, stratum, fold, sorted by study_uid.

    Raises:
        DataError: fewer groups than folds.
    """
    studies = studies.sort_values("study_uid", ignore_index=True)
    group = (studies["group"] if "group" in studies else studies["study_uid"]).astype(str)
    own = studies["source"] == COMPETITION if "source" in studies else group.notna()
    fold_of: dict[str, int] = {}
    for part in (own, ~own):
        left = part & ~group.isin(fold_of)
        if left.any():
            few = n if part is own else 1
            fold_of |= _fold_of_group(studies[left], group[left], n=n, few=few, seed=seed)
    return pd.DataFrame(
        {
            "study_uid": studies["study_uid"],
            "group": group,
            "stratum": _strata(studies),
            "fold": group.map(fold_of),
        }
    )


def _fold_of_group(
    studies: pd.DataFrame, group: "pd.Series", *, n: int, few: int, seed: int
) -> dict[str, int]:
    """Fold by group.

    Raises:
        DataError: fewer groups than `few`.
    """
    # In the order of their first studies here, whatever studies from elsewhere they hold too.
    first = studies.groupby(group)["study_uid"].transform("first")
    names, member = np.unique(first.astype(str).to_numpy(), return_inverse=True)
    if len(names) < few:
        raise DataError(_too_few(names, member, n))
    labels = _labels(studies)
    per_group = np.zeros((len(names), labels.shape[1]))
    np.add.at(per_group, member, labels)
    dealt = np.array(_deal(per_group, np.bincount(member).astype(float), n, seed))
    return dict(zip(group, (int(fold) for fold in dealt[member]), strict=True))


def _too_few(names: NDArray[np.str_], member: NDArray[np.intp], n: int) -> str:
    """Why so few groups cannot be dealt, and what to do."""
    sizes = np.bincount(member)
    problem = f"{len(names)} groups of {len(member)} studies cannot be dealt to {n} folds"
    if len(member) < n:
        return f"{problem}; add studies or lower folds.n"
    return (
        f"{problem}: {sizes.max()} studies are one group, the patient or near-duplicates of "
        f"{names[sizes.argmax()]} (index/groups.csv says why); where that is wrong, give a file "
        "with groups of your own as folds.file, else add studies of other patients or lower folds.n"
    )


def load_folds(path: Path) -> pd.DataFrame:
    """Read a folds CSV; `group` and `stratum` may be left out (each study its own group).

    Raises:
        DataError: absent, a missing column, a study twice, a group in two folds, or folds that are
            not 0..n-1.
    """
    try:
        sheet = read_sheet(path, ("study_uid", "fold"), ("group", "stratum"))
    except DataError as error:
        raise DataError(f"folds: {error}; run cspine folds") from error
    folds = sheet.rows
    for line, why in sheet.broken.items():
        raise DataError(f"folds {path} line {line} {why}")
    for line, uid, fold in folds[["study_uid", "fold"]].itertuples():
        if not uid or not fold.removesuffix(".0").isdecimal():
            column, got = ("study_uid", uid) if not uid else ("fold", fold)
            raise DataError(f"folds {path} line {line}, column {column}: cannot be {got!r}")
    folds = folds.assign(fold=[int(fold.removesuffix(".0")) for fold in folds["fold"]])
    if "group" not in folds:
        folds["group"] = ""
    folds["group"] = folds["group"].where(folds["group"] != "", folds["study_uid"])
    if "stratum" not in folds:
        folds["stratum"] = ""
    twice = folds.loc[folds["study_uid"].duplicated(), "study_uid"]
    if len(twice):
        raise DataError(f"folds {path}: {len(twice)} studies are listed twice: {_some(twice)}")
    numbers = sorted(folds["fold"].unique())
    if numbers != list(range(len(numbers))):
        raise DataError(f"folds {path}: folds must be 0..n-1, found {numbers}")
    spread = folds.groupby("group")["fold"].nunique()
    split = spread.index[spread > 1]
    if len(split):
        raise DataError(f"folds {path}: {len(split)} groups lie in two folds: {_some(split)}")
    return folds[list(COLUMNS)].sort_values("study_uid", ignore_index=True)


def _some(values: "pd.Series | pd.Index") -> str:
    shown = ", ".join(map(str, list(values)[:SHOWN]))
    return shown + (", ..." if len(values) > SHOWN else "")


def check_folds(
    folds: pd.DataFrame, studies: pd.DataFrame, n: int, path: Path, lost: Collection[str] = ()
) -> None:
    """Check that a folds CSV fits the studies.

    Args:
        folds: the CSV.
        studies: training rows of `studies`.
        n: folds that the config asks for.
        path: the CSV's path, for messages.
        lost: studies that the index left out; their rows wait until they are back.

    Raises:
        DataError: a study without fold, a fold of an unknown study, another number of folds, a
            fold without studies, or a known group in two folds.
    """
    known, listed = set(studies["study_uid"]), set(folds["study_uid"])
    new = pd.Index(sorted(known - listed))
    gone = pd.Index(sorted(listed - known - set(lost)))
    if len(new) or len(gone):
        parts = []
        if len(new):
            parts.append(
                f"{len(new)} studies have no fold ({_some(new)}): append a row "
                f"study_uid,group,stratum,fold for each (e.g. {new[0]},{new[0]},none,0)"
            )
        if len(gone):
            parts.append(
                f"{len(gone)} rows name studies that are gone ({_some(gone)}): delete them"
            )
        raise DataError(
            f"folds {path} do not fit the studies: {'; '.join(parts)}. Deleting the file deals all "
            "folds anew and makes every trained model stale"
        )
    count = int(folds["fold"].nunique())
    if count != n:
        raise DataError(f"folds {path} hold {count} folds, the config asks for folds.n = {n}")
    empty = sorted(set(range(n)) - set(folds.loc[folds["study_uid"].isin(known), "fold"]))
    if empty:
        raise DataError(
            f"folds {path}: every study of folds {empty} was left out by the index "
            "(index/failures.json says why); mend them or deal the folds anew"
        )
    if "group" in studies:
        of_study = studies.set_index("study_uid")["group"]
        spread = folds.groupby(folds["study_uid"].map(of_study))["fold"].nunique()
        split = spread.index[spread > 1]
        if len(split):
            raise DataError(
                f"folds {path}: {len(split)} groups lie in two folds: {_some(split)}. Their "
                "studies are of one patient or near-duplicates (index/groups.csv says why): give "
                "each group one fold, or leave copies out with exclude:"
            )


def settle_folds(
    studies: pd.DataFrame,
    config: FoldsConfig,
    path: Path,
    seed: int,
    lost: Collection[str] = (),
) -> pd.DataFrame:
    """The folds of a run: the config's file, else the run's own CSV, else new ones.

    Args:
        studies: training rows of `studies`.
        config: number of folds, and a file that wins over everything.
        path: the run's CSV; written where the folds come from elsewhere.
        seed: config seed.
        lost: studies that the index left out; an existing file may name them.

    Raises:
        DataError: an existing file does not fit the studies; says how to extend it.
    """
    source = config.file if config.file is not None else path
    if config.file is not None or path.exists():
        folds = load_folds(source)
        check_folds(folds, studies, config.n, source, lost)
        if source == path:
            return folds
    else:
        folds = make_folds(studies, n=config.n, seed=derive_seed(seed, "folds"))
    text = folds.to_csv(index=False)
    if not path.exists() or path.read_text() != text:
        with publish(path) as temporary:
            temporary.write_text(text)
    return folds

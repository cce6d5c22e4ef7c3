"""What a run could not do: which study failed where, why, and on what inputs.

In: JSON files that the stages leave beside what they made. Out: one list, a table (contract
`failures`), and a few lines of text. Example::

    found = gather(paths, ("vertebra", *config.members), config.folds.n)
    summary(found)

A failure costs its study there and nothing else; it is tried again when its inputs change.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import read_json, stored_key, write_json

if TYPE_CHECKING:
    import pandas as pd

TRAINING, ROWS, LEVELS = "training", "rows", "levels"
"""Stages of a fold model: a study it could not learn from, a study it gave no rows for, one whose
rows give no levels."""

NO_LEVELS = "its scan shows none of C1..C7"
"""The cause where there is nothing to judge: no fault of files or networks."""

FILES = {TRAINING: "left_out.json", ROWS: "failures.json", LEVELS: "without_levels.json"}
SHOWN = 5


@dataclass(frozen=True)
class Failure:
    """One study that failed.

    `stage` is index, coarse, fine or a key of `FILES`; `member` is "" and `model_fold` -1 where a
    stage has none. `inputs_key` is the fingerprint of what it failed on; where that changes it is
    tried again, and at every run where it is "".
    """

    stage: str
    member: str
    study_uid: str
    model_fold: int
    cause: str
    inputs_key: str = ""


def write_failures(path: Path, failures: Iterable[Failure], key: str) -> None:
    """Keep the failures of an artifact beside it, under the artifact's key."""
    write_json(path, [asdict(failure) for failure in failures], key)


def read_failures(path: Path) -> list[Failure]:
    """Failures of one file, none where it is absent."""
    return [Failure(**raw) for raw in read_json(path)] if path.exists() else []


def _of_data(paths: RunPaths) -> list[Failure]:
    """Failures of index and volumes, whose own keys decide when a study is tried again."""
    found = []
    for stage, folder, table in (
        ("index", paths.root / "index", "studies"),
        ("coarse", paths.cache / "coarse", "coarse"),
        ("fine", paths.cache / "fine", "fine"),
    ):
        file, key = folder / "failures.json", stored_key(paths.table(table)) or ""
        reasons = read_json(file) if file.exists() else {}
        found += [Failure(stage, "", uid, -1, cause, key) for uid, cause in reasons.items()]
    return found


def gather(paths: RunPaths, members: Iterable[str], folds: int) -> list[Failure]:
    """All failures of a run, without pandas: index, volumes, then the fold models of `members`."""
    found = _of_data(paths)
    for member in members:
        for fold in range(folds):
            for name in FILES.values():
                found += read_failures(paths.model(member, fold) / name)
    return found


def failures_table(failures: Iterable[Failure]) -> "pd.DataFrame":
    """Contract `failures`."""
    import pandas as pd

    columns = list(Failure.__dataclass_fields__)
    return pd.DataFrame([astuple(failure) for failure in failures], columns=columns)


def summary(failures: list[Failure]) -> str:
    """One line for each stage and member with its studies, then the first causes; "" for none."""
    if not failures:
        return ""
    studies = dict.fromkeys((f.stage, f.member, f.study_uid) for f in failures)
    counts = Counter(" ".join(filter(None, (stage, member))) for stage, member, _ in studies)
    causes = dict.fromkeys(f.cause for f in failures)
    more = f"\n  and {len(causes) - SHOWN} more causes" if len(causes) > SHOWN else ""
    return (
        "studies left out: "
        + ", ".join(f"{name} {count}" for name, count in counts.items())
        + "".join(f"\n  {cause}" for cause in list(causes)[:SHOWN])
        + more
    )

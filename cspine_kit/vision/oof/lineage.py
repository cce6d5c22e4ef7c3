"""Which studies a model has learned from: the proof that fold k's models never saw fold k.

In: the folder of a fold model, the studies it is trained on, the lists of what it started from or
was taught by. Out: `studies.json` beside the model, its hash inside `model.json`. Example::

    studies = read_lineage(paths.model("vertebra", 0))
    write_lineage(Path("model"), ["1.2.3"], upstream=[studies], key="what it is made from")
    check_lineage(paths.model("vertebra", 0), held_out=["1.2.3"])

The list stays in the run folder: ids of training studies do not travel. The hash does, and whoever
collects a model's rows or bundles its weights compares the two.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import fingerprint, is_fresh, read_json, write_json
from cspine_kit.vision.names import MODEL_FILE

LINEAGE_FILE = "studies.json"
HASH = "learned_from"
"""The hash's name in model.json."""

SHOWN = 3


def read_lineage(folder: Path) -> list[str]:
    """All studies that a model has learned from, upstream ones included, sorted; none of the finder
    that ships, which has learned from no competition.

    Raises:
        ArtifactError: there is no list, or it is none.
    """
    path = folder / LINEAGE_FILE
    try:
        studies = read_json(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}): nobody can tell which studies this model has seen; "
            f"remove {folder} and run make oof again"
        ) from error
    if not isinstance(studies, list) or not all(isinstance(s, str) for s in studies):
        raise ArtifactError(f"{path} is no list of studies; remove {folder} and run make oof again")
    return sorted(set(studies))


def write_lineage(
    folder: Path, own: Iterable[str], *, upstream: Iterable[Iterable[str]], key: str
) -> None:
    """Write down, before a training starts, what the model will have learned from.

    Args:
        folder: of the model.
        own: its training studies.
        upstream: the lists of the models whose weights it starts from or whose outputs teach it.
        key: the model's. A training that goes on under the same key keeps what it saw before.
    """
    known = set(own).union(*upstream)
    if is_fresh(folder / LINEAGE_FILE, key):
        known |= set(read_lineage(folder))
    write_json(folder / LINEAGE_FILE, sorted(known), key)


def seal_model(folder: Path) -> None:
    """Put the list's hash into `model.json`, unless there is one."""
    model = read_json(folder / MODEL_FILE)
    if HASH not in model:
        write_json(folder / MODEL_FILE, {**model, HASH: fingerprint(read_lineage(folder))})


def check_lineage(folder: Path, held_out: Iterable[str]) -> None:
    """Refuse a model that has seen what it is held out from, or of which that cannot be told.

    Raises:
        ArtifactError: the list is missing, is not the one whose hash `model.json` holds, or names a
            study of the model's own fold.
    """
    studies, path = read_lineage(folder), folder / MODEL_FILE
    try:
        stored = read_json(path).get(HASH)
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; run make oof again") from error
    if stored != fingerprint(studies):
        raise ArtifactError(
            f"{path} holds another hash of its training studies than {LINEAGE_FILE} gives: model "
            f"and list do not belong together; remove {folder} and run make oof again"
        )
    seen = sorted(set(studies) & set(held_out))
    if seen:
        raise ArtifactError(
            f"{folder}: the model has learned from {len(seen)} studies of its own fold: "
            f"{seen[:SHOWN]}; its scores there are worth nothing. Remove {folder} and run make oof "
            "again"
        )


def check_lineages(paths: RunPaths, names: Iterable[str], fold_of: Mapping[str, int]) -> None:
    """Check fold models of a run.

    Args:
        paths: the run.
        names: of the networks that are used, the vertebra stage's among them.
        fold_of: fold by study_uid.

    Raises:
        ArtifactError: see `check_lineage`.
    """
    names = tuple(names)
    for fold in sorted(set(fold_of.values())):
        held_out = [uid for uid, own in fold_of.items() if own == fold]
        for name in names:
            check_lineage(paths.model(name, fold), held_out)

"""Any folders judged, one JSON file for each; those that are judged already are skipped.

In: folders of DICOM files, a bundle. Out: `<out>/<name>.json`, beside it what was asked for, and
`predictions.csv` of all. Example::

    wanted = Wanted(bundle, Path("predictions"))
    done = predict_folders([folder], wanted)
    done[0].path.name, done[0].status, done[0].skipped
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import ArtifactError, ConfigError, CSpineError
from cspine_kit.core.runs import (
    file_hash,
    file_state,
    fingerprint,
    is_fresh,
    publish,
    read_json,
    write_json,
)
from cspine_kit.data.reader.headers.files import list_files
from cspine_kit.infer.judgment import OK, SCHEMA, named
from cspine_kit.infer.manifest import MANIFEST

if TYPE_CHECKING:
    from cspine_kit.infer.predictor import Predictor

log = logging.getLogger(__name__)

SUMMARY = "predictions.csv"
SEGMENTATION, REPORT = ".levels.seg.dcm", ".sr.dcm"


@dataclass(frozen=True)
class Wanted:
    """What to write: from which bundle, where, and which DICOM objects beside the JSON."""

    bundle: Path
    out: Path
    segmentation: bool = False
    report: bool = False
    phantom_bundle: bool = False


@dataclass(frozen=True)
class Done:
    """One folder: its JSON, status and reason; `skipped` where it was finished before."""

    name: str
    path: Path
    status: str
    reason: str
    skipped: bool


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Changes when a file of the study does."""
    if not folder.is_dir():
        return [(folder.name, *file_state(folder))]
    try:
        return [(name, *file_state(folder / name)) for name in list_files(folder)]
    except CSpineError:  # the reader says why
        return [(folder.name, *file_state(folder))]


def names_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Folder by the name of its files; each name once.

    Raises:
        ConfigError: two folders of one name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        name = named(folder)
        if name in found and found[name].resolve() != folder.resolve():
            raise ConfigError(
                f"{found[name]} and {folder} would both be written as {name}.json; "
                "give each an --out of its own"
            )
        found[name] = folder
    return found


def each_folder(folders: Sequence[Path], wanted: Wanted) -> Iterator[Done]:
    """`predict_folders`, folder by folder.

    Raises:
        ConfigError: two folders of one name.
        ArtifactError: the bundle is not sound.
    """
    from cspine_kit.infer.predictor import Predictor

    places = names_of(folders)
    if not (wanted.bundle / MANIFEST).is_file():
        raise ArtifactError(f"{wanted.bundle} is no bundle; make kernel builds one")
    manifest = file_hash(wanted.bundle / MANIFEST)
    options = [SCHEMA, wanted.segmentation, wanted.report, wanted.phantom_bundle]
    predictor: Predictor | None = None
    for name, folder in places.items():
        path = wanted.out / f"{name}.json"
        key = fingerprint(manifest, options, _state(folder))
        if is_fresh(path, key) and (found := read_json(path))["status"] == OK:
            yield Done(name, path, found["status"], found["reason"], True)
            continue
        if predictor is None:
            predictor = Predictor(wanted.bundle, phantom_bundle=wanted.phantom_bundle)
        found = _written(predictor, folder, wanted, name)
        write_json(path, found, key)
        yield Done(name, path, found["status"], found["reason"], False)


def predict_folders(folders: Sequence[Path], wanted: Wanted) -> list[Done]:
    """Judge folders; a scan that cannot be judged costs itself.

    Args:
        folders: each a study's DICOM files, a .zip of them, or a NIfTI file.
        wanted: what to write and where.

    Raises:
        ConfigError: two folders of one name.
        ArtifactError: the bundle is not sound, or a package for what is wanted is missing.
    """
    from tqdm import tqdm

    stream = each_folder(folders, wanted)
    done = list(tqdm(stream, total=len(folders), desc="predict", unit="study"))
    write_summary(done, wanted.out / SUMMARY)
    return done


def _written(predictor: "Predictor", folder: Path, wanted: Wanted, name: str) -> dict[str, Any]:
    """Judge one folder and write the DICOM objects; the JSON says what came of them."""
    judgment = predictor.predict(folder)
    found = judgment.as_dict()
    files: dict[str, str] = {}
    if judgment.ok and (wanted.segmentation or wanted.report):
        from cspine_kit.show.exports import dicom

        for asked, ending, write in (
            (wanted.segmentation, SEGMENTATION, dicom.write_segmentation),
            (wanted.report, REPORT, dicom.write_report),
        ):
            if not asked:
                continue
            path = wanted.out / f"{name}{ending}"
            try:
                write(judgment, folder, path)
                files[ending.strip(".")] = path.name
            except ArtifactError:
                raise
            except Exception as error:  # noqa: BLE001 - the numbers stand without it
                log.warning("%s: %s cannot be written: %s", name, path.name, error)
                files[ending.strip(".")] = f"not written: {type(error).__name__}: {error}"
    return {**found, "files": files}


def write_summary(done: Sequence[Done], path: Path) -> None:
    """One row for each study: name, status, reason, eight probabilities."""
    import pandas as pd

    rows = []
    for one in done:
        probs = read_json(one.path)["probabilities"] or {}
        numbers = {t: probs[t]["prob"] if t in probs else None for t in TARGETS}
        rows.append({"study": one.name, "status": one.status, "reason": one.reason, **numbers})
    with publish(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)

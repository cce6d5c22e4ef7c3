"""The offline Kaggle dataset: everything the kernel needs in one flat folder, each file hashed.

In: a finished run (`make oof`, `make stack`). Out: the bundle folder with `manifest.json` and
`dataset-metadata.json`, and `kernels/submit/kernel-metadata.json`. Example::

    manifest = build_bundle(config, paths, paths.bundle)
    manifest["score"], sum(sizes_of(paths.bundle).values())

The folder is flat because the kaggle client skips sub-folders; the manifest maps flat names back.
"""

import csv
import math
import shutil
from pathlib import Path
from typing import Any

from cspine_kit import __version__
from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config, resolved_yaml
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.metric import best_constant
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.resolved import changed
from cspine_kit.core.runs import (
    file_hash,
    fingerprint,
    is_fresh,
    publish,
    read_json,
    stored_key,
    write_json,
)
from cspine_kit.core.tables import read_table
from cspine_kit.data.labels import training_labels
from cspine_kit.infer.manifest import DATASET_METADATA, FORMAT, MANIFEST, verify_bundle
from cspine_kit.ship.kaggle.service import (
    CODE_FILE,
    KERNEL_METADATA,
    check_names,
    check_size,
    dataset_metadata,
    kernel_metadata,
)
from cspine_kit.vision.names import MODEL_FILE, VERTEBRA, WEIGHTS_FILE

SEPARATOR = "__"


def _priors(config: Config, paths: RunPaths) -> dict[str, float]:
    """The best constant on all training labels: what is predicted where nothing else can be."""
    labels = training_labels(read_table(paths.table("studies"), "studies"))
    constant = best_constant(labels[list(TARGETS)].to_numpy(), config.stack.form)
    return {target: float(p) for target, p in zip(TARGETS, constant, strict=True)}


def _score(config: Config, paths: RunPaths) -> dict[str, Any]:
    """Out-of-fold score of the model that ships, of this run's tables and stack settings.

    Raises:
        ArtifactError: no score, no finite one, or one of other tables or another config.
    """
    from cspine_kit.stack.pipeline import stack_key

    scores = paths.stack / "scores.csv"
    if not scores.exists():
        raise ArtifactError(
            f"{scores} is missing: a bundle needs its out-of-fold score (make stack)"
        )
    if not is_fresh(scores, stack_key(config, paths)):
        raise ArtifactError(
            f"{scores} is the score of other tables or of another config; run make stack again"
        )
    with scores.open(newline="") as handle:
        shipped = [row for row in csv.DictReader(handle) if row.get("ships") == "True"]
    try:
        [row] = shipped
        values = {form: float(row[form] or "nan") for form in ("per_exam", "global")}
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"{scores} must score exactly one model that ships, it has {len(shipped)} "
            f"({error}); run make stack again"
        ) from error
    if not all(math.isfinite(value) for value in values.values()):
        raise ArtifactError(f"{scores}: the score of {row['model']} is not finite: {values}")
    return {"model": row["model"], **values}


def _contents(config: Config, paths: RunPaths) -> dict[str, Path]:
    """Files of the run that travel, by their place in the bundle's tree.

    Raises:
        ArtifactError: a model is missing.
    """
    files = {}
    for member in (VERTEBRA, *config.members):
        for fold in range(config.folds.n):
            for name in (MODEL_FILE, WEIGHTS_FILE):
                source = paths.model(member, fold) / name
                if not source.exists():
                    raise ArtifactError(f"{source} is missing: run make oof first")
                files[f"models/{member}/fold_{fold}/{name}"] = source
    for source in sorted(paths.stack.rglob("*")):
        if source.is_file() and source.suffix in {".txt", ".json", ".csv"}:
            files[f"stack/{source.relative_to(paths.stack)}"] = source
    files.pop("stack/run.json", None)
    return files


def build_bundle(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    """Write the bundle unless it is there with the same content; returns its manifest.

    Raises:
        ArtifactError: the run is not finished, is another config's or has no out-of-fold score, a
            wheel cannot be had or does not fit, a file looks like a credential, or the bundle that
            is there was changed.
        ConfigError: a name or license the service would refuse.
    """
    from cspine_kit.ship.bundle.wheelhouse import (
        SOURCE_ROOT,
        check_wheels,
        fill_wheelhouse,
        kit_sources,
    )
    from cspine_kit.ship.secrets import refuse_secrets

    check_names(config)
    score = _score(config, paths)
    if older := changed(config, paths):
        raise ArtifactError(
            f"{paths.root} was not made from this config, or not to its end: {', '.join(older)}; "
            "run make oof and make stack again"
        )
    files, priors = _contents(config, paths), _priors(config, paths)
    refuse_secrets([*files.values(), *kit_sources()])
    sources = {str(p.relative_to(SOURCE_ROOT)): file_hash(p) for p in kit_sources()}
    held = {place: file_hash(path) for place, path in files.items()}
    key = fingerprint(FORMAT, config, sources, held, priors, score)
    if is_fresh(out, key):
        return verify_bundle(out)
    if out.exists() and stored_key(out) is None and any(out.iterdir()):
        raise ArtifactError(f"{out} is not empty and is no finished bundle; name another folder")
    with publish(out, key) as folder:
        folder.mkdir(parents=True)
        places = {place.replace("/", SEPARATOR): place for place in files}
        for name, place in places.items():
            shutil.copyfile(files[place], folder / name)
        (folder / "config.yaml").write_text(resolved_yaml(config))
        write_json(folder / "priors.json", priors)
        fill_wheelhouse(config.bundle, folder)
        check_wheels(config.bundle, folder)
        listed = {
            path.name: {
                "place": places.get(path.name, path.name),
                "sha256": file_hash(path),
                "bytes": path.stat().st_size,
            }
            for path in sorted(folder.iterdir())
        }
        manifest = {
            "format": FORMAT,
            "kit": __version__,
            "name": config.name,
            "score": score,
            "files": listed,
        }
        write_json(folder / MANIFEST, manifest)
        write_json(folder / DATASET_METADATA, dataset_metadata(config))
        check_size(sizes_of(folder))
    return manifest


def sizes_of(bundle: Path) -> dict[str, int]:
    """Bytes of each file that would be uploaded: everything but the metadata file."""
    files = (path for path in sorted(bundle.iterdir()) if path.name != DATASET_METADATA)
    return {path.name: path.stat().st_size for path in files}


def write_kernel_metadata(config: Config, folder: Path) -> None:
    """Write `kernel-metadata.json` beside submit.py, where it does not say the same already.

    Raises:
        ArtifactError: the folder holds no submit.py.
    """
    if not (folder / CODE_FILE).is_file():
        raise ArtifactError(f"{folder / CODE_FILE} is missing; name the folder of the kernel")
    metadata, path = kernel_metadata(config), folder / KERNEL_METADATA
    if not path.exists() or read_json(path) != metadata:
        write_json(path, metadata)

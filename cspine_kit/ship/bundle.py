"""The offline Kaggle dataset: everything the kernel needs in one flat folder, each file hashed.

In: a finished run (`make oof`, `make stack`). Out: the bundle folder with `manifest.json` and
`dataset-metadata.json`, and `kernels/submit/kernel-metadata.json`. Example::

    build_bundle(config, paths, out)
    root = open_bundle(out, temporary_folder)     # verified, laid out as a tree

The folder is flat because the kaggle client skips sub-folders; the manifest maps flat names back.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cspine_kit import __version__
from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config, resolved_yaml
from cspine_kit.core.errors import ArtifactError, ConfigError
from cspine_kit.core.metric import best_constant
from cspine_kit.core.paths import RunPaths
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
from cspine_kit.vision.names import MODEL_FILE, VERTEBRA, WEIGHTS_FILE

MANIFEST = "manifest.json"
FORMAT = "cspine_kit bundle 1"
SOURCE_ROOT = Path(__file__).resolve().parents[2]
SEPARATOR = "__"
SLUG_LIMITS, TITLE_LIMITS = (6, 50), (6, 50)
"""Length limits of the dataset service (kaggle 2.2.4: `datasets create` refuses others)."""

WHEEL_EPOCH = "315532800"
"""SOURCE_DATE_EPOCH 1980-01-01: equal sources give an equal wheel."""


def _source_files() -> list[Path]:
    return sorted((SOURCE_ROOT / "cspine_kit").rglob("*.py"))


def _build_kit_wheel(folder: Path) -> None:
    """Build this kit's own wheel from a copy of its sources, so that the checkout stays clean."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "kit"
        copy.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            if not (SOURCE_ROOT / name).exists():
                raise ArtifactError(
                    f"{SOURCE_ROOT / name} is missing: a bundle is built from a source checkout"
                )
            shutil.copy(SOURCE_ROOT / name, copy)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SOURCE_ROOT / "cspine_kit", copy / "cspine_kit", ignore=ignore)
        command = ["wheel", str(copy), "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
        _pip(command, {"SOURCE_DATE_EPOCH": WHEEL_EPOCH})


def _download_wheels(config: Config, folder: Path) -> None:
    """Fetch the binary wheels Kaggle's image lacks, for each target Python."""
    for python in config.bundle.pythons if config.bundle.wheels else ():
        _pip(
            [
                *("download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(folder)),
                *("--python-version", python, "--implementation", "cp"),
                *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"),
                *config.bundle.wheels,
            ]
        )


def _pip(arguments: list[str], extra: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(
        command, env={**os.environ, **(extra or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ArtifactError(f"pip {arguments[0]} failed: {done.stderr.strip()[-500:]}")


def _check_names(config: Config) -> None:
    bundle = config.bundle
    for key, slug in (("dataset", bundle.dataset), ("kernel", bundle.kernel)):
        low, high = SLUG_LIMITS
        if not low <= len(slug) <= high:
            raise ConfigError(f"bundle.{key} {slug!r} must have {low}..{high} characters")


def _priors(config: Config, paths: RunPaths) -> dict[str, float]:
    """The best constant on all training labels: what is predicted where nothing else can be."""
    studies = read_table(paths.table("studies"), "studies")
    labels = studies.loc[studies["split"] == "train", list(TARGETS)].dropna().to_numpy()
    constant = best_constant(labels, config.stack.form)
    return {target: float(p) for target, p in zip(TARGETS, constant, strict=True)}


def _contents(config: Config, paths: RunPaths) -> dict[str, Path]:
    """Files of the run that travel, by their place in the bundle's tree.

    Raises:
        ArtifactError: a model or the stack's out-of-fold score is missing.
    """
    scores = paths.stack / "scores.csv"
    if not scores.exists():
        raise ArtifactError(
            f"{scores} is missing: a bundle needs its out-of-fold score (make stack)"
        )
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


def bundle_key(config: Config, files: dict[str, Path]) -> str:
    """Fingerprint of everything a bundle holds."""
    sources = {str(p.relative_to(SOURCE_ROOT)): file_hash(p) for p in _source_files()}
    return fingerprint(FORMAT, config, sources, {n: file_hash(p) for n, p in files.items()})


def build_bundle(config: Config, paths: RunPaths, out: Path) -> dict[str, Any]:
    """Write the bundle unless it is there with the same content; returns its manifest.

    Raises:
        ArtifactError: the run is not finished, or a wheel cannot be had.
        ConfigError: a name the service would refuse.
    """
    _check_names(config)
    files = _contents(config, paths)
    key = bundle_key(config, files)
    if is_fresh(out, key):
        return dict(read_json(out / MANIFEST))
    if out.exists() and stored_key(out) is None and any(out.iterdir()):
        raise ArtifactError(f"{out} is not empty and is no finished bundle; name another folder")
    with publish(out, key) as folder:
        folder.mkdir(parents=True)
        for place, source in files.items():
            shutil.copy(source, folder / place.replace("/", SEPARATOR))
        (folder / "config.yaml").write_text(resolved_yaml(config))
        write_json(folder / "priors.json", _priors(config, paths))
        _build_kit_wheel(folder)
        _download_wheels(config, folder)
        places = {place.replace("/", SEPARATOR): place for place in files}
        listed = {
            path.name: {
                "place": places.get(path.name, path.name),
                "sha256": file_hash(path),
                "bytes": path.stat().st_size,
            }
            for path in sorted(folder.iterdir())
        }
        manifest = {"format": FORMAT, "kit": __version__, "name": config.name, "files": listed}
        write_json(folder / MANIFEST, manifest)
        write_json(
            folder / "dataset-metadata.json",
            {
                "id": f"{config.bundle.owner}/{config.bundle.dataset}",
                "title": config.bundle.dataset.replace("-", " "),
                "licenses": [{"name": config.bundle.license}],
            },
        )
    return manifest


def write_kernel_metadata(config: Config, folder: Path) -> None:
    """Write `kernel-metadata.json` beside submit.py: private, offline, GPU, T4."""
    bundle = config.bundle
    write_json(
        folder / "kernel-metadata.json",
        {
            "id": f"{bundle.owner}/{bundle.kernel}",
            "title": bundle.kernel.replace("-", " "),
            "code_file": "submit.py",
            "language": "python",
            "kernel_type": "script",
            "is_private": True,
            "enable_gpu": True,
            "enable_tpu": False,
            "enable_internet": False,
            "machine_shape": "NvidiaTeslaT4",
            "dataset_sources": [f"{bundle.owner}/{bundle.dataset}"],
            "competition_sources": [config.competition.slug],
            "kernel_sources": [],
            "model_sources": [],
        },
    )


def open_bundle(bundle: Path, scratch: Path) -> Path:
    """Verify every hash of a bundle and lay it out as a tree of links under `scratch`.

    Raises:
        ArtifactError: no manifest, a missing file, or bytes that are not what the manifest says.
    """
    if not (bundle / MANIFEST).exists():
        raise ArtifactError(f"{bundle} holds no {MANIFEST}; is it a bundle of this kit?")
    manifest = read_json(bundle / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ArtifactError(f"{bundle / MANIFEST}: format {manifest.get('format')!r} is not known")
    for name, entry in manifest["files"].items():
        source = bundle / name
        if Path(name).name != name or not source.is_file():
            raise ArtifactError(f"bundle file {source} is missing; upload the bundle again")
        if file_hash(source) != entry["sha256"]:
            raise ArtifactError(f"bundle file {source} is not what the manifest's hash says")
        target = (scratch / entry["place"]).resolve()
        if not target.is_relative_to(scratch.resolve()):
            raise ArtifactError(f"bundle file {name} wants to lie outside: {entry['place']!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.resolve())
    return scratch

"""A bundle as the kernel meets it: a flat folder whose manifest hashes every file.

In: a bundle folder. Out: its checked manifest, or its files laid out as a tree. Example::

    root = open_bundle(bundle, Path("opened"))    # verified; `root / "models"`, `root / "stack"`
    verify_bundle(bundle)["score"]
"""

from pathlib import Path
from typing import Any

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import file_hash, read_json

MANIFEST = "manifest.json"
FORMAT = "cspine_kit bundle 1"
DATASET_METADATA = "dataset-metadata.json"
"""Settings of the Kaggle dataset that a bundle becomes: not part of it, and not hashed."""


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle.

    Raises:
        ArtifactError: there is none, or it is of another format.
    """
    path = bundle / MANIFEST
    if not path.exists():
        raise ArtifactError(f"{bundle} holds no {MANIFEST}; is it a bundle of this kit?")
    try:
        manifest = read_json(path)
        known = manifest["format"] == FORMAT and isinstance(manifest["files"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is no manifest: {type(error).__name__}: {error}") from error
    if not known:
        raise ArtifactError(f"{path}: format {manifest['format']!r} is not known")
    return dict(manifest)


def check_file(bundle: Path, name: str, entry: dict[str, Any]) -> Path:
    """The path of one listed file, whose bytes are what the manifest says.

    Raises:
        ArtifactError: it is missing, or it changed under its hash.
    """
    path = bundle / name
    if Path(name).name != name or not path.is_file():
        raise ArtifactError(f"bundle file {path} is missing; build and upload the bundle again")
    if file_hash(path) != entry["sha256"]:
        raise ArtifactError(
            f"bundle file {path} is not what the manifest's hash says: it changed after the bundle "
            f"was built; remove {bundle} and build it again (make kernel)"
        )
    return path


def verify_bundle(bundle: Path) -> dict[str, Any]:
    """Check every file of a bundle on this machine before it is used again or sent.

    Returns:
        The manifest.

    Raises:
        ArtifactError: a file is missing, changed, or was put there by someone else (it would be
            uploaded unhashed).
    """
    manifest = read_manifest(bundle)
    for name, entry in manifest["files"].items():
        check_file(bundle, name, entry)
    known = {*manifest["files"], MANIFEST, DATASET_METADATA}
    strangers = sorted(path.name for path in bundle.iterdir() if path.name not in known)
    if strangers:
        raise ArtifactError(f"{bundle} holds files that are not of the bundle: {strangers[:5]}")
    return manifest


def open_bundle(bundle: Path, scratch: Path) -> Path:
    """Verify every hash of a bundle and lay it out as a tree of links under `scratch`.

    Raises:
        ArtifactError: no manifest, a missing file, or bytes that are not what the manifest says.
    """
    for name, entry in read_manifest(bundle)["files"].items():
        source = check_file(bundle, name, entry)
        target = (scratch / entry["place"]).resolve()
        if not target.is_relative_to(scratch.resolve()):
            raise ArtifactError(f"bundle file {name} wants to lie outside: {entry['place']!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.resolve())
    return scratch

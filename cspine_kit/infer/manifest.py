"""A bundle as the kernel meets it: a flat folder whose manifest hashes every file.

In: a bundle folder. Out: its checked manifest, or its files laid out as a tree. Example::

    root = open_bundle(bundle, Path("opened"))      # all verified; `root / "models"`
    # The sound ones; place -> fault of the others:
    faults = lay_out(bundle, Path("laid_out"), wait_s=900.0, patience_s=450.0)
    verify_bundle(bundle)["score"]
"""

import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import file_hash, read_json
from cspine_kit.infer.answer import cause_of
from cspine_kit.infer.patience import run_all

MANIFEST = "manifest.json"
FORMAT = "cspine_kit bundle 2"

PRIORS, CHAINS, PROOF = "priors.json", "chains.json", "proof.pack"
"""Best constants by target; out-of-fold loss by fold; a packed phantom study (`infer.proof`)."""

COPY = ".copy"
"""What everything depends on (manifest, config, the kit's wheel) lies in a bundle twice: a damaged
byte in one of them then costs nothing."""

Origin = Literal["phantom", "real"]
HASHERS = 4
RELIEF_SHARE = 1 / 60
"""Of the time for all files: after that a file that is still read has a further one begun beside
it. A dozen files that hang must not keep the sound ones behind them from being looked at."""


def _entry(path: Path, name: object, entry: object) -> dict[str, Any]:
    """One entry of a manifest: a place inside the tree and a hash; "apart": in a dataset of its
    own."""
    entry = entry if isinstance(entry, dict) else {}
    place, digest = entry.get("place"), entry.get("sha256")
    if not (isinstance(name, str) and isinstance(place, str) and isinstance(digest, str)):
        raise ArtifactError(f"{path}: the entry of {name!r} has no place or no sha256")
    parts = PurePosixPath(place)
    if not place or parts.is_absolute() or ".." in parts.parts or "\0" in place + name:
        raise ArtifactError(f"{path}: bundle file {name} wants to lie outside: {place!r}")
    if not name or PurePosixPath(name).name != name:
        raise ArtifactError(f"{path}: {name!r} is no plain file name")
    return {**entry, "place": place, "sha256": digest}


def read_manifest(bundle: Path, *, copies: bool = False) -> dict[str, Any]:
    """The manifest of a bundle; "files", "format" and "origin" are sound in it.

    Args:
        bundle: the flat folder.
        copies: where the manifest is not sound, its copy will do.

    Raises:
        ArtifactError: there is none, it is of another format, or an entry is malformed.
    """
    try:
        return _read_manifest(bundle, MANIFEST)
    except ArtifactError:
        if copies and (bundle / (MANIFEST + COPY)).exists():
            return _read_manifest(bundle, MANIFEST + COPY)
        raise


def _read_manifest(bundle: Path, name: str) -> dict[str, Any]:
    path = bundle / name
    if not path.exists():
        raise ArtifactError(f"{bundle} holds no {MANIFEST}; is it a bundle of this kit?")
    try:
        manifest = read_json(path)
        known, files = manifest["format"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} is no manifest: {type(error).__name__}: {error}") from error
    if known != FORMAT:
        raise ArtifactError(f"{path}: format {known!r} is not known, only {FORMAT!r}")
    if not isinstance(files, dict) or manifest.get("origin") not in ("phantom", "real"):
        raise ArtifactError(f"{path} is no manifest: it lists no files or names no origin")
    checked = {name: _entry(path, name, entry) for name, entry in files.items()}
    places = [entry["place"] for entry in checked.values()]
    if len({*places}) < len(places):
        raise ArtifactError(f"{path}: two files want to lie at one place")
    weights = manifest.get("weights")
    if weights is not None and (not isinstance(weights, str) or Path(weights).name != weights):
        raise ArtifactError(f"{path}: weights {weights!r} is no name of a dataset")
    return {**manifest, "weights": weights, "files": checked}


def folders_of(bundle: Path, manifest: dict[str, Any]) -> list[Path]:
    """Where files of a bundle may lie: with its manifest, or in the dataset of its weights.

    Kaggle mounts datasets beside each other, in both of its layouts; that of another owner lies
    beside the owner's own folder. Which one is meant the hashes tell.
    """
    slug = manifest.get("weights")
    if not slug:
        return [bundle]
    others = sorted(bundle.parent.parent.glob(f"*/{slug}"))
    return list(dict.fromkeys([bundle, bundle.parent / slug, *others]))


def check_file(folders: Sequence[Path], name: str, entry: dict[str, Any]) -> Path:
    """The path of one listed file, whose bytes are what the manifest says.

    Args:
        folders: where to look, the bundle first (`folders_of`).
        name: of the file.
        entry: of the manifest.

    Raises:
        ArtifactError: it is missing, cannot be read, or changed under its hash.
    """
    there = [folder for folder in folders if (folder / name).is_file()]
    fault = f"bundle file {folders[0] / name} is missing; build and upload the bundle again"
    for folder in there:
        try:
            return _check(folder, name, entry)
        except ArtifactError as error:
            fault = str(error)
    raise ArtifactError(fault)


def _check(bundle: Path, name: str, entry: dict[str, Any]) -> Path:
    path = bundle / name
    try:
        found = file_hash(path)
    except OSError as error:
        raise ArtifactError(f"bundle file {path} cannot be read: {error}") from error
    if found != entry["sha256"]:
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
        check_file([bundle], name, entry)
    known = {*manifest["files"], MANIFEST}
    for copy in bundle.glob(f"*{COPY}"):
        name = copy.name.removesuffix(COPY)
        if name in known and file_hash(copy) != file_hash(bundle / name):
            raise ArtifactError(f"bundle file {copy} is no copy of {name}; build it again")
        known |= {copy.name} if name in known else set()
    strangers = sorted(path.name for path in bundle.iterdir() if path.name not in known)
    if strangers:
        raise ArtifactError(f"{bundle} holds files that are not of the bundle: {strangers[:5]}")
    return manifest


def _link(folders: Sequence[Path], scratch: Path, name: str, entry: dict[str, Any]) -> None:
    """Verify one file, or its copy, and link it into the tree.

    Raises:
        ArtifactError: neither is sound; or the file is not, and its copy stands in.
    """
    fault = None
    try:
        source = check_file(folders, name, entry)
    except ArtifactError as error:
        if not (folders[0] / (name + COPY)).exists():
            raise
        source, fault = check_file(folders, name + COPY, entry), error
    target = scratch / entry["place"]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve())
    except FileExistsError as error:
        raise ArtifactError(
            f"{target} is there already: a bundle was opened in {scratch} before; open "
            f"{folders[0]} in a new folder"
        ) from error
    if fault is not None:
        raise ArtifactError(f"{fault}; its copy stands in")


def open_bundle(bundle: Path, scratch: Path) -> Path:
    """Verify every hash of a bundle and lay it out as a tree of links under `scratch`.

    Raises:
        ArtifactError: no manifest, a missing file, bytes that are not what the manifest says, or a
            bundle was opened in `scratch` before.
    """
    manifest = read_manifest(bundle)
    folders = folders_of(bundle, manifest)
    for name, entry in manifest["files"].items():
        _link(folders, scratch, name, entry)
    return scratch


def _untrue_copy(bundle: Path) -> dict[str, str]:
    """What is told where the manifest and its copy differ: a damaged one may still be JSON."""
    try:
        own, copy = ((bundle / name).read_bytes() for name in (MANIFEST, MANIFEST + COPY))
    except OSError:  # told by whoever needs it
        return {}
    return {} if own == copy else {MANIFEST: f"{MANIFEST} and its copy differ: one is damaged"}


def lay_out(bundle: Path, scratch: Path, *, wait_s: float, patience_s: float) -> dict[str, str]:
    """Lay out what is sound: a file that is not, or that cannot be read in time, stays away.

    Args:
        bundle: the flat folder.
        scratch: gets the tree of links.
        wait_s: for all files.
        patience_s: for one of them.

    Returns:
        What was wrong with files, by place; they are not there but for those that have a copy.

    Raises:
        ArtifactError: no manifest; without it nothing can be told sound.
    """
    manifest = read_manifest(bundle, copies=True)
    files, folders = manifest["files"], folders_of(bundle, manifest)
    faults = _untrue_copy(bundle)
    lock = threading.Lock()

    def check(name: str) -> None:
        try:
            _link(folders, scratch, name, files[name])
        except (ArtifactError, OSError) as error:
            with lock:
                faults[files[name]["place"]] = cause_of(error)

    # Wheels are submit.py's; it has installed what it could.
    wanted = [name for name in files if not name.endswith(".whl")]
    late = run_all(
        check,
        wanted,
        threads=HASHERS,
        wait_s=wait_s,
        patience_s=patience_s,
        relief_s=wait_s * RELIEF_SHARE,
    )
    with lock:
        return {**faults, **{files[name]["place"]: "could not be read in time" for name in late}}

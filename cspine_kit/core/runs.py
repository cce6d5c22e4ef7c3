"""Finished work is skipped, half-done work does not count, and each run says what it was.

In: a path and the fingerprint of what it is made from. Out: the artifact, its key file
`<artifact>.key`, and `run.json`. Example::

    >>> key = fingerprint(config.volumes, "what it is made from")
    >>> with publish(Path("volume.bin"), key) as temporary:
    ...     _ = temporary.write_bytes(b"voxels")
    >>> is_fresh(Path("volume.bin"), key), is_fresh(Path("volume.bin"), "another key")
    (True, False)
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cspine_kit.core.errors import Unfinished

RECORDED_PACKAGES = ("cspine-kit", "numpy", "pandas", "torch", "timm", "lightgbm", "pydicom")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot fingerprint {type(value).__name__}")


def fingerprint(*parts: Any) -> str:
    """SHA-256 (hex) of JSON-like parts; pydantic models count as their values."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(*parts: Any) -> int:
    """A 32-bit seed for one random draw, from its coordinates (config seed, member, fold, ...)."""
    return int(fingerprint(*parts)[:8], 16)


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of one file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def listing_fingerprint(folder: Path) -> str:
    """Fingerprint of a folder's file names, sizes and modification times, without reading them."""
    if not folder.is_dir():
        return fingerprint("absent")
    return fingerprint(sorted((entry.name, *file_state(entry)) for entry in os.scandir(folder)))


def file_state(entry: "os.DirEntry[str] | Path") -> tuple[int, int]:
    """Size and modification time (ns) of a file; (-1, 0) where there is none, or a dead link."""
    try:
        found = entry.stat()
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _key_path(path: Path) -> Path:
    return path.with_name(path.name + ".key")


def stored_key(path: Path) -> str | None:
    """The fingerprint an artifact was made with; None where it is absent or half-done."""
    key = _key_path(path)
    return key.read_text().strip() if path.exists() and key.exists() else None


def is_fresh(path: Path, key: str) -> bool:
    """True where the artifact exists and was made under this very key."""
    return stored_key(path) == key


@contextmanager
def publish(path: Path, key: str | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place when the block succeeds.

    The key is written last: a process that is killed in between leaves an artifact that is not
    fresh (and perhaps the temporary file), so that the work is done again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _key_path(path).unlink(missing_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    if key is not None:
        pending = _key_path(path).with_name(f".{path.name}.key.tmp")
        pending.write_text(key + "\n")
        pending.replace(_key_path(path))


def write_json(path: Path, value: Any, key: str | None = None) -> None:
    """Write JSON atomically, sorted and indented."""
    with publish(path, key) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of the kit."""
    return json.loads(path.read_text())


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result, without importing them."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


@contextmanager
def run_record(
    folder: Path, name: str, *, inputs: Mapping[str, str], device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Write `<folder>/run.json`: what ran, from what, how long, how it ended.

    Yields a dict for figures of the run; they land under "results".
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    record: dict[str, Any] = {
        "name": name,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "inputs": dict(inputs),
        "versions": package_versions(),
        "device": device,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "status": "interrupted",
        "results": results,
    }
    start = time.monotonic()
    try:
        yield results
        record["status"] = "done"
    except Unfinished:
        raise
    except Exception as error:
        record["status"] = f"failed: {type(error).__name__}: {error}"
        raise
    finally:
        record["seconds"] = round(time.monotonic() - start, 3)
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        record["peak_memory_mib"] = round(peak_kib / 1024, 1)
        write_json(folder / "run.json", record)

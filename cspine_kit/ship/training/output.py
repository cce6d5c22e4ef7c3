"""What a session leaves for the next one, and for the machine that sent it.

In: a run folder after the work. Out: `session.json`, which hashes every file but the volumes; the
files of earlier sessions as links; fetched files in their places. Example::

    earlier = sessions(Path("input"), "demo")           # those that are mounted, oldest first
    for session in earlier:
        session.link(paths)

Volumes are gigabytes: they stay on Kaggle, where later sessions read them through
`volumes.shipped`. Their own checksums stand in the tables.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import file_hash, read_json, write_json
from cspine_kit.data.volumes.store import ENDING, MASK_ENDING
from cspine_kit.ship.training.names import Kind

SESSION = "session.json"
MAX_DEPTH = 4

_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
PLACE = rf"(?:{_PART}/)*{_PART}"
"""A path that leads nowhere but down: no part begins with a dot."""

FETCHED = r"(?:safetensors|json|parquet|csv|png)(?:\.key)?"
"""Endings of what is fetched: nothing that a reader would unpickle."""


class Entry(BaseModel):
    """One file."""

    model_config = ConfigDict(extra="forbid")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Report(BaseModel):
    """`session.json`: what a session did, what is left to be done."""

    model_config = ConfigDict(extra="forbid")
    format: Literal["cspine_kit session 1"] = "cspine_kit session 1"
    name: str
    kind: Kind
    number: int
    dataset: str
    """Hash of the manifest of the dataset that it ran on."""
    next: Kind | None
    """The kind of session that is needed next; None where nothing is left."""
    left: str
    """What is left, in words."""
    fault: str
    """Why it ended before its end; empty where it did not."""
    hours: float
    volumes: int
    """Volumes that it made."""
    files: dict[str, Entry]
    """By place in the run folder."""


def read_report(path: Path) -> Report:
    """A session's report.

    Raises:
        ArtifactError: it is none, or a file of it wants to lie outside the run folder.
    """
    try:
        report = Report.model_validate(read_json(path))
        odd = [place for place in report.files if not re.fullmatch(PLACE, place)]
        if odd:
            raise ValueError(f"{odd[0]!r} is no place in a run folder")
    except (OSError, ValueError, ValidationError) as error:
        raise ArtifactError(f"{path} is no report of a session: {error}") from error
    return report


@dataclass(frozen=True)
class Session:
    """An earlier session whose output is mounted."""

    folder: Path
    report: Report

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.folder / "oof" / self.report.name

    def link(self, paths: RunPaths) -> None:
        """Put links to its files into a run folder, in place of older ones.

        Raises:
            ArtifactError: a file is missing or not what the report says.
        """
        for place, entry in self.report.files.items():
            source, target = self.run / place, paths.root / place
            _check(source, entry)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(source.absolute())


def _check(path: Path, entry: Entry) -> None:
    if not path.is_file() or file_hash(path) != entry.sha256:
        raise ArtifactError(f"{path} is missing, or not what {SESSION} says of it")


def holders(root: Path, name: str) -> Iterator[Path]:
    """Folders below `root` that hold a file `name`, nearest first; images are never looked into."""
    level = [root]
    for _ in range(MAX_DEPTH + 1):
        found = [folder for folder in level if (folder / name).is_file()]
        yield from found
        level = [child for folder in level if folder not in found for child in _children(folder)]


def _children(folder: Path) -> list[Path]:
    try:
        found = sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []
    return [child for child in found if not child.name.endswith(("_images", "segmentations"))]


def sessions(root: Path, name: str) -> list[Session]:
    """The sessions of a run whose output is mounted below `root`, oldest first."""
    found = [Session(folder, read_report(folder / SESSION)) for folder in holders(root, SESSION)]
    return sorted((s for s in found if s.report.name == name), key=lambda s: s.report.number)


def leave(paths: RunPaths, report: Report, out: Path) -> Report:
    """Take out what earlier sessions made, and write down what this one did.

    Args:
        paths: the run folder, `out`/oof/<name>.
        report: all but the files.
        out: what Kaggle keeps.
    """
    for path in sorted(paths.root.rglob("*"), reverse=True):
        if path.is_symlink() or path.name.endswith(".tmp"):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    kept = sorted(path for path in paths.root.rglob("*") if path.is_file())
    volumes = {path for path in kept if path.name.endswith(ENDING)}
    count = sum(not path.name.endswith(MASK_ENDING) for path in volumes)
    files = {
        path.relative_to(paths.root).as_posix(): Entry(
            sha256=file_hash(path), bytes=path.stat().st_size
        )
        for path in kept
        if path not in volumes
    }
    report = report.model_copy(update={"files": files, "volumes": count})
    write_json(out / SESSION, report.model_dump(mode="json"))
    return report


def fetched_pattern(name: str) -> str:
    """Names of the files that are fetched from a session's output, as a regular expression."""
    inside = rf"oof/{re.escape(name)}/(?!index/studies/)(?:{_PART}/)*{_PART}\.{FETCHED}"
    return rf"{re.escape(SESSION)}|{inside}"


def take(folder: Path, report: Report, paths: RunPaths) -> int:
    """Move fetched files into the run folder: those that the report lists, with its hashes.

    Key files come last: what they vouch for is there then.

    Returns:
        How many there were.

    Raises:
        ArtifactError: one is missing or not what the report says; nothing is moved then.
    """
    wanted = _wanted(report)
    run = folder / "oof" / report.name
    for place in wanted:
        _check(run / place, report.files[place])
    for place in sorted(wanted, key=lambda place: place.endswith(".key")):
        target = paths.root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        (run / place).replace(target)
    return len(wanted)


def _wanted(report: Report) -> list[str]:
    pattern = re.compile(fetched_pattern(report.name))
    return [place for place in report.files if pattern.fullmatch(f"oof/{report.name}/{place}")]

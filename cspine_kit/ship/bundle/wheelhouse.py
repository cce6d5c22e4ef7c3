"""Wheels of a bundle: the kit's own, and what Kaggle's image lacks, for each Python it may run.

In: a config. Out: `*.whl` in a flat folder, of which by their tags exactly one fits each target
Python. Example::

    wheels = Path("wheels")
    wheels.mkdir()
    fill_wheelhouse(config.bundle, wheels)
    check_wheels(config.bundle, wheels)

Only building a bundle needs this file (and `packaging`); opening one does not.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from cspine_kit import __version__
from cspine_kit.core.command import run_command
from cspine_kit.core.config import BundleConfig
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import file_hash, fingerprint, is_fresh, publish
from cspine_kit.ship.secrets import harmless

SOURCE_ROOT = Path(__file__).resolve().parents[3]
KIT = "cspine-kit"
WHEEL_EPOCH = "315532800"
"""SOURCE_DATE_EPOCH 1980-01-01: equal sources give an equal wheel."""

OLDEST_GLIBC_MINOR = 17
"""manylinux2014 = glibc 2.17, the oldest tag that wheels of today carry."""


def kit_sources() -> list[Path]:
    """Every file that the kit's own wheel is made from, sorted.

    Raises:
        ArtifactError: this is an installed package and no source checkout.
    """
    root_files = [SOURCE_ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    for path in root_files:
        if not path.exists():
            raise ArtifactError(f"{path} is missing: a bundle is built from a source checkout")
    package = SOURCE_ROOT / "cspine_kit"
    return root_files + sorted(
        path
        for path in package.rglob("*")
        if path.is_file() and (path.suffix == ".py" or path.name == "py.typed")
    )


def platforms(glibc: str) -> list[str]:
    """Platform tags that a machine with this glibc runs, best first."""
    major, minor = map(int, glibc.split("."))
    tags = [f"manylinux_{major}_{m}_x86_64" for m in range(minor, OLDEST_GLIBC_MINOR - 1, -1)]
    return [*tags, "manylinux2014_x86_64"]


def supported_tags(python: str, glibc: str) -> frozenset[Tag]:
    """Every wheel tag that a CPython such as "3.12" accepts there."""
    major, minor = map(int, python.split("."))
    version, interpreter, runs = (major, minor), f"cp{major}{minor}", platforms(glibc)
    return frozenset(
        [
            *cpython_tags(version, abis=[interpreter], platforms=runs),
            *compatible_tags(version, interpreter=interpreter, platforms=runs),
        ]
    )


def _pip(arguments: Iterable[str], **extra: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    environment = {**harmless(os.environ), **extra}
    done = run_command(command, f"pip {command[4]}", env=environment)
    if done.returncode:
        raise ArtifactError(f"pip {command[4]} failed: {done.stderr.strip()[-500:]}")


def _build_kit_wheel(folder: Path) -> None:
    """Build from a copy with plain modes: neither the checkout nor its umask shows in the wheel."""
    with tempfile.TemporaryDirectory() as scratch:
        for source in kit_sources():
            copy = Path(scratch) / source.relative_to(SOURCE_ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
            copy.chmod(0o644)
        built = ("--no-deps", "--no-build-isolation", "-w", str(folder))
        _pip(["wheel", scratch, *built], SOURCE_DATE_EPOCH=WHEEL_EPOCH)


def fill_wheelhouse(bundle: BundleConfig, folder: Path) -> None:
    """Put the kit's wheel and the pinned binary wheels of every target Python into `folder`.

    Raises:
        ArtifactError: pip cannot build or get a wheel.
    """
    _build_kit_wheel(folder)
    download_wheels(bundle, bundle.wheels, folder)


def download_wheels(bundle: BundleConfig, wheels: Sequence[str], folder: Path) -> None:
    """Put pinned binary wheels of every target Python into `folder`.

    Raises:
        ArtifactError: pip cannot get one.
    """
    runs = [part for tag in platforms(bundle.glibc) for part in ("--platform", tag)]
    for python in bundle.pythons if wheels else ():
        target = ("--implementation", "cp", "--python-version", python, *runs)
        rules = ("--no-deps", "--only-binary=:all:", "-d", str(folder))
        _pip(["download", *rules, *target, *wheels])


def kept_wheels(bundle: BundleConfig, wheels: Sequence[str], folder: Path) -> list[Path]:
    """Pinned binary wheels in a folder of their own, downloaded once.

    Raises:
        ArtifactError: pip cannot get one, or it is none of `bundle.hashes`.
    """
    key = fingerprint(list(wheels), bundle.pythons, bundle.glibc)
    if not is_fresh(folder, key):
        with publish(folder, key) as temporary:
            temporary.mkdir(parents=True)
            download_wheels(bundle, wheels, temporary)
    found = sorted(folder.glob("*.whl"))
    for wheel in found:
        _check_hash(bundle, wheel)
    return found


def _check_hash(bundle: BundleConfig, wheel: Path) -> None:
    if bundle.hashes and (digest := file_hash(wheel)) not in bundle.hashes:
        raise ArtifactError(
            f"wheel {wheel.name} is not the one that bundle.hashes names: its SHA-256 is "
            f"{digest}; where you changed bundle.wheels, put that there"
        )


def check_wheels(bundle: BundleConfig, folder: Path) -> None:
    """Check that by its wheels' tags each target Python finds what was asked for, and once.

    Raises:
        ArtifactError: a wheel that fits no target, that nobody asked for, that is none of
            `bundle.hashes`, whose name Kaggle may alter, or a Python that has no wheel of a
            requirement; names the wheel and its tags.
    """
    tags = {python: supported_tags(python, bundle.glibc) for python in bundle.pythons}
    wanted = {
        canonicalize_name(r.name): r
        for r in map(Requirement, (f"{KIT}=={__version__}", *bundle.wheels))
    }
    found: dict[tuple[str, str], list[str]] = {}
    for wheel in sorted(folder.glob("*.whl")):
        try:
            name, version, _, wheel_tags = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename as error:
            raise ArtifactError(f"{wheel.name} is no wheel name: {error}") from error
        requirement = wanted.get(name)
        if requirement is None or not requirement.specifier.contains(version, prereleases=True):
            raise ArtifactError(f"wheel {wheel.name} was not asked for in bundle.wheels")
        if name != KIT:
            _check_hash(bundle, wheel)
        if version.local:
            raise ArtifactError(f"wheel {wheel.name} has a local version, whose + Kaggle may alter")
        fits = [python for python in bundle.pythons if wheel_tags & tags[python]]
        if not fits:
            raise ArtifactError(
                f"wheel {wheel.name} fits none of bundle.pythons {list(bundle.pythons)} "
                f"on glibc {bundle.glibc}"
            )
        for python in fits:
            found.setdefault((name, python), []).append(wheel.name)
    for name, requirement in wanted.items():
        for python in bundle.pythons:
            wheels = found.get((name, python), [])
            if len(wheels) != 1:
                raise ArtifactError(
                    f"Python {python} needs exactly one wheel of {requirement}, there are "
                    f"{wheels or 'none'}"
                )

"""The pins of Kaggle's image: what a rehearsal's environment is made of.

In: `probe.json`, which kernels/probe/probe.py writes on Kaggle. Out: `constraints-kaggle.txt`, one
`name==version` a line, of what the kernel and a training need and nothing else. Example::

    >>> seen = {"python": "3.12.12", "packages": {"numpy": "2.0.2", "ipython": "7.34.0"}}
    >>> write_json(Path("probe.json"), seen)
    >>> refresh(Path("probe.json"), Path("pins.txt"))
    ['numpy: absent -> 2.0.2']
    >>> read_pins(Path("pins.txt")).python
    '3.12'
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspine_kit.core.config import Config
from cspine_kit.core.errors import DataError
from cspine_kit.core.runs import publish, read_json, write_json
from cspine_kit.ship.kaggle.service import KERNEL_METADATA, kernel_metadata, owner_of

KERNEL_PACKAGES = (
    "accelerate",
    "huggingface-hub",
    "joblib",
    "lightgbm",
    "llvmlite",
    "matplotlib",
    "mypy-extensions",
    "nibabel",
    "numba",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pandera",
    "pillow",
    "psutil",
    "pyarrow",
    "pydantic",
    "pydantic-core",
    "pydicom",
    "python-dateutil",
    "python-gdcm",
    "pytz",
    "pyyaml",
    "safetensors",
    "scikit-learn",
    "scipy",
    "six",
    "threadpoolctl",
    "timm",
    "torch",
    "torchvision",
    "tqdm",
    "typeguard",
    "typing-inspect",
)
"""What the kernel and a training import, and what those import where the version matters (pandas's
dates, pydantic's core, numba's compiler, torchvision's pillow). Normalized names."""

_PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>[^\s+;]+)")
_PYTHON = re.compile(r"#\s*python:?\s*(\d+\.\d+)")


@dataclass(frozen=True)
class Pins:
    """Packages of the image, and the Python (major.minor) they were seen with."""

    python: str
    versions: dict[str, str]


def read_pins(path: Path) -> Pins:
    """Read a constraints file.

    Raises:
        DataError: absent, a line that is no exact pin, or no `# python: 3.x` line.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise DataError(f"constraints {path} cannot be read: {error}") from error
    versions = {}
    for number, line in enumerate(text.splitlines(), start=1):
        pin = line.split("#", 1)[0].strip()
        if not pin:
            continue
        found = _PIN.fullmatch(pin)
        if found is None:
            raise DataError(f"{path}:{number}: {pin!r} is no exact pin like numpy==2.0.2")
        versions[found["name"]] = found["version"]
    python = _PYTHON.search(text)
    if python is None:
        raise DataError(f"{path} has no line '# python: 3.12'; make it with cspine constraints")
    return Pins(python[1], versions)


def render_pins(probe: dict[str, Any], source: str) -> str:
    """The constraints file of a probe's report; `source` names the report.

    A local part of a version (torch 2.10.0+cu128) is left out: package indexes do not have it.

    Raises:
        DataError: the report lacks its Python or its packages.
    """
    packages, python = probe.get("packages"), str(probe.get("python", ""))
    if not isinstance(packages, dict) or not packages or not re.match(r"3\.\d+", python):
        raise DataError(f"{source} is no report of kernels/probe: no packages or no python in it")
    pins = [f"{n}=={str(packages[n]).split('+')[0]}" for n in KERNEL_PACKAGES if n in packages]
    absent = [name for name in KERNEL_PACKAGES if name not in packages]
    lines = [
        f"# Kaggle's image, what the kernel and a training need: cspine constraints, from {source}",
        f"# made: {probe.get('made', 'on an unknown day')}",
        f"# python: {python}",
        *([f"# not in the image, comes along: {', '.join(absent)}"] if absent else []),
        *pins,
    ]
    return "\n".join(lines) + "\n"


def refresh(probe_json: Path, out: Path) -> list[str]:
    """Write `out` from a probe's report; returns what changed, one line per package.

    Raises:
        DataError: the report cannot be used; `out` then stays as it is.
    """
    try:
        probe = read_json(probe_json)
    except (OSError, ValueError) as error:
        raise DataError(f"probe report {probe_json} cannot be read: {error}") from error
    if not isinstance(probe, dict):
        raise DataError(f"probe report {probe_json} must be a JSON object")
    text = render_pins(probe, probe_json.name)
    before = read_pins(out).versions if out.exists() else {}
    with publish(out) as temporary:
        temporary.write_text(text)
    after = read_pins(out).versions
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def write_probe_metadata(config: Config, folder: Path) -> None:
    """Write `kernel-metadata.json` beside probe.py: as submit.py's, so that it sees its mounts."""
    slug = f"{config.bundle.kernel}-probe"
    own = {
        "id": f"{owner_of(config)}/{slug}",
        "title": slug.replace("-", " "),
        "code_file": "probe.py",
    }
    write_json(folder / KERNEL_METADATA, {**kernel_metadata(config), **own})

"""A fresh Python environment with the packages of Kaggle's image, built once per constraints.

In: `constraints-kaggle.txt`, a folder for environments. Out: an interpreter. Example::

    Path("pins.txt").write_text("# python: 3.12")      # and a line name==version for each package
    environment = build_environment(Path("pins.txt"), Path("oof/rehearsal"))
    environment.python, environment.on_target

With Kaggle's packages (`constraints-kaggle.txt`) several GB; kept and used again as long as the
constraints and the Python stay the same.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cspine_kit.core.command import run_command
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import file_hash, fingerprint, read_json, write_json
from cspine_kit.ship.rehearsal.constraints import read_pins
from cspine_kit.ship.secrets import harmless

READY = ".ready.json"


@dataclass(frozen=True)
class Environment:
    """An interpreter with Kaggle's packages."""

    folder: Path
    version: str
    """major.minor of its Python."""
    target: str
    """major.minor of Kaggle's Python."""
    build_s: float
    """Seconds that building took, once."""
    built_now: bool

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.folder / "bin" / "python"

    @property
    def on_target(self) -> bool:
        """True where this is the very Python that Kaggle has."""
        return self.version == self.target


def _version_of(python: str | Path) -> str | None:
    """major.minor of an interpreter, or None where it does not run."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find_python(target: str) -> Path:
    """An interpreter of version `target` on this machine, else the one that runs this."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    named = shutil.which(f"python{target}")
    places = [Path(named)] if named else []
    places += sorted(pyenv.glob(f"versions/{target}*/bin/python{target}"))
    for place in places:
        if _version_of(place) == target:
            return place
    return Path(sys.executable)


def build_environment(
    constraints: Path, root: Path, *, python: Path | None = None, extra: tuple[str, ...] = ()
) -> Environment:
    """Install every pin into a new environment below `root`, unless it is there already.

    Args:
        constraints: exact pins with a `# python:` line (`cspine constraints`).
        root: folder that holds environments.
        python: interpreter to build from; default: the target's where installed, else this one.
        extra: requirements that the bundle's wheels bring on the target Python, and that must come
            from the index where the environment has another Python.

    Raises:
        ArtifactError: the interpreter does not run, or pip cannot install the pins.
    """
    pins = read_pins(constraints)
    base = python or find_python(pins.python)
    version = _version_of(base)
    if version is None:
        raise ArtifactError(f"{base} does not run; name another interpreter with --python")
    extra = () if version == pins.python else extra
    key = fingerprint(file_hash(constraints), version, extra)
    folder = root.absolute() / f"python-{version}-{key[:12]}"
    ready = folder / READY
    if ready.exists():
        return Environment(folder, version, pins.python, read_json(ready)["seconds"], False)
    start = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    binary = ("install", "--only-binary=:all:", "-r", str(constraints), *extra)
    for title, command in (
        (f"python {version} environment", [str(base), "-m", "venv", str(folder)]),
        (f"packages of {constraints}", [*pip, *binary]),
    ):
        # The caller's PYTHONPATH would hide what is really installed.
        done = run_command(command, title, env=harmless(os.environ))
        if done.returncode:
            raise ArtifactError(
                f"environment of {constraints} for python {version}: {done.stderr.strip()[-800:]}"
            )
    seconds = round(time.monotonic() - start, 1)
    write_json(ready, {"seconds": seconds, "constraints": pins.versions})
    return Environment(folder, version, pins.python, seconds, True)

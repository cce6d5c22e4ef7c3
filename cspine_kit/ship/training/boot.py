"""The start of a session on Kaggle: the kit's wheels on the path, then its work.

In: the dataset that this file lies in there, as `cspine_boot.py`. Out: what `work` leaves.
Example::

    fits("cspine_kit-1.0-py3-none-any.whl")         # True; of wheels of other Pythons False

`kernels/cache` and `kernels/train` run it. Needs no internet; standard library only until the kit
is on the path.
"""

import hashlib
import json
import logging
import os
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)

START = time.monotonic()

INPUT = Path(os.environ.get("CSPINE_INPUT", "/kaggle/input"))


def fits(name: str) -> bool:
    """True for a wheel of this Python."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return name.endswith(".whl") and any(f in name for f in (f"-{tag}-", "-py3-", "-abi3-"))


def install(dataset: Path, packages: Path) -> None:
    """Put the dataset's wheels that fit on the path, also of processes that are started.

    Args:
        dataset: with its manifest.
        packages: an empty folder.

    Raises:
        OSError: a wheel is missing, or not what the manifest says.
    """
    manifest = (dataset / "manifest.json").read_bytes()
    # `cspine push --train` looks for this line in the log: it tells which upload this session saw.
    log.info("bundle manifest %s", hashlib.sha256(manifest).hexdigest())
    for name, entry in json.loads(manifest)["files"].items():
        if fits(name):
            data = (dataset / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise OSError(f"{name} is not what the manifest says; push again")
            with zipfile.ZipFile(dataset / name) as wheel:
                wheel.extractall(packages)
            log.info("installed %s", name)
    sys.path.insert(0, str(packages))
    before = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(packages), *before])


def main(kind: Literal["cache", "train"]) -> int:
    """One session of a kind, in the current folder; the exit code."""
    # Bars would fill the log: one line a minute.
    os.environ.setdefault("TQDM_MININTERVAL", "60")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    dataset = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="cspine_") as packages:
        install(dataset, Path(packages))
        from cspine_kit.core.execution import tune_process
        from cspine_kit.ship.training.work import work

        tune_process()
        report = work(INPUT, dataset, Path.cwd(), kind=kind, spent_s=time.monotonic() - START)
        log.info(
            "session %d: %d files, %d volumes, %.2f h; next: %s %s %s",
            report.number, len(report.files), report.volumes, report.hours,
            report.next or "nothing", report.left, report.fault,
        )  # fmt: skip
    return 0

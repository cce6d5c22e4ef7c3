"""One session of a training on Kaggle: makes volumes where it sees the competition, else trains.

The only file that `kaggle kernels push` sends. It finds the dataset of the training under
/kaggle/input in either mount layout, puts its wheels on the path, and calls the kit, which takes up
what earlier sessions left and stops before the service's limit. Needs no internet; standard library
only until the kit is on the path.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
import zipfile
from pathlib import Path

START = time.monotonic()

INPUT = Path(os.environ.get("CSPINE_INPUT", "/kaggle/input"))
FORMAT = "cspine_kit training"
MAX_DEPTH = 4


def find_dataset():
    """The folder whose manifest is of this kit's training; breadth first, never into images."""
    level = [INPUT]
    for _ in range(MAX_DEPTH + 1):
        for folder in level:
            try:
                manifest = json.loads((folder / "manifest.json").read_text())
                if str(manifest["format"]).startswith(FORMAT):
                    return folder, manifest
            except (OSError, ValueError, KeyError, TypeError):
                continue
        level = [
            child
            for folder in level
            for child in sorted(folder.iterdir())
            if child.is_dir() and not child.name.endswith(("_images", "segmentations"))
        ]
    raise FileNotFoundError(f"no training dataset below {INPUT}; is it attached?")


def install(dataset, manifest, packages):
    """Put the wheels that fit this Python on the path; a wheel of another hash is an error."""
    digest = hashlib.sha256((dataset / "manifest.json").read_bytes()).hexdigest()
    # `cspine push --train` looks for this line in the log: it tells which upload this session saw.
    print("bundle manifest", digest, flush=True)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for name, entry in manifest["files"].items():
        if name.endswith(".whl") and any(f in name for f in (f"-{tag}-", "-py3-", "-abi3-")):
            data = (dataset / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise OSError(f"{name} is not what the manifest says; push again")
            with zipfile.ZipFile(dataset / name) as wheel:
                wheel.extractall(packages)
            print("installed", name, flush=True)
    sys.path.insert(0, str(packages))
    before = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(packages), *before])


def main():
    """One session; the exit code."""
    # Bars would fill the log: one line a minute.
    os.environ.setdefault("TQDM_MININTERVAL", "60")
    with tempfile.TemporaryDirectory(prefix="cspine_") as packages:
        dataset, manifest = find_dataset()
        install(dataset, manifest, Path(packages))
        import logging

        from cspine_kit.core.execution import tune_process
        from cspine_kit.ship.training.work import work

        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
        tune_process()
        report = work(INPUT, dataset, Path.cwd(), spent_s=time.monotonic() - START)
        print(
            f"session {report.number}: {len(report.files)} files, {report.volumes} volumes, "
            f"{report.hours:.2f} h; next: {report.next or 'nothing'} {report.left} {report.fault}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

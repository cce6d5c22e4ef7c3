"""Offline Kaggle kernel: priors first, then the bundle's models. Needs no internet.

The only file that `kaggle kernels push` sends. It finds the competition and the bundle under
/kaggle/input in either mount layout, installs the bundle's wheels, and runs the very code that
`cspine kernel` runs.
"""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

START = time.monotonic()

INPUT = Path(os.environ.get("CSPINE_INPUT", "/kaggle/input"))
OUT = Path(os.environ.get("CSPINE_OUT", "submission.csv")).absolute()
PACKAGES = Path(os.environ.get("CSPINE_PACKAGES", "/tmp/cspine_packages"))
MAX_DEPTH = 4


def find(marker, accept=lambda path: True):
    """Folder below INPUT that holds `marker`; breadth first, never down into image folders."""
    level = [INPUT]
    for _ in range(MAX_DEPTH + 1):
        for folder in level:
            if (folder / marker).is_file() and accept(folder / marker):
                return folder
        level = [
            child
            for folder in level
            for child in sorted(folder.iterdir())
            if child.is_dir() and not child.name.endswith(("_images", "segmentations"))
        ]
    raise FileNotFoundError(f"{marker} not found below {INPUT}; is the data source attached?")


def is_bundle(manifest):
    """True for this kit's manifest."""
    return str(json.loads(manifest.read_text()).get("format", "")).startswith("cspine_kit bundle")


def write_priors(competition, bundle):
    """A complete submission of priors, with the standard library alone."""
    try:
        priors = json.loads((bundle / "priors.json").read_text()) if bundle else {}
    except (OSError, ValueError):
        traceback.print_exc()
        priors = {}
    with (competition / "test.csv").open(newline="") as source, OUT.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["row_id", "fractured"])
        written = set()
        for row in csv.DictReader(source):
            if row["row_id"] not in written:
                written.add(row["row_id"])
                writer.writerow([row["row_id"], priors.get(row["prediction_type"], 0.5)])


def sha256(path):
    """SHA-256 (hex) of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def install(bundle):
    """Put the wheels that fit this Python on the path; what is left out is named.

    A wheel is code: one whose bytes are not what the manifest says is not installed.
    """
    # `cspine push` looks for this line in the log: it tells which upload this session saw.
    print("bundle manifest", sha256(bundle / "manifest.json"), flush=True)
    listed = json.loads((bundle / "manifest.json").read_text())["files"]
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    shutil.rmtree(PACKAGES, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "-q"]
    for wheel in sorted(bundle.glob("*.whl")):
        if not any(fits in wheel.name for fits in (f"-{tag}-", "-py3-", "-abi3-")):
            print("left out, of another Python:", wheel.name, flush=True)
        elif sha256(wheel) != listed.get(wheel.name, {}).get("sha256"):
            print("NOT installed, not the manifest's hash:", wheel.name, flush=True)
        else:
            target = ["--target", str(PACKAGES), "--upgrade", str(wheel)]
            done = subprocess.run([*command, *target], check=False)
            print("NOT installed" if done.returncode else "installed", wheel.name, flush=True)
    sys.path.insert(0, str(PACKAGES))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PACKAGES), os.environ.get("PYTHONPATH", "")])


def main():
    """Write a valid submission, whatever happens after test.csv was read."""
    competition = find("test.csv")
    try:
        bundle = find("manifest.json", is_bundle)
    except (OSError, ValueError):
        traceback.print_exc()
        bundle = None
    write_priors(competition, bundle)
    try:
        install(bundle)
        from cspine_kit.core.execution import tune_process
        from cspine_kit.ship.kernel import run_kernel

        tune_process()
        spent_s = time.monotonic() - START
        print(run_kernel(competition, bundle, OUT, spent_s=spent_s).summary())
    except BaseException:  # noqa: BLE001 - the rows already written must stand
        traceback.print_exc()
        print("the submission keeps the rows written so far", flush=True)


if __name__ == "__main__":
    main()

"""Offline Kaggle kernel: priors first, then the bundle's models. Needs no internet.

The only file that `kaggle kernels push` sends. It finds the competition and the bundle under
/kaggle/input in either mount layout, installs the bundle's wheels, and runs the very code that
`cspine kernel` runs. Standard library only until the kit is installed.
"""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import zipfile
from pathlib import Path

START = time.monotonic()

INPUT = Path(os.environ.get("CSPINE_INPUT", "/kaggle/input"))
OUT = Path(os.environ.get("CSPINE_OUT", "submission.csv")).absolute()
PACKAGES = Path(os.environ.get("CSPINE_PACKAGES", "/tmp/cspine_packages"))
MAX_DEPTH = 4


def children(folder):
    """Sub-folders that may hold a data source; image folders are never entered."""
    try:
        found = sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []
    return [child for child in found if not child.name.endswith(("_images", "segmentations"))]


def find(marker, accept=lambda path: True):
    """Folder below INPUT that holds `marker`; breadth first."""
    level = [INPUT]
    for _ in range(MAX_DEPTH + 1):
        for folder in level:
            if (folder / marker).is_file() and accept(folder / marker):
                return folder
        level = [child for folder in level for child in children(folder)]
    raise FileNotFoundError(f"{marker} not found below {INPUT}; is the data source attached?")


def read_json(path):
    """A JSON object, or an empty one where the file holds something else."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_bundle(manifest):
    """True for this kit's manifest; other data sources have a manifest.json too."""
    return str(read_json(manifest).get("format", "")).startswith("cspine_kit bundle")


def write_priors(competition, bundle):
    """A complete submission of priors, with the standard library alone; all of it or nothing."""
    priors = read_json(bundle / "priors.json") if bundle else {}
    temporary = OUT.with_name(f".{OUT.name}.tmp")
    with (competition / "test.csv").open(newline="") as source, temporary.open("w") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(["row_id", "fractured"])
        written = set()
        for row in csv.DictReader(source):
            if row["row_id"] not in written:
                written.add(row["row_id"])
                prior = priors.get(row["prediction_type"])
                sound = isinstance(prior, float) and 0.0 < prior < 1.0
                writer.writerow([row["row_id"], prior if sound else 0.5])
    temporary.replace(OUT)


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
    listed = read_json(bundle / "manifest.json").get("files", {})
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
            if subprocess.run([*command, *target], check=False).returncode:
                # A wheel is a zip of what pip would have put there.
                zipfile.ZipFile(wheel).extractall(PACKAGES)
            print("installed", wheel.name, flush=True)
    sys.path.insert(0, str(PACKAGES))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PACKAGES), os.environ.get("PYTHONPATH", "")])


def main():
    """Write a valid submission, whatever happens after test.csv was read."""
    competition, bundle = find("test.csv"), None
    try:
        bundle = find("manifest.json", is_bundle)
    except OSError:
        traceback.print_exc()
    write_priors(competition, bundle)
    # The end of a session arrives as an error like any other: helpers are ended, rows stand.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        install(bundle)
        from cspine_kit.core.execution import tune_process
        from cspine_kit.infer.run import run_kernel

        tune_process()
        spent_s = time.monotonic() - START
        print(run_kernel(competition, bundle, OUT, spent_s=spent_s).summary())
    except BaseException:  # noqa: BLE001 - the rows already written must stand
        traceback.print_exc()
        print("the submission keeps the rows written so far", flush=True)


if __name__ == "__main__":
    main()

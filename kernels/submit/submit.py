"""Offline Kaggle kernel: priors first, then the bundle's models. Needs no internet.

The only file that `kaggle kernels push` sends. It finds the competition and the bundle under
/kaggle/input in either mount layout, installs the bundle's wheels, and runs the very code that
`cspine kernel` runs, in a child process: whatever that one does, hangs or dies of, this one ends in
time, and the rows written so far stand. A child that dies has a successor that goes on. Standard
library only until the kit is installed.

In a hidden rerun it ends with 0 once there is a submission. Right after a push it also proves that
everything in the bundle works here, and ends with 1 where it does not.
"""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

START = time.monotonic()

INPUT = Path(os.environ.get("CSPINE_INPUT", "/kaggle/input"))
OUT = Path(os.environ.get("CSPINE_OUT", "submission.csv")).absolute()
RERUN = bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))
MAX_DEPTH = 4

MANIFESTS, COPY = ("manifest.json", "manifest.json.copy"), ".copy"
"""What everything depends on lies in the bundle twice."""

HOURS, SHARE = 9.0, 0.99
"""The limit where the bundle names none, and the share of it after which nothing is waited for."""

INSTALL_S, GRACE_S, POLL_S = 300.0, 15.0, 0.1
LIVES = 3
"""The work is begun anew so often where a signal ended it; it goes on where it was."""

PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""All that pip gets to see of the environment."""


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
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def manifest_of(bundle):
    """The manifest, or its copy where it was damaged."""
    for name in MANIFESTS:
        if is_bundle(bundle / name):
            return read_json(bundle / name)
    return {}


def is_bundle(manifest):
    """True for this kit's manifest; other data sources have a manifest.json too."""
    return str(read_json(manifest).get("format", "")).startswith("cspine_kit bundle")


def listed_rows(test_csv):
    """Rows of test.csv by column; what a spreadsheet changes (byte order mark, semicolons, blanks,
    case of names) changes nothing."""
    text = test_csv.read_text(encoding="utf-8-sig").lstrip()
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    lines = csv.reader(text.splitlines(), delimiter=separator, skipinitialspace=True)
    names = [name.strip().lower() for name in next(lines)]
    for line in lines:
        row = dict(zip(names, map(str.strip, line), strict=False))
        if row.get("row_id"):
            yield row


def write_priors(competition, bundle):
    """A complete submission of priors, with the standard library alone; all of it or nothing."""
    priors = read_json(bundle / "priors.json") if bundle else {}
    temporary = OUT.with_name(f".{OUT.name}.tmp")
    with temporary.open("w") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(["row_id", "fractured"])
        written = set()
        for row in listed_rows(competition / "test.csv"):
            if row["row_id"] not in written:
                written.add(row["row_id"])
                prior = priors.get(row.get("prediction_type"))
                sound = isinstance(prior, float) and 0.0 < prior < 1.0
                writer.writerow([row["row_id"], prior if sound else 0.5])
    temporary.replace(OUT)


def sha256(path):
    """SHA-256 (hex) of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def pip_install(wheel, digest, packages):
    """True where pip put the wheel into `packages`: of this hash, binary, and nothing else."""
    listed = packages.with_name(f"{packages.name}.txt")
    listed.write_text(f"{wheel.as_uri()} --hash=sha256:{digest}\n")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "-q"]
    command += ["--only-binary=:all:", "--require-hashes", "--upgrade", "--target", str(packages)]
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {"HOME": str(packages), "PIP_CONFIG_FILE": os.devnull}
    try:
        done = subprocess.run(
            [*command, "-r", str(listed)], env=environment, check=False, timeout=INSTALL_S
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def sound_wheel(bundle, name, digest, packages):
    """The wheel of this hash, or its copy under the wheel's name; None where neither is sound.

    Other people's wheels lie in a dataset of their own, with the weights.
    """

    def sound(path):
        with contextlib.suppress(OSError):
            return sha256(path) == digest
        return False

    if sound(bundle / name):
        return (bundle / name).absolute()
    if sound(bundle / (name + COPY)):
        return Path(shutil.copyfile(bundle / (name + COPY), packages.with_name(name)))
    with contextlib.suppress(OSError):
        return (find(name, sound) / name).absolute()
    return None


def install(bundle, packages):
    """Put the wheels that fit this Python on the path; what is left out is named.

    A wheel is code: one whose bytes are not what the manifest says is not installed.
    """
    # `cspine push` looks for this line in the log: it tells which upload this session saw.
    with contextlib.suppress(OSError):
        print("bundle manifest", sha256(bundle / "manifest.json"), flush=True)
    listed = manifest_of(bundle).get("files", {})
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    there = {path.name for path in bundle.glob("*.whl")}
    for name in sorted(there | {name for name in listed if name.endswith(".whl")}):
        digest = listed.get(name, {}).get("sha256")
        if not any(fits in name for fits in (f"-{tag}-", "-py3-", "-abi3-")):
            print("left out, of another Python:", name, flush=True)
        elif (wheel := sound_wheel(bundle, name, digest, packages)) is None:
            print("NOT installed, not the manifest's hash:", name, flush=True)
        else:
            if not pip_install(wheel, digest, packages):
                # A wheel is a zip of what pip would have put there.
                zipfile.ZipFile(wheel).extractall(packages)
            print("installed", name, flush=True)
    sys.path.insert(0, str(packages))
    before = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(packages), *before])


def work(competition, bundle, packages, life):
    """Predict; right after a push also prove that everything works. The exit code."""
    # The end of a session arrives as an error like any other: helpers are ended, rows stand.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    if bundle is None:
        print("PROOF FAILED: there is no bundle; is the dataset attached?", flush=True)
        return 1
    install(bundle, packages)  # a successor puts everything there again
    from cspine_kit.core.execution import tune_process
    from cspine_kit.infer.run import run_kernel

    tune_process()
    spent_s = time.monotonic() - START
    report = run_kernel(competition, bundle, OUT, spent_s=spent_s, resume=life > 0)
    print(report.summary(), flush=True)
    if RERUN:
        return 0
    from cspine_kit.infer.proof import prove

    faults = prove(competition, bundle, OUT)
    for fault in faults:
        print("PROOF FAILED:", fault, flush=True)
    if not faults:
        print("PROOF PASSED: every network ran, every study was predicted", flush=True)
    return 1 if faults else 0


def child(*args):
    """Do the work and end without waiting for any thread that hangs."""
    code = 1
    try:
        code = work(*args)
    except BaseException:  # noqa: BLE001 - the rows already written must stand
        traceback.print_exc()
        print("the submission keeps the rows written so far", flush=True)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def watch(pid, end_s):
    """Wait for the child until `end_s`; its exit code, or None where it had to be killed."""
    ends = [end_s]

    def stop(*_):
        ends.append(time.monotonic() + GRACE_S)
        os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    while time.monotonic() < min(ends):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_S)
    os.kill(pid, signal.SIGKILL)
    return None


def main():
    """Write a valid submission, whatever happens after test.csv was read. The exit code."""
    competition, bundle = find("test.csv"), None
    for name in MANIFESTS:
        with contextlib.suppress(OSError):
            bundle = bundle or find(name, is_bundle)
    write_priors(competition, bundle)
    hours = manifest_of(bundle).get("hours") if bundle else None
    limit_s = 3600.0 * (hours if isinstance(hours, (int, float)) and hours > 0 else HOURS)
    packages = Path(tempfile.mkdtemp(prefix="cspine_")) / "packages"
    packages.mkdir()
    for life in range(LIVES):
        pid = os.fork()
        if pid == 0:
            child(competition, bundle, packages, life)
        code = watch(pid, START + SHARE * limit_s)
        if code is None or code >= 0:
            break
        print(f"the work died of signal {-code}", flush=True)
    shutil.rmtree(packages.parent, ignore_errors=True)
    if code != 0:
        print(f"the work ended with {code}; rows written before stand", flush=True)
    return 0 if RERUN else int(code != 0)


if __name__ == "__main__":
    sys.exit(main())

"""What a Kaggle session holds: Python, packages, GPUs, memory, disks, mounts.

Push it (`kaggle kernels push -p kernels/probe`), fetch its output, and refresh the pins that
rehearsals use: `cspine constraints --from probe.json`. Prints JSON and writes it to probe.json.
Standard library only.
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

INPUT = Path(os.environ.get("CSPINE_INPUT", "/kaggle/input"))
OUT = Path(os.environ.get("CSPINE_PROBE", "probe.json"))
OUTSIDE = ("www.kaggle.com", 443)
MARKERS = ("test.csv", "manifest.json")
MAX_DEPTH, MAX_NAMES = 4, 30


def packages():
    """Version of every installed distribution, by its normalized name."""
    found = {}
    for entry in importlib.metadata.distributions():
        name = entry.metadata["Name"]
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), entry.version)
    return dict(sorted(found.items()))


def gpus():
    """Name, memory and driver of each GPU; from nvidia-smi, else from torch, else none."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        import torch

        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except Exception:  # noqa: BLE001 - a broken torch is a finding, not an end
        return []


def memory():
    """Total and available MiB."""
    try:
        lines = dict(x.split(":", 1) for x in Path("/proc/meminfo").read_text().splitlines())
        keys = {"total_mib": "MemTotal", "available_mib": "MemAvailable"}
        return {key: int(lines[name].split()[0]) // 1024 for key, name in keys.items()}
    except (OSError, KeyError, ValueError):
        return {}


def disks():
    """Free and total GB of the places that a kernel writes to."""
    found = {}
    for place in ("/kaggle/working", "/tmp", "/dev/shm", str(INPUT)):
        try:
            usage = shutil.disk_usage(place)
        except OSError:
            continue
        found[place] = {"free_gb": round(usage.free / 1e9, 1), "gb": round(usage.total / 1e9, 1)}
    return found


def internet():
    """True where a connection to the outside can be made."""
    try:
        socket.create_connection(OUTSIDE, timeout=3).close()
        return True
    except OSError:
        return False


def mounts():
    """Folders below INPUT, a few levels deep and never down into image folders."""
    found, level = [], [INPUT]
    for _ in range(MAX_DEPTH):
        below = []
        for folder in level:
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
                files = [entry for entry in entries if entry.is_file()]
                size = sum(entry.stat().st_size for entry in files)
            except OSError as error:
                found.append({"path": str(folder), "error": str(error)})
                continue
            found.append(
                {
                    "path": str(folder.relative_to(INPUT)),
                    "entries": len(entries),
                    "names": [entry.name for entry in entries[:MAX_NAMES]],
                    "mb": round(size / 1e6, 3),
                    "writable": os.access(folder, os.W_OK),
                }
            )
            if not any(entry.name in MARKERS for entry in files):
                below += [folder / entry.name for entry in entries if entry.is_dir()]
        level = below
    return found


def layout():
    """Which of the two known mount layouts this is."""
    if (INPUT / "competitions").is_dir() or (INPUT / "datasets").is_dir():
        return "competitions/<slug>, datasets/<owner>/<slug>"
    return "<slug>"


def main():
    """Look, print, write."""
    report = {
        "made": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libc": "-".join(platform.libc_ver()),
        "executable": sys.executable,
        "cpus": len(os.sched_getaffinity(0)),
        "memory": memory(),
        "gpus": gpus(),
        "disks": disks(),
        "internet": internet(),
        "layout": layout(),
        "mounts": mounts(),
        "kaggle": {
            k: os.environ[k] for k in sorted(os.environ) if k.startswith("KAGGLE_KERNEL_RUN")
        },
        "packages": packages(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    OUT.write_text(text + "\n")


if __name__ == "__main__":
    main()

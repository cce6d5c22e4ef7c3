"""A place like a Kaggle session: its paths, read-only inputs, no network, its limits.

In: an interpreter, folders to mount, a script. Out: how the run ended. Example::

    import sys

    script = Path("script.py")
    script.write_text("from pathlib import Path; Path('found.txt').write_text('here')")
    sandbox = Sandbox(Path("work"), best_isolation(), memory_gib=29.0)
    mounts = {"competitions/rsna": competition.root}
    run = sandbox.run(Path(sys.prefix), script, mounts, limit_s=60.0)
    run.code, (sandbox.working / "found.txt").exists()

With Linux namespaces the script runs at /kaggle/src/script.py in a root of its own, with real
read-only mounts below /kaggle/input and no network device. Where those are not allowed, a tree of
links and a guard inside Python's socket module stand in; `describe` says which it was.

It is a likeness of Kaggle, not a wall: homes and credentials are hidden so that nothing comes to
depend on them, but the script runs as the caller, and the rest of the machine can be read.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cspine_kit.core.command import waiting
from cspine_kit.core.errors import ArtifactError
from cspine_kit.ship.rehearsal.session import EndedFor, Limits, end_left_over, wait_for

Isolation = Literal["namespaces", "guard"]

WORKING_GB = 20.0
"""What Kaggle's /kaggle/working holds, in 10^9 bytes."""

GUARD = '''"""No network: only sockets inside this machine's kernel (AF_UNIX) connect."""
import socket

class Guarded(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            raise OSError(f"no network here: {address}")
        super().connect(address)

    def connect_ex(self, address):
        self.connect(address)
        return 0

socket.socket = Guarded
'''

ENTER = r"""
set -e
mount -t tmpfs tmpfs "$ROOT"
for entry in /*; do
    case "$entry" in
        /kaggle | /tmp | /lost+found) continue ;;
    esac
    if [ -L "$entry" ]; then
        cp -P "$entry" "$ROOT$entry"
    elif [ -d "$entry" ]; then
        mkdir "$ROOT$entry"
        mount --rbind "$entry" "$ROOT$entry"
    fi
done
printf '%s\n' "$HIDDEN" | while read -r place; do
    [ ! -d "$ROOT$place" ] || mount -t tmpfs tmpfs "$ROOT$place"
done
mkdir -p "$ROOT$BASE"
mount --bind "$BASE" "$ROOT$BASE"
mkdir -p "$ROOT/tmp" "$ROOT/kaggle/input" "$ROOT/kaggle/working" "$ROOT/kaggle/src"
mount --bind "$SCRATCH" "$ROOT/tmp"
mkdir -p "$ROOT$ENVIRONMENT"
mount --bind "$ENVIRONMENT" "$ROOT$ENVIRONMENT"
mount --bind "$WORKING" "$ROOT/kaggle/working"
cp "$SCRIPT" "$ROOT/kaggle/src/script.py"
while [ $# -ge 2 ]; do
    mkdir -p "$ROOT/kaggle/input/$1"
    mount --bind "$2" "$ROOT/kaggle/input/$1"
    mount -o remount,ro,bind "$ROOT/kaggle/input/$1"
    shift 2
done
ulimit -v "$MEMORY_KIB"
cd "$ROOT/kaggle/working"
exec chroot "$ROOT" env -i PATH="$ENVIRONMENT/bin:/usr/local/bin:/usr/bin:/bin" HOME=/root \
    LANG=C.UTF-8 PIP_CONFIG_FILE=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1 \
    KAGGLE_KERNEL_RUN_TYPE=Batch $RERUN \
    sh -c 'cd /kaggle/working && exec "$0" /kaggle/src/script.py' "$ENVIRONMENT/bin/python"
"""
"""Run by sh as root of a new mount and network namespace; arguments: place and source of each
mount. The root is a tmpfs with everything of the machine bound into it but /tmp, /kaggle and what
HIDDEN names; the interpreter that the environment comes from (BASE) may lie there: it is put back.
"""

GUARDED = 'ulimit -v "$MEMORY_KIB"; cd "$WORKING"; exec "$ENVIRONMENT/bin/python" "$SCRIPT"'


@dataclass(frozen=True)
class SandboxRun:
    """How a run ended."""

    code: int
    """Exit code; negative: the signal that ended it."""
    seconds: float
    ended_for: EndedFor
    """Which limit it ran into; empty where it ended by itself."""
    peak_mib: float
    """Largest memory of all its processes together, shared pages counted once."""
    disk_gb: float
    """The most that its working folder held, in 10^9 bytes."""
    left_over: int
    """Processes of it that were still alive when it had ended; they were killed."""
    output: str
    """Standard output and error, as they came."""


def _unshare() -> list[str]:
    """The command that opens the namespaces; a user namespace too where we are not root."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--mount", "--net", "--propagation", "private"]


def hidden_places() -> list[str]:
    """Folders that a rehearsal must not see: every home, and where credentials are kept."""
    named = (os.environ.get(name) for name in ("HOME", "XDG_CONFIG_HOME", "KAGGLE_CONFIG_DIR"))
    places = {"/root", "/home", *(str(Path(p).resolve()) for p in named if p)}
    return sorted(place for place in places if place != "/")


def base_of(environment: Path) -> Path:
    """The installation that a virtual environment's interpreter comes from."""
    settings = environment / "pyvenv.cfg"
    for line in settings.read_text().splitlines() if settings.exists() else ():
        name, _, value = line.partition("=")
        if name.strip() == "home":
            return Path(value.strip()).parent.resolve()
    return environment.resolve()


def has_gpu() -> bool:
    """True where a CUDA driver runs: it maps far more addresses than it uses memory."""
    return Path("/dev/nvidiactl").exists()


def best_isolation() -> Isolation:
    """`namespaces` where this machine allows mounts and a chroot in them, else `guard`."""
    probe = (
        'd=$(mktemp -d) && mount -t tmpfs tmpfs "$d" && mount --rbind /proc "$d" && chroot / true'
    )
    try:
        command = [*_unshare(), "sh", "-c", probe]
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return "guard"
    return "namespaces" if done.returncode == 0 else "guard"


@dataclass(frozen=True)
class Sandbox:
    """Where runs happen: `work` is emptied at every run but for what `working` shows."""

    work: Path
    isolation: Isolation
    memory_gib: float
    working_gb: float = WORKING_GB

    @property
    def working(self) -> Path:
        """What the script sees as /kaggle/working."""
        return self.work.absolute() / "working"

    def describe(self) -> dict[str, str]:
        """How each promise is kept here, in words."""
        memory = f"{self.memory_gib:g} GiB for all processes together, watched"
        if not has_gpu():
            memory += "; the same as address space of each (RLIMIT_AS)"
        limits = {
            "memory": memory,
            "disk": f"{self.working_gb:g} GB in the working folder, watched",
        }
        wall = "a likeness of Kaggle, no wall: the script runs as you and can"
        if self.isolation == "namespaces":
            return {
                "paths": "/kaggle/input, /kaggle/working, /kaggle/src as on Kaggle (chroot)",
                "network": "off: a network namespace without devices (unshare --net)",
                "inputs": "read-only bind mounts (unshare --mount)",
                "home": f"hidden: {', '.join(hidden_places())}; no variable of yours is passed on",
                **limits,
                "is not": f"{wall} read this machine's other files",
            }
        return {
            "paths": "CSPINE_INPUT stands for /kaggle/input: no mount namespaces here",
            "network": "guarded in Python's socket module only: no network namespaces here",
            "inputs": "links, compared before and after: no read-only mounts here",
            "home": "an empty one; no variable of yours is passed on",
            **limits,
            "is not": f"{wall} read and change whatever you can",
        }

    def run(
        self,
        environment: Path,
        script: Path,
        mounts: dict[str, Path],
        *,
        limit_s: float,
        rerun: bool = True,
        watch: Callable[[int], None] | None = None,
    ) -> SandboxRun:
        """Run `script` with an environment's Python until it ends or its time is up.

        Args:
            environment: folder of a virtual environment.
            script: the kernel's one file.
            mounts: source folder by place below /kaggle/input.
            limit_s: wall-clock limit, s; then SIGTERM, then SIGKILL.
            rerun: as on the hidden test set; False: as right after a push.
            watch: called in a thread with the session's id once it runs.

        Raises:
            ArtifactError: a mount's source is missing.
        """
        for place, source in mounts.items():
            if not source.is_dir():
                raise ArtifactError(f"mount {place}: {source} is no folder")
        shutil.rmtree(self.work, ignore_errors=True)
        places = {name: self.work.absolute() / name for name in ("root", "scratch", "working")}
        for folder in places.values():
            folder.mkdir(parents=True)
        shell = {
            "ROOT": str(places["root"]),
            "SCRATCH": str(places["scratch"]),
            "WORKING": str(self.working),
            "ENVIRONMENT": str(environment.absolute()),
            "BASE": str(base_of(environment)),
            "HIDDEN": "\n".join(hidden_places()),
            "SCRIPT": str(script.absolute()),
            "MEMORY_KIB": "unlimited" if has_gpu() else str(int(self.memory_gib * 1024**2)),
            "RERUN": "KAGGLE_IS_COMPETITION_RERUN=1" if rerun else "",
        }
        log = self.work / "output.txt"
        with log.open("wb") as output:
            if self.isolation == "namespaces":
                flat = [
                    part for place, src in mounts.items() for part in (place, str(src.resolve()))
                ]
                command = [*_unshare(), "sh", "-c", ENTER, "sh", *flat]
                env = {"PATH": os.environ["PATH"], **shell}
            else:
                command, env = ["sh", "-c", GUARDED], self._guarded(mounts, shell)
            start = time.monotonic()
            process = subprocess.Popen(
                command, env=env, stdout=output, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            if watch is not None:
                threading.Thread(target=watch, args=(process.pid,), daemon=True).start()
            with waiting(f"{script.name} in the sandbox"):
                limits = Limits(limit_s, 1024 * self.memory_gib, self.working_gb)
                taken = wait_for(process, limits, self.working)
            seconds = time.monotonic() - start
        left_over = end_left_over(process.pid)
        text = log.read_text(errors="replace")
        return SandboxRun(
            code=process.returncode, seconds=seconds, ended_for=taken.ended_for,
            peak_mib=taken.memory_mib, disk_gb=taken.disk_gb, left_over=left_over, output=text,
        )  # fmt: skip

    def _guarded(self, mounts: dict[str, Path], shell: dict[str, str]) -> dict[str, str]:
        """Links for the mounts, the guard on the path; returns the run's environment."""
        inputs, guard = self.work.absolute() / "input", self.work.absolute() / "guard"
        home = self.work.absolute() / "home"
        home.mkdir()
        for place, source in mounts.items():
            (inputs / place).parent.mkdir(parents=True, exist_ok=True)
            (inputs / place).symlink_to(source.resolve())
        guard.mkdir()
        (guard / "sitecustomize.py").write_text(GUARD)
        rerun = dict([shell["RERUN"].split("=")]) if shell["RERUN"] else {}
        return {
            **shell,
            **rerun,
            "PATH": f"{shell['ENVIRONMENT']}/bin:{os.environ['PATH']}",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONPATH": str(guard),
            "TMPDIR": shell["SCRATCH"],
            "CSPINE_INPUT": str(inputs),
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        }

"""A kernel version: saved once, waited for, its output fetched; asked for before it is sent again.

In: a `Push`, what is to run. Out: a session that ended well, its log, its files in a folder.
Example::

    from cspine_kit.ship.kaggle.service import kernel_metadata

    settings = kernel_metadata(push.config)
    kernel = Kernel(settings, push.kernel_folder, push.manifest, hours=9.0, pattern="[a-z]+.csv")
    kernel.ref, kernel.key                    # run_kernel(push, kernel) brings it there and back
"""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspine_kit.core.command import waiting
from cspine_kit.core.runs import file_hash, fingerprint
from cspine_kit.ship.kaggle.client import KernelStatus
from cspine_kit.ship.kaggle.output import bundle_of, log_text
from cspine_kit.ship.kaggle.process import NoAnswer, ServiceError
from cspine_kit.ship.kaggle.state import KernelStage, Push

logger = logging.getLogger(__name__)

WATCHED_SETTINGS = frozenset(
    {"is_private", "enable_gpu", "enable_internet", "machine_shape", "competition_sources"}
)
"""Settings whose change by the service would spoil the session or the submission."""


@dataclass(frozen=True)
class Kernel:
    """What is to run.

    Attributes:
        settings: its kernel-metadata.json.
        folder: holds that and the code file.
        manifest: hash of the manifest of the dataset that it must have mounted.
        hours: it may run, after its time in line.
        pattern: names of the files to fetch, a regular expression for the whole name. The client
            writes to any path that the service names: it must match no path that leads outside.
    """

    settings: Mapping[str, Any]
    folder: Path
    manifest: str
    hours: float
    pattern: str

    @property
    def ref(self) -> str:
        """`owner/slug`."""
        return str(self.settings["id"])

    @property
    def key(self) -> str:
        """What tells one version from another."""
        code = self.folder / str(self.settings["code_file"])
        return fingerprint(file_hash(code), dict(self.settings), self.manifest)


def run_kernel(push: Push, kernel: Kernel) -> tuple[KernelStage, Path, str]:
    """Push the kernel unless this very one was, wait until it ends, fetch its output.

    Returns:
        Its stage, "running" until the caller has judged the output; the folder of the output; the
        log.

    Raises:
        ServiceError: refused, its session failed or did not end in time, or ran on another dataset.
    """
    stage = push.state.kernel
    if stage is not None and (stage.ref, stage.key) != (kernel.ref, kernel.key):
        stage = None
    sent = stage is not None and (
        stage.stage == "running" or (stage.stage == "sending" and _landed(push, kernel, stage))
    )
    if stage is None or not sent:
        stage = _save_kernel(push, kernel)
    stage.stage = "running"
    push.save()
    with waiting(f"kernel {kernel.ref} runs"):
        ended = _wait_ended(push, kernel, stage)
    folder = _fetch(push, kernel)
    log = push.client.process.redact(log_text(folder))
    if ended.status != "COMPLETE":
        fail(push, stage, ended.failure or ended.status)
        raise ServiceError(
            f"kernel {kernel.ref} version {stage.version or '?'} ended with {ended.status}: "
            f"{ended.failure or 'no reason given'}. Its log is in {folder} and ends with:\n"
            f"{log.strip()[-1500:]}"
        )
    _check_session(push, kernel, log)
    return stage, folder, log


def fail(push: Push, stage: KernelStage, why: str) -> None:
    """Note that the next push has to send a new version."""
    stage.stage, stage.failure = "failed", why
    push.save()


def _save_kernel(push: Push, kernel: Kernel) -> KernelStage:
    """Save the kernel once; after an unclear failure ask for its state before a second try."""
    ref = kernel.ref
    for _ in range(push.waits.attempts):
        status = push.client.kernel_status(ref)
        if status is not None and not status.ended:
            raise ServiceError(
                f"kernel {ref} has a session that is {status.status}; wait for its end or stop it "
                "on its page, then push again"
            )
        before = status.status if status else None
        shown = _log_hash(push, kernel) if before else ""
        stage = KernelStage(
            ref=ref, key=kernel.key, stage="sending", before=before, before_log=shown
        )
        push.state.kernel = stage
        push.save()
        try:
            stage.version = push.client.push_kernel(kernel.folder)
        except NoAnswer as error:
            logger.warning("%s; asking whether it was saved", error)
            if not _landed(push, kernel, stage):
                continue
        push.say(f"kernel {ref} version {stage.version or '?'} pushed")
        return stage
    raise ServiceError(
        f"kernel {ref} could not be pushed in {push.waits.attempts} attempts; what the client said "
        f"is in {push.folder / 'client.log'}"
    )


def _landed(push: Push, kernel: Kernel, stage: KernelStage) -> bool:
    """Whether a push without an answer was saved after all: a session appeared or runs, or another
    log than before is there."""
    delays = push.waits.delays()
    status = None
    for _ in range(push.waits.attempts):
        delays.sleep()
        status = push.client.kernel_status(stage.ref)
        if status is not None and (stage.before is None or not status.ended):
            return True
    return status is not None and _log_hash(push, kernel) != stage.before_log


def _log_hash(push: Push, kernel: Kernel) -> str:
    return fingerprint(log_text(_fetch(push, kernel)))


def _wait_ended(push: Push, kernel: Kernel, stage: KernelStage) -> KernelStatus:
    """Wait until the session ends: `hours` of running, after at most `queue_s` in line.

    Right after a push the service may still show the session before it; an end like that one's is
    believed only with another log, or when nothing else shows for some time.

    Raises:
        ServiceError: it is in line or runs too long.
    """
    ref = kernel.ref
    waits, limit_s = push.waits, kernel.hours * 3600
    delays, start = waits.delays(), time.monotonic()
    began: float | None = None
    told, doubts = "", 0
    while True:
        try:
            status = push.client.kernel_status(ref)
            if status is None:
                # Refused credentials read like an absent kernel; the dataset tells them apart.
                push.client.dataset_status(kernel.settings["dataset_sources"][0])
        except NoAnswer as error:
            # An hour without network must not end a wait of nine.
            logger.warning("%s; waiting on", error)
            status = None
        now = time.monotonic()
        if status is not None and status.ended:
            old = began is None and status.status == stage.before and doubts < waits.attempts
            if not old or _log_hash(push, kernel) != stage.before_log:
                return status
            doubts += 1
        elif status is not None and status.status == "RUNNING" and began is None:
            began = now
        name = status.status if status else "not there yet"
        if name != told:
            logger.info("kernel %s is %s after %.0f min", ref, name, (now - start) / 60)
            told = name
        late = now - start > waits.queue_s if began is None else now - began > limit_s
        if late:
            raise ServiceError(
                f"kernel {ref} is {name} after {(now - start) / 3600:.1f} h; push again later: it "
                "goes on here and sends nothing twice"
            )
        delays.sleep()


def _fresh(push: Push, name: str) -> Path:
    """An empty folder of the push."""
    folder = push.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _fetch(push: Push, kernel: Kernel) -> Path:
    """The session's log and the files asked for, in a fresh folder."""
    folder = _fresh(push, "output")
    push.client.kernel_output(kernel.ref, folder, kernel.pattern)
    return folder


def _check_session(push: Push, kernel: Kernel, log: str) -> None:
    """The session must have mounted this dataset, with the settings that were pushed.

    Raises:
        ServiceError: its log names another bundle.
    """
    ran = bundle_of(log)
    if ran is None:
        push.say("warning: the kernel's log does not say which bundle it ran on")
    elif ran != kernel.manifest:
        raise ServiceError(
            f"kernel {kernel.ref} ran on another bundle ({ran[:12]}, pushed was "
            f"{kernel.manifest[:12]}): the service mounted an older version; update the dataset on "
            "the kernel's page and run it there"
        )
    _, saved = push.client.kernel_saved(kernel.ref, _fresh(push, "saved"))
    for name, value in kernel.settings.items():
        # The service shows no machine shape before it assigned one.
        if name in WATCHED_SETTINGS and saved.get(name) not in (value, None, ""):
            push.say(f"warning: the service has {name} {saved[name]!r}, pushed was {value!r}")

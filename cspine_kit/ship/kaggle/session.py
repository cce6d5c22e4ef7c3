"""The kernel stage: saved once, waited for, its output fetched and checked; and its submission.

In: a `Push` whose dataset is ready. Out: a version that ran on this bundle and wrote a valid
submission. Example::

    run_session(push)
    submit(push, "more folds")
"""

import logging
import re
import shutil
import time
from pathlib import Path

from cspine_kit.core.command import waiting
from cspine_kit.core.paths import KERNEL_LOG, SUBMISSION
from cspine_kit.core.runs import file_hash, fingerprint
from cspine_kit.ship.kaggle.client import KernelStatus
from cspine_kit.ship.kaggle.output import (
    bundle_of,
    check_output,
    kernel_faults,
    log_text,
    summary,
)
from cspine_kit.ship.kaggle.process import NoAnswer, ServiceError
from cspine_kit.ship.kaggle.service import CODE_FILE, dataset_ref, kernel_metadata, kernel_ref
from cspine_kit.ship.kaggle.state import KernelStage, Push, SubmissionStage

logger = logging.getLogger(__name__)

WATCHED_SETTINGS = frozenset(
    {"is_private", "enable_gpu", "enable_internet", "machine_shape", "competition_sources"}
)
"""Settings whose change by the service would spoil the session or the submission."""


def run_session(push: Push) -> None:
    """Push the kernel unless this very one was, wait until it ends, fetch and check its output.

    Raises:
        ServiceError: refused, its session failed or did not end in time, ran another bundle, or
            says that its networks do not work.
        SubmissionError: what it wrote is no valid submission.
    """
    ref, code = kernel_ref(push.config), push.kernel_folder / CODE_FILE
    key = fingerprint(file_hash(code), kernel_metadata(push.config), push.manifest)
    stage = push.state.kernel
    if stage is not None and (stage.ref, stage.key) != (ref, key):
        stage = None
    if stage is not None and stage.stage == "done":
        push.say(f"kernel {ref} version {stage.version or '?'} ran on this bundle already")
        return
    sent = stage is not None and (
        stage.stage == "running" or (stage.stage == "sending" and _landed(push, stage))
    )
    if stage is None or not sent:
        stage = _save_kernel(push, ref, key)
    stage.stage = "running"
    push.save()
    with waiting(f"kernel {ref} runs"):
        ended = _wait_ended(push, stage)
    folder = _fetch(push, ref)
    log = push.client.process.redact(log_text(folder))
    if ended.status != "COMPLETE":
        stage.stage, stage.failure = "failed", ended.failure or ended.status
        push.save()
        raise ServiceError(
            f"kernel {ref} version {stage.version or '?'} ended with {ended.status}: "
            f"{ended.failure or 'no reason given'}. Its log is in {folder} and ends with:\n"
            f"{log.strip()[-1500:]}"
        )
    _check_session(push, ref, log)
    rows = check_output(push.config, folder / SUBMISSION)
    if faults := kernel_faults(folder / KERNEL_LOG):
        stage.stage, stage.failure = "failed", "; ".join(faults)
        push.save()
        raise ServiceError(
            f"kernel {ref} version {stage.version or '?'} ended well, but must not be submitted: "
            f"{stage.failure}. Its output is in {folder}"
        )
    stage.stage = "done"
    push.save()
    push.say(f"kernel {ref} version {stage.version or '?'} wrote {rows} valid rows, in {folder}")
    if told := summary(folder / KERNEL_LOG):
        push.say(told)


def _save_kernel(push: Push, ref: str, key: str) -> KernelStage:
    """Save the kernel once; after an unclear failure ask for its state before a second try."""
    for _ in range(push.waits.attempts):
        status = push.client.kernel_status(ref)
        if status is not None and not status.ended:
            raise ServiceError(
                f"kernel {ref} has a session that is {status.status}; wait for its end or stop it "
                "on its page, then push again"
            )
        before = status.status if status else None
        shown = _log_hash(push, ref) if before else ""
        stage = KernelStage(ref=ref, key=key, stage="sending", before=before, before_log=shown)
        push.state.kernel = stage
        push.save()
        try:
            stage.version = push.client.push_kernel(push.kernel_folder)
        except NoAnswer as error:
            logger.warning("%s; asking whether it was saved", error)
            if not _landed(push, stage):
                continue
        push.say(f"kernel {ref} version {stage.version or '?'} pushed")
        return stage
    raise ServiceError(
        f"kernel {ref} could not be pushed in {push.waits.attempts} attempts; what the client said "
        f"is in {push.folder / 'client.log'}"
    )


def _landed(push: Push, stage: KernelStage) -> bool:
    """Whether a push without an answer was saved after all: a session appeared or runs, or another
    log than before is there."""
    delays = push.waits.delays()
    status = None
    for _ in range(push.waits.attempts):
        delays.sleep()
        status = push.client.kernel_status(stage.ref)
        if status is not None and (stage.before is None or not status.ended):
            return True
    return status is not None and _log_hash(push, stage.ref) != stage.before_log


def _log_hash(push: Push, ref: str) -> str:
    return fingerprint(log_text(_fetch(push, ref)))


def _wait_ended(push: Push, stage: KernelStage) -> KernelStatus:
    """Wait until the session ends: `kernel.hours` of running, after at most `queue_s` in line.

    Right after a push the service may still show the session before it; an end like that one's is
    believed only with another log, or when nothing else shows for some time.

    Raises:
        ServiceError: it is in line or runs too long.
    """
    ref = stage.ref
    waits, limit_s = push.waits, push.config.kernel.hours * 3600
    delays, start = waits.delays(), time.monotonic()
    began: float | None = None
    told, doubts = "", 0
    while True:
        try:
            status = push.client.kernel_status(ref)
            if status is None:
                # Refused credentials read like an absent kernel; the dataset tells them apart.
                push.client.dataset_status(dataset_ref(push.config, "code"))
        except NoAnswer as error:
            # An hour without network must not end a wait of nine.
            logger.warning("%s; waiting on", error)
            status = None
        now = time.monotonic()
        if status is not None and status.ended:
            old = began is None and status.status == stage.before and doubts < waits.attempts
            if not old or _log_hash(push, ref) != stage.before_log:
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


def _fetch(push: Push, ref: str) -> Path:
    """The session's log, submission and kernel log, in a fresh folder.

    Only names asked for are fetched: the client writes to any path that the service names.
    """
    folder = _fresh(push, "output")
    push.client.kernel_output(ref, folder, f"{re.escape(SUBMISSION)}|{re.escape(KERNEL_LOG)}")
    return folder


def _check_session(push: Push, ref: str, log: str) -> None:
    """The session must have mounted this bundle, with the settings that were pushed.

    Raises:
        ServiceError: its log names another bundle.
    """
    ran = bundle_of(log)
    if ran is None:
        push.say("warning: the kernel's log does not say which bundle it ran on")
    elif ran != push.manifest:
        raise ServiceError(
            f"kernel {ref} ran on another bundle ({ran[:12]}, pushed was {push.manifest[:12]}): "
            "the service mounted an older version; update the dataset on the kernel's page and "
            "run it there"
        )
    _, saved = push.client.kernel_saved(ref, _fresh(push, "saved"))
    for name, value in kernel_metadata(push.config).items():
        # The service shows no machine shape before it assigned one.
        if name in WATCHED_SETTINGS and saved.get(name) not in (value, None, ""):
            push.say(f"warning: the service has {name} {saved[name]!r}, pushed was {value!r}")


def submit(push: Push, message: str) -> None:
    """Submit the kernel version that ran, once.

    Raises:
        ServiceError: refused, or the version is not known.
    """
    kernel, competition = push.state.kernel, push.config.competition.slug
    if kernel is None or kernel.stage != "done":
        raise ServiceError("there is no finished kernel version to submit; push first")
    if kernel.version is None:
        raise ServiceError(
            f"the service never said which version of {kernel.ref} this is; read it on the "
            f"kernel's page and run: kaggle competitions submit {competition} -k {kernel.ref} "
            f"-v VERSION -f {SUBMISSION} -m MESSAGE"
        )
    stage = push.state.submission
    ours = stage is not None and stage.kernel_key == kernel.key
    if stage is not None and ours and (stage.stage == "done" or _listed(push, stage.description)):
        stage.stage = "done"
        push.save()
        push.say(f"kernel version {kernel.version} was submitted already")
        return
    mark = f"[v{kernel.version} bundle {push.manifest[:12]}]"
    stage = SubmissionStage(kernel_key=kernel.key, description=f"{message} {mark}", stage="sending")
    push.state.submission = stage
    push.save()
    try:
        stage.answer = push.client.submit(
            competition, kernel.ref, kernel.version, SUBMISSION, stage.description
        )
    except NoAnswer:
        # A submission costs one of the day's few: a second one only where the list lacks the first.
        if not _listed(push, stage.description):
            raise
    stage.stage = "done"
    push.save()
    push.say(f"submitted version {kernel.version} to {competition}: {stage.answer or 'listed'}")


def _listed(push: Push, description: str) -> bool:
    rows = push.client.submissions(push.config.competition.slug)
    return any(row.get("description") == description for row in rows)

"""The submit kernel: run once on this bundle, its output checked; and its submission.

In: a `Push` whose datasets are ready. Out: a version that ran on this bundle and wrote a valid
submission. Example::

    run_session(push)
    submit(push, "more folds")
"""

import re

from cspine_kit.core.paths import KERNEL_LOG, SUBMISSION
from cspine_kit.ship.kaggle.kernel import Kernel, fail, run_kernel
from cspine_kit.ship.kaggle.output import check_output, kernel_faults, summary
from cspine_kit.ship.kaggle.process import NoAnswer, ServiceError
from cspine_kit.ship.kaggle.service import kernel_metadata
from cspine_kit.ship.kaggle.state import Push, SubmissionStage

FETCHED = f"{re.escape(SUBMISSION)}|{re.escape(KERNEL_LOG)}"


def run_session(push: Push) -> None:
    """Push the kernel unless this very one was, wait until it ends, fetch and check its output.

    Raises:
        ServiceError: refused, its session failed or did not end in time, ran another bundle, or
            says that its networks do not work.
        SubmissionError: what it wrote is no valid submission.
    """
    hours = push.config.kernel.hours
    kernel = Kernel(
        kernel_metadata(push.config), push.kernel_folder, push.manifest, hours, pattern=FETCHED
    )
    stage, ref = push.state.kernel, kernel.ref
    if stage is not None and (stage.ref, stage.key, stage.stage) == (ref, kernel.key, "done"):
        push.say(f"kernel {ref} version {stage.version or '?'} ran on this bundle already")
        return
    stage, folder, _ = run_kernel(push, kernel)
    rows = check_output(push.config, folder / SUBMISSION)
    if faults := kernel_faults(folder / KERNEL_LOG):
        fail(push, stage, "; ".join(faults))
        raise ServiceError(
            f"kernel {ref} version {stage.version or '?'} ended well, but must not be submitted: "
            f"{stage.failure}. Its output is in {folder}"
        )
    stage.stage = "done"
    push.save()
    push.say(f"kernel {ref} version {stage.version or '?'} wrote {rows} valid rows, in {folder}")
    if told := summary(folder / KERNEL_LOG):
        push.say(told)


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

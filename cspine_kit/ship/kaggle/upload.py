"""The upload stage: a dataset or a new version of it, complete and ready; asked for before resent.

In: a `Push` whose bundle is verified, one of its parcels. Out: the service says that it has every
file of it. Example::

    for parcel in push.parcels:
        upload(push, parcel, "more folds")
"""

import logging
import shutil
import time

from tqdm import tqdm

from cspine_kit.core.command import waiting
from cspine_kit.ship.kaggle.client import DatasetStatus, NotArrived
from cspine_kit.ship.kaggle.parcels import Parcel
from cspine_kit.ship.kaggle.process import TEMPORARY, NoAnswer, ServiceError
from cspine_kit.ship.kaggle.state import DatasetStage, Push

logger = logging.getLogger(__name__)


def upload(push: Push, parcel: Parcel, message: str) -> None:
    """Upload a parcel as a new dataset or version, unless this very one is there.

    Raises:
        ServiceError: refused, incomplete after several versions, or not ready in time.
    """
    ref, part = parcel.ref, parcel.part
    stage: DatasetStage | None = getattr(push.state, part)
    if stage is not None and (stage.ref, stage.digest) != (ref, parcel.digest):
        stage = None
    if stage is None:
        # The client would take up half-done uploads of another bundle's files of equal size.
        shutil.rmtree(push.folder / TEMPORARY, ignore_errors=True)
    elif stage.stage == "ready":
        push.say(
            f"dataset {ref} holds this bundle's {part} already (version {stage.version or '?'})"
        )
        return
    # A stage that is left at "sending" was interrupted: its version may be there, whole or not.
    ready = _arrived(push, parcel, stage) if stage is not None else None
    if stage is None or ready is None:
        stage, ready = _send(push, parcel, message)
    stage.stage, stage.version = "ready", ready.version
    push.save()
    push.say(f"dataset {ref} is ready (version {stage.version or '?'})")


def _send(push: Push, parcel: Parcel, message: str) -> tuple[DatasetStage, DatasetStatus]:
    """Send until a version is complete and ready; each attempt first asks what is there."""
    missing: list[str] = []
    delays, ref = push.waits.delays(), parcel.ref
    for _ in range(push.waits.attempts):
        found = push.client.dataset_status(ref)
        before = (found.version or 0) if found else 0
        stage = DatasetStage(ref=ref, digest=parcel.digest, stage="sending", before=before)
        setattr(push.state, parcel.part, stage)
        push.save()
        try:
            missing = _upload_once(push, parcel, new=found is None, message=message)
        except NotArrived as error:
            logger.warning("%s; sending again", error)
            missing = error.missing
            delays.sleep()
            continue
        except NoAnswer as error:
            logger.warning("%s; asking what arrived", error)
            delays.sleep()
            if ready := _arrived(push, parcel, stage):
                return stage, ready
            continue
        with waiting(f"dataset {ref} is processed"):
            ready = _wait_ready(push, ref, before, sent=True)
        if ready is not None and not missing:
            return stage, ready
        logger.warning("the dataset was made without %s; sending a new version", missing)
    raise ServiceError(
        f"dataset {ref} is not complete after {push.waits.attempts} attempts; missing: "
        f"{', '.join(missing[:5]) or 'unknown'}. The kernel was not pushed; push again to go on"
    )


def _upload_once(push: Push, parcel: Parcel, *, new: bool, message: str) -> list[str]:
    """One client call; returns the files that did not arrive."""
    total = sum(parcel.sizes.values())
    with tqdm(total=total, desc=f"upload {parcel.ref}", unit="B", unit_scale=True) as bar:

        def arrived(name: str) -> None:
            bar.update(parcel.sizes.get(name, 0))

        return push.client.send_dataset(
            parcel.folder,
            parcel.sizes,
            new=new,
            notes=f"{message} [{parcel.part} {parcel.digest[:12]}]",
            on_file=arrived,
        )


def _arrived(push: Push, parcel: Parcel, stage: DatasetStage) -> DatasetStatus | None:
    """State of the version that an unclear upload made; None where it made none or a partial one.

    The version after the one before it is ours; names and sizes tell whether it is whole.
    """
    if push.client.dataset_status(stage.ref) is None:
        return None
    with waiting(f"dataset {stage.ref} is processed"):
        ready = _wait_ready(push, stage.ref, stage.before, sent=False)
    if ready is None:
        return None
    there = push.client.dataset_files(stage.ref)
    missing = [name for name, size in parcel.sizes.items() if there.get(name) != size]
    if missing:
        logger.warning("version %s lacks %d files", ready.version, len(missing))
        return None
    return ready


def _wait_ready(push: Push, ref: str, before: int, *, sent: bool) -> DatasetStatus | None:
    """Wait until the service has processed the version after `before`.

    Args:
        sent: whether the service confirmed that version; if not, a dataset that stays ready at the
            old version got none.

    Returns:
        Its state; None where nothing arrived (only if not `sent`).

    Raises:
        ServiceError: processing failed, or the time ran out.
    """
    waits = push.waits
    delays, deadline = waits.delays(), time.monotonic() + waits.dataset_s
    unchanged, last = 0, "nothing"
    while True:
        try:
            found = push.client.dataset_status(ref)
        except NoAnswer as error:
            logger.warning("%s; waiting on", error)
            found = None
        if found is not None:
            last = f"{found.status}, version {found.version}"
            moved = found.version is None or found.version > before
            if found.status == "ready" and moved:
                return found
            if found.status in ("failed", "deleted"):
                raise ServiceError(
                    f"dataset {ref}: the service says {found.status!r}; look at its page, remove "
                    "the dataset or rename bundle.dataset, and push again"
                )
            unchanged = unchanged + 1 if found.status == "ready" else 0
            if unchanged == waits.attempts and not sent:
                return None
        if time.monotonic() > deadline:
            raise ServiceError(
                f"dataset {ref} is not ready after {waits.dataset_s:.0f} s (last: {last}); push "
                "again later: it goes on here and uploads nothing twice"
            )
        delays.sleep()

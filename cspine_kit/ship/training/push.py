"""A training on Kaggle from here: sessions are sent, waited for and fetched until nothing is left.

In: a config whose scans are on Kaggle. Out: `oof/<name>/` as `make oof` leaves it, without volumes;
`push_train.json` says how far it came. Example::

    from cspine_kit.ship.training.names import competition_elsewhere

    elsewhere = config.model_copy(update={"competition": competition_elsewhere(config)})
    print(dry_run(elsewhere, paths, wheels=[]))

An interrupted training goes on where it was: a session that runs is waited for, one that ended is
fetched, and what it left is mounted in the next one.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pydantic import Field

from cspine_kit.core.config import Config
from cspine_kit.core.errors import ArtifactError, ConfigError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import write_json
from cspine_kit.ship.bundle.wheelhouse import check_wheels, fill_wheelhouse
from cspine_kit.ship.kaggle.kernel import Kernel, run_kernel
from cspine_kit.ship.kaggle.owner import with_owner
from cspine_kit.ship.kaggle.parcels import Parcel
from cspine_kit.ship.kaggle.process import ServiceError, Waits
from cspine_kit.ship.kaggle.push import opened
from cspine_kit.ship.kaggle.service import KERNEL_METADATA, check_owner
from cspine_kit.ship.kaggle.state import Push, PushState
from cspine_kit.ship.kaggle.upload import upload
from cspine_kit.ship.training.dataset import write_dataset
from cspine_kit.ship.training.names import (
    SERVICE_HOURS,
    Kind,
    check_room,
    check_training,
    for_training,
    script_of,
    session_settings,
)
from cspine_kit.ship.training.output import SESSION, Report, fetched_pattern, read_report, take

MOST_IDLE = 3
"""Sessions in a row that may make neither volumes nor models."""


class TrainState(PushState):
    """`push_train.json`; its `code` is the training's dataset, its `kernel` the running session."""

    FILE = "push_train.json"

    digest: str = ""
    """Of the dataset that the sessions so far ran on."""
    next: Kind | None = "cache"
    done: list[str] = Field(default_factory=list)
    """`owner/slug` of the sessions that were fetched, oldest first."""
    gpu_hours: float = 0.0
    idle: int = 0
    """Sessions in a row that made nothing."""


def _dataset(
    config: Config, paths: RunPaths, wheels: Sequence[Path] | None, *, here: bool
) -> Parcel:
    """Write the dataset of a training.

    Args:
        config: of the run.
        paths: its folder.
        wheels: of the kit and what Kaggle lacks; None: built and fetched now.
        here: take only those pretrained weights that need no download.
    """
    from cspine_kit.vision.check import check_config
    from cspine_kit.vision.nets.pretrained import fetch, needed

    check_config(config)
    check_room(config)
    pretrained = {name: fetch(name, here=here) for name in needed(config).values()}
    found = {name: file for name, file in pretrained.items() if file is not None}
    with tempfile.TemporaryDirectory() as scratch:
        if wheels is None:
            bundle = for_training(config.bundle)
            fill_wheelhouse(bundle, Path(scratch))
            check_wheels(bundle, Path(scratch))
            wheels = sorted(Path(scratch).glob("*.whl"))
        return write_dataset(config, paths.training, wheels=wheels, pretrained=found)


def dry_run(config: Config, paths: RunPaths, *, wheels: Sequence[Path] | None = None) -> str:
    """What `push_training` would send first, as text; contacts nothing but the package index.

    Raises:
        ConfigError, ArtifactError: what a push would be refused for.
    """
    config = with_owner(config)
    check_training(config)
    parcel = _dataset(config, paths, wheels, here=True)
    state = TrainState.load(paths.root / TrainState.FILE)
    lines = [
        f"dataset {parcel.ref}, {len(parcel.sizes)} files, {sum(parcel.sizes.values()):,} bytes"
    ]
    lines += [f"  {size:>14,}  {name}" for name, size in parcel.sizes.items()]
    kind = _begin(state, parcel)
    if kind is None:
        lines.append("every fold model was trained and fetched: nothing would be sent")
    else:
        settings = session_settings(config, kind, len(state.done) + 1, state.done)
        lines += [
            f"session {len(state.done) + 1}, {KERNEL_METADATA}:",
            json.dumps(settings, indent=2),
        ]
    try:
        check_owner(config)
    except ConfigError as error:
        lines.append(f"a push would be refused: {error}")
    return "\n".join([*lines, "dry run: nothing was sent"])


def push_training(
    config: Config,
    paths: RunPaths,
    kernels: Path,
    *,
    wheels: Sequence[Path] | None = None,
    waits: Waits | None = None,
) -> str:
    """Train on Kaggle until nothing is left; goes on where the last push stopped.

    Args:
        config: its scans are on Kaggle, not here.
        paths: its run folder, which gets tables and models.
        kernels: holds cache/cache.py and train/train.py.
        wheels: of the kit and what Kaggle lacks; default: built and fetched now.
        waits: patience; default `Waits()`.

    Returns:
        What happened, for the console.

    Raises:
        ConfigError, ArtifactError: what can be seen from here is not fit to be sent.
        ServiceError: the service or its client failed, or a session did; what was done is kept.
    """
    check_training(config)
    with opened(config, paths, kernels, waits, TrainState) as run:
        state = cast(TrainState, run.state)
        parcel = _dataset(run.config, paths, wheels, here=False)
        known = state.kernel is not None and state.kernel.stage != "failed"
        if known and state.next is not None:
            # Under way since an earlier push: its hours are not lost where the kit changed since.
            _session(run, state, state.next, state.digest)
        state.next = _begin(state, parcel)
        if state.next is not None:
            upload(run, parcel, config.name)
            state.digest = parcel.digest
            run.save()
        while state.next is not None:
            _session(run, state, state.next, parcel.digest)
        run.say(
            f"nothing is left to train: {len(state.done)} sessions, {state.gpu_hours:.1f} h of "
            f"them with GPUs; make oof collects what is in {paths.root}"
        )
    return "\n".join(run.lines)


def _begin(state: TrainState, parcel: Parcel) -> Kind | None:
    """The kind of session to go on with; a finished training of an older dataset begins again."""
    return "cache" if state.next is None and state.digest != parcel.digest else state.next


def _session(push: Push, state: TrainState, kind: Kind, digest: str) -> None:
    """Send a session unless it is under way, wait for it, fetch what it made.

    Args:
        push: the training.
        state: takes how far it came.
        kind: of the session.
        digest: of the dataset that it runs on.

    Raises:
        ServiceError: it failed, or sessions make nothing any more.
    """
    number = len(state.done) + 1
    settings = session_settings(push.config, kind, number, state.done)
    folder = push.folder / "kernel"
    if state.kernel is None or state.kernel.stage == "failed":
        folder.mkdir(exist_ok=True)
        script = script_of(kind)
        shutil.copyfile(push.kernel_folder / kind / script, folder / script)
        write_json(folder / KERNEL_METADATA, settings)
    pattern = fetched_pattern(push.config.name)
    kernel = Kernel(settings, folder, digest, SERVICE_HOURS, pattern)
    _, output, _ = run_kernel(push, kernel)
    try:
        report = _judged(push, output, kind, digest)
        count = take(output, report, push.paths)
    except ArtifactError as error:
        raise ServiceError(
            f"the output of {kernel.ref} did not arrive as it was written: {error}; push again: "
            "it is fetched anew"
        ) from error
    state.done.append(kernel.ref)
    state.gpu_hours += report.hours if kind == "train" else 0.0
    made = report.volumes or any(place.startswith("models/") for place in report.files)
    state.idle = 0 if made else state.idle + 1
    state.next, state.kernel = (kind if report.fault else report.next), None
    push.save()
    push.say(
        f"session {number} ({kind}): {report.volumes} volumes made, {count} files fetched, "
        f"{report.hours:.1f} h; left: {report.left or 'nothing'}"
    )
    if report.fault:
        raise ServiceError(
            f"session {number} of the training ended with an error: {report.fault}. Its log is in "
            f"{output}; what it did before is kept. Mend the cause and push again"
        )
    if state.next is not None and state.idle >= MOST_IDLE:
        raise ServiceError(
            f"{state.idle} sessions in a row made nothing, and {report.left} are left: look at the "
            f"output of {kernel.ref} on its page; push again to try once more"
        )


def _judged(push: Push, output: Path, kind: Kind, digest: str) -> Report:
    """The report of the session that was sent.

    Raises:
        ArtifactError: there is none, or it is another session's.
    """
    report = read_report(output / SESSION)
    if (report.name, report.kind, report.dataset) != (push.config.name, kind, digest):
        raise ArtifactError(
            f"{SESSION} is of {report.kind} session {report.number} of {report.name!r} on dataset "
            f"{report.dataset[:12]}"
        )
    return report

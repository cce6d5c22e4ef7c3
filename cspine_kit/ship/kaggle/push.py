"""From a bundle to a run on Kaggle: dataset, kernel, its output, and on request a submission.

In: a config whose bundle is built. Out: `oof/<name>/push.json` (how far it came) and
`oof/<name>/push/` (the fetched output, the client's log). Example::

    print(push(config, paths, Path("kernels/submit")).told)

Each stage is written down before and after it is sent. An interrupted push goes on where it was, a
finished one sends nothing. Where nobody knows whether a request was served, the service is asked
for some time (`Waits`) what it has before anything is sent again; what it shows only later than
that would be sent twice. A submission is not sent again in the same push.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cspine_kit.core.config import Config
from cspine_kit.core.errors import ArtifactError, ConfigError
from cspine_kit.core.paths import RunPaths
from cspine_kit.infer.manifest import MANIFEST, verify_bundle
from cspine_kit.ship.bundle.build import check_models, write_kernel_metadata
from cspine_kit.ship.kaggle.client import KaggleClient
from cspine_kit.ship.kaggle.owner import with_owner
from cspine_kit.ship.kaggle.parcels import Parcel, write_parcels
from cspine_kit.ship.kaggle.process import ClientProcess, ServiceError, Waits
from cspine_kit.ship.kaggle.scores import Scores, scores_of, wait_scored
from cspine_kit.ship.kaggle.service import (
    CODE_FILE,
    DATASET_METADATA,
    KERNEL_METADATA,
    check_names,
    check_owner,
    dataset_metadata,
    kernel_metadata,
    kernel_ref,
)
from cspine_kit.ship.kaggle.session import run_session, submit
from cspine_kit.ship.kaggle.state import Push, PushState
from cspine_kit.ship.kaggle.upload import upload
from cspine_kit.ship.secrets import refuse_secrets


def _prepare(config: Config, paths: RunPaths, kernel_folder: Path) -> tuple[Parcel, Parcel]:
    """Check all that can be checked here; writes the two datasets' folders and the kernel's
    metadata.

    Returns:
        What a push uploads.

    Raises:
        ConfigError, ArtifactError: what a push would be refused for, or must never send.
    """
    check_names(config)
    bundle = paths.bundle
    if not (bundle / MANIFEST).exists():
        raise ArtifactError(f"there is no bundle in {bundle}; run make kernel first")
    if verify_bundle(bundle)["weights"] != config.bundle.weights:
        raise ArtifactError(f"{bundle} has other names than the config; run make kernel")
    write_kernel_metadata(config, kernel_folder)
    refuse_secrets([*bundle.iterdir(), kernel_folder / CODE_FILE])
    return write_parcels(config, bundle, paths.upload)


@dataclass(frozen=True)
class Outcome:
    """How a push ended: what happened, for the console; scores where they were waited for."""

    told: str
    scores: Scores | None = None


def _check_submitting(config: Config) -> None:
    """Raises ConfigError where a submission would be spent on a phantom's models."""
    if config.competition.phantom is not None:
        raise ConfigError(
            f"config {config.name!r} was trained on a phantom: submitting it would spend one of "
            "the day's submissions on models that saw no real study"
        )


def dry_run(
    config: Config,
    paths: RunPaths,
    kernel_folder: Path,
    *,
    submitting: bool = False,
    message: str | None = None,
) -> str:
    """What `push` would send with the same arguments, as text; contacts nothing, needs no
    credentials. Every model is loaded and run once.

    Raises:
        ConfigError, ArtifactError: what a push would be refused for, or a model that does not load.
    """
    config = with_owner(config)
    parcels = _prepare(config, paths, kernel_folder)
    check_models(paths.bundle)
    code, state = kernel_folder / CODE_FILE, PushState.load(paths.root / PushState.FILE)
    lines = []
    for parcel in parcels:
        total, sent = sum(parcel.sizes.values()), getattr(state, parcel.part)
        lines.append(f"dataset {parcel.ref}, {len(parcel.sizes)} files, {total:,} bytes")
        lines += [f"  {size:>14,}  {name}" for name, size in parcel.sizes.items()]
        lines.append(f"{DATASET_METADATA}:")
        lines.append(json.dumps(dataset_metadata(config, parcel.ref), indent=2))
        if sent and sent.stage == "ready" and sent.digest == parcel.digest:
            lines.append(f"this very {parcel.part} is uploaded already: it would not be sent again")
    lines.append(f"kernel {kernel_ref(config)}, {code}, {code.stat().st_size:,} bytes")
    lines += [f"{KERNEL_METADATA}:", json.dumps(kernel_metadata(config), indent=2)]
    if submitting:
        lines.append(f"a submission to {config.competition.slug}")
    lines.append(f"message: {message or config.name}")
    try:
        check_owner(config)
        if submitting:
            _check_submitting(config)
    except ConfigError as error:
        lines.append(f"a push would be refused: {error}")
    lines.append("every model of the bundle loads and runs")
    return "\n".join([*lines, "dry run: nothing was sent"])


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file: two pushes of one config at once would send everything twice."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ServiceError(f"another push of this config runs ({path} is locked)") from error
        yield


def push(
    config: Config,
    paths: RunPaths,
    kernel_folder: Path,
    *,
    submitting: bool = False,
    wait: bool = False,
    message: str | None = None,
    waits: Waits | None = None,
) -> Outcome:
    """Bring the bundle and the kernel to Kaggle and back; goes on where the last push stopped.

    Args:
        config: names, competition and `kernel.hours`.
        paths: its run folder with the bundle.
        kernel_folder: holds submit.py; kernel-metadata.json is written there.
        submitting: also submit the version to the competition.
        wait: also wait until the submission is scored.
        message: for the datasets' versions and the submission; default the config's name.
        waits: patience; default `Waits()`.

    Raises:
        ConfigError, ArtifactError: what can be seen from here is not fit to be sent.
        ServiceError: the service or its client failed; what was done is in `push.json`.
        SubmissionError: the kernel's output is not valid.
    """
    if submitting:
        _check_submitting(config)
    with opened(config, paths, kernel_folder, waits) as run:
        run.parcels = _prepare(run.config, paths, kernel_folder)
        for parcel in run.parcels:
            upload(run, parcel, message or config.name)
        run_session(run)
        if submitting:
            submit(run, message or config.name)
        scores = wait_scored(run) if submitting and wait else None
        if scores is not None:
            run.say(f"the submission: {scores}")
    calls = run.client.process.calls
    seconds = sum(s for _, s in calls)
    return Outcome(
        "\n".join([*run.lines, f"{len(calls)} client calls, {seconds:.1f} s in them"]), scores
    )


def fetch_scores(
    config: Config, paths: RunPaths, kernel_folder: Path, *, waits: Waits | None = None
) -> Scores:
    """What the service shows of the submission of the last push; sends nothing.

    Raises:
        ServiceError: nothing was submitted, it is not listed, or the service failed.
    """
    with opened(config, paths, kernel_folder, waits) as run:
        return scores_of(run)


@contextmanager
def opened(
    config: Config,
    paths: RunPaths,
    kernel_folder: Path,
    waits: Waits | None,
    state: type[PushState] = PushState,
) -> Iterator[Push]:
    """A push of this config, and of no other process at the same time; its owner is known.

    Args:
        config: of the run.
        paths: its folder.
        kernel_folder: holds the script that is sent.
        waits: patience; default `Waits()`.
        state: what is kept of it, under its own name, beside a folder of that name.
    """
    folder = (paths.root / state.FILE).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "lock"):
        client = KaggleClient(ClientProcess(folder, waits or Waits()))
        named = with_owner(config, client.process.environment, ask=client.owner)
        check_owner(named)
        known = state.load(paths.root / state.FILE)
        yield Push(named, paths, kernel_folder, client, known)

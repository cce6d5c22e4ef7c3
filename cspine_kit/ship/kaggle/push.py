"""From a bundle to a run on Kaggle: dataset, kernel, its output, and on request a submission.

In: a config whose bundle is built. Out: `oof/<name>/push.json` (how far it came) and
`oof/<name>/push/` (the fetched output, the client's log). Example::

    print(push(config, paths, Path("kernels/submit")))

Each stage is written down before and after it is sent. An interrupted push goes on where it was, a
finished one sends nothing. Where nobody knows whether a request was served, the service is asked
for some time (`Waits`) what it has before anything is sent again; what it shows only later than
that would be sent twice. A submission is not sent again in the same push.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cspine_kit.core.config import Config
from cspine_kit.core.errors import ArtifactError, ConfigError
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import file_hash, read_json
from cspine_kit.infer.manifest import DATASET_METADATA, MANIFEST, verify_bundle
from cspine_kit.ship.bundle.build import check_models, sizes_of, write_kernel_metadata
from cspine_kit.ship.kaggle.client import KaggleClient
from cspine_kit.ship.kaggle.process import ClientProcess, ServiceError, Waits
from cspine_kit.ship.kaggle.service import (
    CODE_FILE,
    KERNEL_METADATA,
    check_names,
    check_owner,
    check_size,
    dataset_metadata,
    dataset_ref,
    kernel_metadata,
    kernel_ref,
)
from cspine_kit.ship.kaggle.session import run_session, submit
from cspine_kit.ship.kaggle.state import Push, PushState
from cspine_kit.ship.kaggle.upload import upload
from cspine_kit.ship.secrets import refuse_secrets


def _prepare(config: Config, paths: RunPaths, kernel_folder: Path) -> dict[str, int]:
    """Check all that can be checked here; writes the kernel's metadata.

    Returns:
        Bytes of each file that a push uploads.

    Raises:
        ConfigError, ArtifactError: what a push would be refused for, or must never send.
    """
    check_names(config)
    bundle = paths.bundle
    if not (bundle / MANIFEST).exists():
        raise ArtifactError(f"there is no bundle in {bundle}; run make kernel first")
    verify_bundle(bundle)
    if read_json(bundle / DATASET_METADATA) != dataset_metadata(config):
        raise ArtifactError(f"{bundle} has other names than the config; run make kernel")
    write_kernel_metadata(config, kernel_folder)
    sizes = sizes_of(bundle)
    refuse_secrets([*(bundle / name for name in sizes), kernel_folder / CODE_FILE])
    check_size(sizes)
    return sizes


def _state_file(paths: RunPaths) -> Path:
    return paths.root / "push.json"


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
    sizes = _prepare(config, paths, kernel_folder)
    check_models(paths.bundle)
    code, sent = kernel_folder / CODE_FILE, PushState.load(_state_file(paths)).dataset
    lines = [f"dataset {dataset_ref(config)}, {len(sizes)} files, {sum(sizes.values()):,} bytes"]
    lines += [f"  {size:>14,}  {name}" for name, size in sizes.items()]
    lines += [f"{DATASET_METADATA}:", json.dumps(dataset_metadata(config), indent=2)]
    lines.append(f"kernel {kernel_ref(config)}, {code}, {code.stat().st_size:,} bytes")
    lines += [f"{KERNEL_METADATA}:", json.dumps(kernel_metadata(config), indent=2)]
    if sent and sent.stage == "ready" and sent.manifest == file_hash(paths.bundle / MANIFEST):
        lines.append("this very bundle is uploaded already: the dataset would not be sent again")
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
    message: str | None = None,
    waits: Waits | None = None,
) -> str:
    """Bring the bundle and the kernel to Kaggle and back; goes on where the last push stopped.

    Args:
        config: names, competition and `kernel.hours`.
        paths: its run folder with the bundle.
        kernel_folder: holds submit.py; kernel-metadata.json is written there.
        submitting: also submit the version to the competition.
        message: for the dataset's version and the submission; default the config's name.
        waits: patience; default `Waits()`.

    Returns:
        What happened, for the console.

    Raises:
        ConfigError, ArtifactError: what can be seen from here is not fit to be sent.
        ServiceError: the service or its client failed; what was done is in `push.json`.
        SubmissionError: the kernel's output is not valid.
    """
    check_owner(config)
    if submitting:
        _check_submitting(config)
    sizes = _prepare(config, paths, kernel_folder)
    folder = paths.root / "push"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "lock"):
        process = ClientProcess(folder, waits or Waits())
        state = PushState.load(_state_file(paths))
        run = Push(config, paths, kernel_folder, sizes, KaggleClient(process), state)
        upload(run, message or config.name)
        run_session(run)
        if submitting:
            submit(run, message or config.name)
    seconds = sum(s for _, s in process.calls)
    return "\n".join([*run.lines, f"{len(process.calls)} client calls, {seconds:.1f} s in them"])

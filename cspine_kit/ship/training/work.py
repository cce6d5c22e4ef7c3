"""What a session does: goes on from what earlier ones left, until its time is up.

In: the folders that Kaggle mounts. Out: `oof/<name>/` and `session.json` in the working folder.
Example::

    from cspine_kit.ship.training.dataset import write_dataset

    elsewhere = config.model_copy(update={"name": "elsewhere"})
    parcel = write_dataset(elsewhere, Path("training"), wheels=[], pretrained={})
    work(Path("input"), parcel.folder, Path(), kind="train").fault    # no session left a table

A cache session sees the competition and makes the index and the volumes; a training session sees
what those left and trains, with the very functions of `make oof`, on every GPU. What it cannot
finish, for want of time or of room for its output, the next session of the same kind goes on with.
An error ends the work, not the session: what was done before is left as well.
"""

import logging
import os
import shutil
import tempfile
import time
import traceback
from pathlib import Path

from cspine_kit.core.config import Config, load_config
from cspine_kit.core.deadline import clear_deadline, set_deadline
from cspine_kit.core.errors import DataError, Unfinished
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.room import clear_room, room_left_gb, set_room
from cspine_kit.core.runs import file_hash
from cspine_kit.data.stages import run_coarse, run_fine, run_folds, run_index
from cspine_kit.infer.manifest import MANIFEST
from cspine_kit.ship.training.dataset import CONFIG, naming, read_dataset
from cspine_kit.ship.training.names import Kind, competition_elsewhere
from cspine_kit.ship.training.output import Report, Session, holders, leave, sessions

log = logging.getLogger(__name__)

Left = tuple[Kind | None, str]
"""The kind of session that is needed next, and for what."""


def work(inputs: Path, dataset: Path, out: Path, *, kind: Kind, spent_s: float = 0.0) -> Report:
    """Do the work of one session.

    Args:
        inputs: below it are the dataset, earlier sessions, and for volumes the competition.
        dataset: as `write_dataset` wrote it.
        out: the working folder, which is also the current one.
        kind: of the session.
        spent_s: seconds of the session that are over.

    Raises:
        ArtifactError: dataset or earlier sessions are not sound.
        DataError: volumes are to be made, and the competition is not there.
    """
    begun = time.monotonic() - spent_s
    manifest = read_dataset(dataset)
    earlier = sessions(inputs, manifest["name"])
    scans = next(holders(inputs, "train.csv"), None) if kind == "cache" else None
    if kind == "cache" and scans is None:
        raise DataError(
            f"there is no train.csv below {inputs}: the competition is not attached to this "
            "session; join it on its page, then push again"
        )
    config = _config_here(dataset, scans, earlier)
    paths = RunPaths(Path("oof") / config.name)
    for session in earlier:
        session.link(paths)
    hub = Path(tempfile.mkdtemp(prefix="hub_"))
    if manifest["hub"]:
        from cspine_kit.vision.nets.pretrained import lay_out

        files = {name: dataset / file for file, name in manifest["hub"].items()}
        os.environ.update(lay_out(files, hub))
    set_deadline(3600.0 * manifest["hours"] - (time.monotonic() - begun))
    set_room(out, manifest["output_gb"])
    fault = ""
    try:
        left = _make_volumes(config, paths) if scans else _train(config, paths)
    except Exception as error:  # noqa: BLE001 - hours of work must not be lost with one error
        traceback.print_exc()
        left, fault = (None, ""), f"{type(error).__name__}: {error}"
    finally:
        clear_deadline()
        clear_room()
        shutil.rmtree(hub, ignore_errors=True)
    report = Report(
        name=config.name,
        kind=kind,
        number=max([session.report.number for session in earlier], default=0) + 1,
        dataset=file_hash(dataset / MANIFEST),
        next=left[0],
        left=left[1],
        fault=fault,
        hours=(time.monotonic() - begun) / 3600.0,
        volumes=0,
        files={},
    )
    return leave(paths, report, out)


def _config_here(dataset: Path, scans: Path | None, earlier: list[Session]) -> Config:
    """The config with the places that things have here."""
    config = load_config(dataset / CONFIG)
    here = competition_elsewhere(config).model_copy(update={"dir": scans} if scans else {})
    # The newest first: a volume that was cut anew stands before its older self.
    folders = [session.run / "cache" for session in reversed(earlier)]
    shipped = tuple(folder for folder in folders if folder.is_dir())
    volumes = config.volumes.model_copy(update={"shipped": shipped})
    config = config.model_copy(update={"competition": here, "volumes": volumes})
    return naming(config, dataset)


def _make_volumes(config: Config, paths: RunPaths) -> Left:
    """Index and folds, then what fits of the volumes."""
    from cspine_kit.vision.names import VERTEBRA
    from cspine_kit.vision.oof.run import missing

    run_index(config, paths)
    run_folds(config, paths)
    try:
        run_coarse(config, paths, most_gb=room_left_gb())
        if not missing(config, paths, [VERTEBRA]):
            run_fine(config, paths, most_gb=room_left_gb())
    except Unfinished as stopped:
        return "cache", str(stopped)
    names = missing(config, paths, [VERTEBRA, *config.members])
    return ("train", f"{len(names)} fold models") if names else (None, "")


def _train(config: Config, paths: RunPaths) -> Left:
    """What `make oof` does, as far as there are volumes and time."""
    from cspine_kit.vision.oof.run import make_levels, run_oof

    run_folds(config, paths)
    needs: Kind = "cache"
    try:
        run_coarse(config, paths, most_gb=0.0)
        needs = "train"
        make_levels(config, paths)
        needs = "cache"
        run_fine(config, paths, most_gb=0.0)
        needs = "train"
        run_oof(config, paths)
    except Unfinished as stopped:
        return needs, str(stopped)
    return None, ""

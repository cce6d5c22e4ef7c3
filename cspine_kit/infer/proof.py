"""A pushed version proves itself: the kernel, run on a packed phantom and on the public folders.

In: a bundle with a packed study, a competition folder. Out: what is wrong, in words, and the event
`proof` in the kernel's log, which `cspine push` reads. Example::

    faults = prove(competition.root, bundle, Path("submission.csv"))
    read_kernel_log(Path(KERNEL_LOG)).first("proof")["ok"]       # True where there are no faults

The public listing asks for studies that have no folder, so that right after a push no network would
run at all and the first forward pass on the GPU would be the hidden one.
"""

import tempfile
import zipfile
from pathlib import Path

import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import ArtifactError, CSpineError
from cspine_kit.core.paths import KERNEL_LOG, SUBMISSION, is_safe_uid
from cspine_kit.infer.answer import cause_of
from cspine_kit.infer.log import IMAGE, KernelEvents, KernelLog, read_kernel_log
from cspine_kit.infer.manifest import PROOF, check_file, read_manifest
from cspine_kit.infer.patience import Patience
from cspine_kit.infer.run import run_kernel

PUBLIC_LIMIT = 8
"""Public folders that are predicted; the competition has three."""

PACKED_TIME = (1980, 1, 1, 0, 0, 0)
MOST_BYTES = 256 << 20
"""A packed study is small: whatever claims more is not one."""

GPU_DRIVER = Path("/dev/nvidiactl")


def pack_study(folder: Path, path: Path) -> None:
    """Pack a study's files; equal files give equal bytes.

    A zip under another name: the service would unpack what is called .zip.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
        for file in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(f"{folder.name}/{file.name}", PACKED_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            pack.writestr(entry, file.read_bytes())


def unpack_study(path: Path, images: Path) -> str:
    """Unpack a study below `images`; its study_uid.

    Raises:
        ArtifactError: not one study of sane size, or a file that wants to lie elsewhere.
    """
    try:
        with zipfile.ZipFile(path) as pack:
            entries = pack.infolist()
            parts = [entry.filename.split("/") for entry in entries]
            uids = {part[0] for part in parts}
            sane = all(len(p) == 2 and p[1] not in ("", ".", "..") for p in parts)
            small = sum(entry.file_size for entry in entries) <= MOST_BYTES
            if len(uids) != 1 or not sane or not small or not is_safe_uid(*uids):
                raise ArtifactError(f"{path} does not hold the files of one small study")
            pack.extractall(images)
    except (OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} cannot be unpacked: {error}") from error
    return uids.pop()


def _competition(competition_dir: Path, bundle: Path, root: Path) -> list[str]:
    """A competition of the packed study, listed first, and the public folders; its study ids."""
    manifest, images = read_manifest(bundle), root / "test_images"
    if PROOF not in manifest["files"]:
        raise ArtifactError(f"{bundle} holds no {PROOF}; build it again (make kernel)")
    images.mkdir(parents=True)
    uids = [unpack_study(check_file([bundle], PROOF, manifest["files"][PROOF]), images)]
    public = competition_dir / "test_images"
    for folder in sorted(public.iterdir()) if public.is_dir() else []:
        if len(uids) <= PUBLIC_LIMIT and is_safe_uid(folder.name) and folder.is_dir():
            (images / folder.name).symlink_to(folder.resolve())
            uids.append(folder.name)
    rows = [(f"{uid}_{target}", uid, target) for uid in uids for target in TARGETS]
    columns = ["row_id", "StudyInstanceUID", "prediction_type"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "test.csv", index=False)
    return uids


def judge(events: KernelEvents, packed: str, origin: str) -> list[str]:
    """What is wrong in a run on these studies; empty where everything worked.

    Args:
        events: the run's log.
        packed: the phantom's id.
        origin: of the bundle; networks that know phantoms must need no help with one.
    """
    faults = []
    for event in events.others:
        own = event.get("study_uid") in (None, packed if origin == "phantom" else None)
        if event["event"] in ("device_lost", "models_unusable") or (
            event["event"] == "fault" and own
        ):
            where = event.get("device") or event.get("file") or event.get("study_uid") or ""
            faults.append(f"{event.get('stage', event['event'])} {where}: {event.get('cause')}")
    for study in events.studies.itertuples():
        if study.source != IMAGE and not (study.source == "header_levels" and origin == "real"):
            faults.append(f"study {study.study_uid} from {study.source}: {study.cause}")
    devices = (events.first("bundle") or {}).get("devices", [])
    ready = [event["device"] for event in events.others if event["event"] == "device_ready"]
    faults += [f"device {name} never got ready" for name in devices if name not in ready]
    if devices == ["cpu"] and GPU_DRIVER.exists():
        faults.append("there is a GPU here, but torch cannot use it")
    return faults


def prove(
    competition_dir: Path, bundle: Path, out: Path, *, patience: Patience | None = None
) -> list[str]:
    """Run the kernel on the packed study and the public folders; never raises.

    Args:
        competition_dir: folder with test_images/.
        bundle: folder that `build_bundle` wrote.
        out: the submission that the proof goes with: its log gets the event.
        patience: after how long what hangs is given up.

    Returns:
        What is wrong, in words; empty where the bundle works here.
    """
    uids: list[str] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        root = Path(scratch) / "proof"
        try:
            uids = _competition(competition_dir, bundle, root)
            report = run_kernel(
                *(root, bundle, root / SUBMISSION), patience=patience, every_device=True
            )
            events = read_kernel_log(root / KERNEL_LOG)
            faults = judge(events, uids[0], report.origin)
            if len(events.studies) != len(uids):
                faults.append(f"{len(events.studies)} of {len(uids)} studies were answered")
        except (CSpineError, OSError) as error:
            faults = [cause_of(error)]
    log = KernelLog(out.with_name(KERNEL_LOG))
    log.write("proof", ok=not faults, studies=len(uids), faults=faults)
    return faults

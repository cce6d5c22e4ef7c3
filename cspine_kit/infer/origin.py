"""What a bundle's networks learned from: phantoms, or real patients.

In: a bundle, a scan. Out: words that mark an output, or a refusal. Example::

    mark = refuse_phantom_bundle(bundle, folder, allowed=False)    # a phantom: marked
    note_of(origin_of(bundle))                     # "" for a bundle of real studies

Networks that saw no real fracture give plausible numbers on a real scan. What shows a person
fracture probabilities refuses such a pair; the kernel and `levels` only mark it.
"""

from functools import partial
from pathlib import Path

from cspine_kit.core.errors import ArtifactError
from cspine_kit.infer.manifest import Origin, read_manifest
from cspine_kit.infer.patience import Patience, within

PHANTOM_FILE = "phantom.json"
"""What the kit writes into the root of a competition that it drew itself."""

NOTE = "this bundle was born on phantoms: its networks never saw a real fracture"

NOTE_OF_FINDER = "levels by the finder that ships: it was trained on synthetic scans only"


def origin_of(bundle: Path) -> Origin | str:
    """What the manifest says; empty where there is none that can be read."""
    try:
        manifest = within(Patience.study_s, partial(read_manifest, bundle, copies=True))
        origin: Origin = manifest["origin"]
        return origin
    except (ArtifactError, OSError):
        return ""


def note_of(origin: str) -> str:
    """The words that mark an output of a bundle of this origin; empty for a real one."""
    return NOTE if origin == "phantom" else ""


def is_phantom_scan(folder: Path) -> bool:
    """True for a study of a competition that the kit drew: <root>/<split>_images/<study>."""
    return (folder.resolve().parent.parent / PHANTOM_FILE).is_file()


def refuse_phantom_bundle(bundle: Path, folder: Path, *, allowed: bool) -> str:
    """Refuse a real scan for a bundle born on phantoms.

    Args:
        bundle: the bundle.
        folder: the study's DICOM files.
        allowed: the user asked for it (`--phantom-bundle`).

    Returns:
        The words that must mark every output; empty for a bundle of real studies.

    Raises:
        ArtifactError: the scan is no phantom, the bundle is one's, and it was not allowed.
    """
    note = note_of(read_manifest(bundle)["origin"])
    if note and not allowed and not is_phantom_scan(folder):
        raise ArtifactError(
            f"{folder} is no phantom, but {note}; its numbers would mean nothing for a patient. "
            "To see them all the same: --phantom-bundle"
        )
    return note

"""A bundle as the two datasets that go to Kaggle: what a training made, and what changes daily.

In: a bundle, names. Out: two flat folders of links with their metadata, as parcels. Example::

    weights, code = write_parcels(config, bundle, Path("upload"))
    sum(code.sizes.values()), code.ref            # bytes, owner/slug

Weights and other people's wheels are megabytes that stay as they are while the stack or the code
changes, which is kilobytes: so each is sent when it changed. The kernel puts them together again by
the hashes of the manifest, which lies with the code.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cspine_kit.core.config import Config
from cspine_kit.core.runs import file_hash, fingerprint, read_json, write_json
from cspine_kit.infer.manifest import MANIFEST, read_manifest
from cspine_kit.ship.kaggle.service import (
    DATASET_METADATA,
    check_size,
    dataset_metadata,
    dataset_ref,
)

Part = Literal["weights", "code"]


@dataclass(frozen=True)
class Parcel:
    """One dataset: its place on the service, its folder here, bytes by file, a hash of all."""

    part: Part
    ref: str
    folder: Path
    sizes: dict[str, int]
    digest: str


def write_parcels(config: Config, bundle: Path, folder: Path) -> tuple[Parcel, Parcel]:
    """Lay a bundle out as `folder`/weights and `folder`/code.

    Args:
        config: names and license.
        bundle: as `build_bundle` wrote it.
        folder: its two folders hold nothing else afterwards; what is right there stays as it is.

    Returns:
        Weights, then code: the order in which they are to be sent.

    Raises:
        ArtifactError: no manifest, or more than a dataset may hold.
    """
    listed = read_manifest(bundle)["files"]
    apart = {name for name, entry in listed.items() if entry.get("apart")}
    files = {"weights": apart, "code": {path.name for path in bundle.iterdir()} - apart}
    hashes = sorted((name, listed[name]["sha256"]) for name in apart)
    digests = {"weights": fingerprint(hashes), "code": file_hash(bundle / MANIFEST)}

    def parcel(part: Part) -> Parcel:
        target, ref = folder / part, dataset_ref(config, part)
        metadata = dataset_metadata(config, ref)
        target.mkdir(parents=True, exist_ok=True)
        for path in target.iterdir():
            if path.name not in {*files[part], DATASET_METADATA}:
                path.unlink()
        for name in files[part]:
            _link(bundle / name, target / name)
        sizes = {name: (target / name).stat().st_size for name in sorted(files[part])}
        check_size(sizes)
        there = target / DATASET_METADATA
        if not there.exists() or read_json(there) != metadata:
            write_json(there, metadata)
        return Parcel(part, ref, target, sizes, digests[part])

    return parcel("weights"), parcel("code")


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)

"""Finished volumes in folders of at most some size, and where they lie.

In: a folder of volumes. Out: the file of each study; on demand `shard_000`, `shard_001`, ...
Example::

    lay_in_shards("fine", paths.cache / "fine", most_gb=18.0)
    finished("fine", paths.cache / "fine")[uid]

A Kaggle dataset is made of one shard at a time; `volumes.shipped` names the folders in which a run
finds them again, in any depth.
"""

from pathlib import Path

from cspine_kit.core.errors import DataError
from cspine_kit.data.volumes.store import ENDING, MASK_ENDING, mask_path


def finished(name: str, folder: Path, *shipped: Path) -> dict[str, Path]:
    """Files of volumes by study_uid.

    Args:
        name: coarse or fine, as a folder above the files is called.
        folder: the run's own; what lies there is taken first.
        shipped: further folders, searched in any depth.

    Raises:
        DataError: a shipped folder is not there.
    """
    found = dict[str, Path]()
    for place in (folder, *shipped):
        if place is not folder and not place.is_dir():
            raise DataError(f"volumes.shipped: there is no folder {place}")
        for path in sorted(place.rglob(f"*{ENDING}")):
            apart = place is not folder and name not in path.parts
            if not path.name.endswith(MASK_ENDING) and not path.name.startswith(".") and not apart:
                found.setdefault(path.name.removesuffix(ENDING), path)
    return found


def lay_in_shards(name: str, folder: Path, most_gb: float) -> dict[str, Path]:
    """Move a folder's volumes and masks, in the order of their studies, to shards.

    Args:
        name: coarse or fine.
        folder: of the volumes.
        most_gb: size of a shard, in 10^9 bytes.

    Returns:
        Where each study's file lies now.

    Raises:
        DataError: one volume alone is larger.
    """
    moved = dict[str, Path]()
    number, filled = 0, 0.0
    for uid, path in sorted(finished(name, folder).items()):
        files = [file for file in (path, mask_path(path)) if file.exists()]
        size = sum(file.stat().st_size for file in files) / 1e9
        if size > most_gb:
            raise DataError(f"{path} has {size:.3f} GB, more than a shard of {most_gb} GB")
        if filled + size > most_gb:
            number, filled = number + 1, 0.0
        filled += size
        shard = folder / f"shard_{number:03d}"
        shard.mkdir(exist_ok=True)
        for file in files:
            file.replace(shard / file.name)
        moved[uid] = shard / path.name
    for place in folder.glob("shard_*"):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    return moved

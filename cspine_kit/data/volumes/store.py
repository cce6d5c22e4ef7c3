"""Volumes as files: Arrow IPC, a zstd-compressed record batch for each slice.

In: a `Volume`. Out: `<study_uid>.arrow`, with a mask `<study_uid>.mask.arrow` beside it. Example::

    write_volume(volume, Path("fine.arrow"), {"recipe": "what it is made from"})
    again, facts = open_volume(Path("fine.arrow"))
    again.voxels.slices([3, 4, 5]), facts["recipe"]

Lossless; any slice is read alone. Where the voxels lie is in the schema's metadata, so that a file
can be used without any table. A process holds a few files open at a time.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.runs import file_state, publish
from cspine_kit.data.volumes.curve import Grey, HuCurve
from cspine_kit.data.volumes.lattice import Lattice
from cspine_kit.data.volumes.volume import EVERYTHING, Held, Volume, Voxels

ENDING, MASK_ENDING = ".arrow", ".mask.arrow"
MOST_OPEN = 128
"""Files that a process keeps open; opening another takes a fraction of a millisecond."""
ZSTD_LEVEL = 3
FACTS = b"cspine_volume"
"""Key of the schema's metadata: JSON."""


@lru_cache(maxsize=MOST_OPEN)
def _opened(path: str, state: tuple[int, int]) -> "ipc.RecordBatchFileReader":
    # `state`: a file that is made again is opened again. One thread: those who draw patches share
    # the cores already.
    return ipc.open_file(pa.memory_map(path), options=ipc.IpcReadOptions(use_threads=False))


@dataclass(frozen=True)
class Stored:
    """Voxels that stay in their file; the file is opened when they are looked at."""

    path: str
    shape: tuple[int, int, int]

    def slices(
        self, indices: Sequence[int], rows: slice = EVERYTHING, cols: slice = EVERYTHING
    ) -> Grey:
        """A part of some slices, (n, y, x).

        Raises:
            ArtifactError: the file is gone or damaged.
        """
        plane = self.shape[1:]
        found = dict[int, Grey]()
        try:
            reader = _opened(self.path, file_state(Path(self.path)))
            for z in dict.fromkeys(map(int, indices)):
                voxels = reader.get_batch(z).column(0).buffers()[1]
                found[z] = np.frombuffer(voxels, np.uint8, plane[0] * plane[1]).reshape(plane)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise ArtifactError(
                f"volume {self.path} cannot be read ({type(error).__name__}: {error}); delete it "
                "and run cspine cache"
            ) from error
        return np.stack([found[int(z)][rows, cols] for z in indices])


def mask_path(path: Path) -> Path:
    """The file of labels beside a volume's file."""
    return path.with_name(path.name.removesuffix(ENDING) + MASK_ENDING)


def every_slice(voxels: Voxels) -> Grey:
    """All of a volume, (z, y, x)."""
    return voxels.slices(range(voxels.shape[0]))


def in_memory(volume: Volume) -> Volume:
    """The same volume with its voxels in memory: for whoever looks at all of them."""
    return replace(volume, voxels=Held(every_slice(volume.voxels)))


def _write(path: Path, voxels: Grey, facts: Mapping[str, Any]) -> None:
    metadata = {FACTS: json.dumps({"shape": voxels.shape, **facts}).encode()}
    schema = pa.schema([pa.field("voxels", pa.uint8())], metadata=metadata)
    options = ipc.IpcWriteOptions(
        compression=pa.Codec("zstd", compression_level=ZSTD_LEVEL), use_threads=False
    )
    with publish(path) as temporary, ipc.new_file(str(temporary), schema, options=options) as file:
        for plane in voxels:
            flat = pa.array(np.ascontiguousarray(plane).reshape(-1))
            file.write_batch(pa.record_batch([flat], schema=schema))


def checksum(voxels: Grey) -> str:
    """SHA-256 (hex) of voxels and their shape."""
    content = hashlib.sha256(repr(voxels.shape).encode())
    content.update(np.ascontiguousarray(voxels).data)
    return content.hexdigest()


def write_volume(volume: Volume, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a volume, and its mask where it has one; a file that is there is replaced.

    Args:
        volume: with voxels anywhere.
        path: of its file, which ends in `ENDING`.
        facts: more to keep in the metadata (JSON); read back by `open_volume`.
    """
    mask, voxels = mask_path(path), every_slice(volume.voxels)
    mask.unlink(missing_ok=True)
    masked = None if volume.mask is None else every_slice(volume.mask)
    if masked is not None:
        _write(mask, masked, {"study_uid": volume.study_uid})
    _write(
        path,
        voxels,
        {
            **facts,
            "study_uid": volume.study_uid,
            "z_mm": volume.z_mm.tolist(),
            "step_mm": volume.step_mm,
            "frame_px": volume.lattice.frame_px,
            "pitch_mm": volume.lattice.pitch_mm,
            "lattice": volume.lattice.shape,
            "corner": volume.corner,
            "curve": volume.curve.knots,
            "first_slice": volume.first_slice,
            "group": volume.group,
            "checksum": checksum(voxels),
            "mask_checksum": "" if masked is None else checksum(masked),
        },
    )


def _facts(path: Path) -> dict[str, Any]:
    try:
        # Not kept open: whoever looks at voxels opens it again.
        with pa.memory_map(str(path)) as source, ipc.open_file(source) as reader:
            facts: dict[str, Any] = json.loads((reader.schema.metadata or {})[FACTS])
            batches = reader.num_record_batches
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise ArtifactError(
            f"volume {path} cannot be opened ({type(error).__name__}: {error}); delete it and run "
            "cspine cache"
        ) from error
    if batches != facts["shape"][0]:
        raise ArtifactError(
            f"volume {path} holds {batches} slices instead of {facts['shape'][0]}; delete it and "
            "run cspine cache"
        )
    return facts


def open_volume(path: Path) -> tuple[Volume, dict[str, Any]]:
    """A stored volume whose voxels are read when they are looked at, and its metadata.

    Raises:
        ArtifactError: the file, or that of its mask, is missing, cut or no volume.
    """
    facts = _facts(path)
    nz, ny, nx = facts["shape"]
    mask = None
    if facts["mask_checksum"]:
        if _facts(mask_path(path))["shape"] != facts["shape"]:
            raise ArtifactError(f"mask {mask_path(path)} has another shape than its volume")
        mask = Stored(str(mask_path(path)), (nz, ny, nx))
    volume = Volume(
        study_uid=str(facts["study_uid"]),
        voxels=Stored(str(path), (nz, ny, nx)),
        z_mm=np.array(facts["z_mm"], dtype=np.float64),
        step_mm=float(facts["step_mm"]),
        lattice=Lattice(*(tuple(facts[name]) for name in ("frame_px", "pitch_mm", "lattice"))),
        corner=(int(facts["corner"][0]), int(facts["corner"][1])),
        curve=HuCurve.of(facts["curve"]),
        first_slice=int(facts["first_slice"]),
        group=int(facts["group"]),
        mask=mask,
    )
    return volume, facts

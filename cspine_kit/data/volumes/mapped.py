"""Voxels that stay on disk, and of which a process holds only a few files open at a time.

In: a cached volume's `.npy`. Out: something that is indexed like a uint8 array (z, y, x).
Example::

    voxels = MappedVoxels.of(paths.cache / f"{uid}.npy")
    voxels[[3, 4, 5], 10:40, 10:40]

A memory map costs a file descriptor for as long as it lives; a training over 1,615 studies would
pass the usual limit of 1,024.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]

MOST_OPEN = 128
"""Maps that a process keeps; opening another takes about 0.1 ms."""


@lru_cache(maxsize=MOST_OPEN)
def _mapped(path: str, offset: int, shape: tuple[int, int, int]) -> Grey:
    # A plain array is indexed faster than numpy's memmap class.
    return np.memmap(path, np.uint8, "r", offset, shape).view(np.ndarray)


@dataclass(frozen=True)
class MappedVoxels:
    """A uint8 array (z, y, x) in a file: what `of` has checked once is mapped when indexed."""

    path: str
    offset: int
    shape: tuple[int, int, int]
    dtype = np.dtype(np.uint8)

    @classmethod
    def of(cls, path: Path) -> "MappedVoxels":
        """Look at a file's header and size, and close it.

        Raises:
            OSError: there is no such file.
            ValueError: it is no plain `.npy` of three axes of uint8, or it is cut.
        """
        with path.open("rb") as handle:
            version = np.lib.format.read_magic(handle)
            if version != (1, 0):
                raise ValueError(f"its format is {version}, not (1, 0)")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(handle)
            offset = handle.tell()
        if fortran or dtype != np.uint8 or len(shape) != 3:
            raise ValueError(f"it holds {dtype} of shape {shape}, not uint8 (z, y, x)")
        size, expected = path.stat().st_size, offset + int(np.prod(shape))
        if size != expected:
            raise ValueError(f"it has {size} bytes instead of {expected}")
        return cls(str(path), offset, shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Grey:
        return _mapped(self.path, self.offset, self.shape)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The whole volume, for numpy's functions."""
        return np.array(self[:], dtype=dtype)

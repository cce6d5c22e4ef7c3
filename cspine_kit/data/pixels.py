"""Pixels of one file: decoded to stored values, then to Hounsfield units.

In: a path and its `Header`. Out: int16 (rows, cols) HU. Example::

    stored = decode(path, header)
    hu = to_hu(stored, header)
"""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from cspine_kit.data.header import Header
from cspine_kit.data.problems import FileError

AIR_HU = -1024
"""Value of padding outside the field of view: the lowest of a 12-bit CT."""

HuArray = NDArray[np.int16]
Stored = NDArray[np.integer[Any]]
"""Stored values: int16 where the file is signed, else uint16."""


def decode(path: Path, header: Header) -> Stored:
    """Stored values (rows, cols) of one file.

    Raises:
        FileError: the pixels cannot be decoded, or have another size than the header says.
    """
    try:
        stored = pydicom.dcmread(path).pixel_array
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        raise FileError(header.file, "undecodable_pixels", detail) from error
    if stored.shape != (header.rows, header.cols):
        detail = f"decoded {stored.shape}, the header says {(header.rows, header.cols)}"
        raise FileError(header.file, "undecodable_pixels", detail)
    return stored.astype(np.int16 if header.signed else np.uint16, copy=False)


def to_hu(stored: Stored, header: Header) -> HuArray:
    """Stored values to HU (rows, cols) int16: slope and intercept of this file, padding to air."""
    slope = 1.0 if np.isnan(header.slope) else header.slope
    intercept = 0.0 if np.isnan(header.intercept) else header.intercept
    if slope == 1.0 and intercept.is_integer():
        wide = stored.astype(np.int32) + int(intercept)
    else:
        wide = np.rint(stored * slope + intercept)
    hu = np.clip(wide, -32768, 32767).astype(np.int16)
    if header.padding is not None:
        low, high = header.padding
        hu[(stored >= low) & (stored <= high)] = AIR_HU
    return hu


def invert(stored: Stored, header: Header) -> Stored:
    """Stored values mirrored within BitsStored."""
    top = -1 if header.signed else (1 << header.bits_stored) - 1
    return (top - stored.astype(np.int32)).astype(stored.dtype)

"""The decoder of record: pydicom and its plugins, in the process that calls it.

In: a path and its `Header`. Out: stored values. Example::

    stored = decode_of_record(path, header)

A damaged stream can crash the C++ code below it: `isolated` runs it in a process of its own.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.headers.walk import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT
from cspine_kit.data.reader.pixels.streams import check_stream, frame_bytes

NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)

Stored = NDArray[np.integer[Any]]
"""Stored values: int16 where the file is signed, else uint16."""


def decode_of_record(path: Path, header: Header) -> Stored:
    """Stored values (rows, cols) by pydicom and its plugins, in this very process.

    Raises:
        ValueError: another size than the header says; pydicom raises what it likes besides.
    """
    if header.frame is not None and header.pixels_at:
        # Of a file of many frames only one is read.
        stored = pixel_array(path, index=header.frame)
    else:
        dataset = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = UID(header.syntax)
        if (dataset.Rows, dataset.Columns) != (header.rows, header.cols):
            raise ValueError("the header changed while it was read")
        if header.syntax not in NATIVE and header.pixels_at:
            check_stream(frame_bytes(path.read_bytes(), header.pixels_at), header)
        stored = dataset.pixel_array
        if header.frame is not None and stored.ndim == 3:
            stored = stored[header.frame]
    if stored.shape != (header.rows, header.cols):
        raise ValueError(f"decoded {stored.shape}, not {(header.rows, header.cols)}")
    return stored.astype(np.int16 if header.signed else np.uint16, copy=False)

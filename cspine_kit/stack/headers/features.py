"""What DICOM headers say about a scan's site and protocol, as numbers.

In: a table of slice headers, or positions of slices along the table. Out: one row of finite float64
features per study. Example::

    features = header_features(read_headers(slice_headers))

Scanners differ in how they round, how far they scan and how densely they reconstruct; that is what
these features catch.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.errors import DataError, TableError
from cspine_kit.stack.features.positions import decimals, position_features
from cspine_kit.stack.features.segments import Segments
from cspine_kit.stack.features.units import SHOWN

COLUMNS = (
    *("StudyInstanceUID", "slice_number", "ImageHeight", "ImageWidth", "SliceThickness"),
    *("ImagePositionPatient_x", "ImagePositionPatient_y", "ImagePositionPatient_z"),
)


def read_headers(path: Path) -> pd.DataFrame:
    """A parquet or CSV table of slices with ids as text.

    Raises:
        DataError: absent or unreadable.
    """
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype={"StudyInstanceUID": str})
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return frame.astype({c: str for c in ("StudyInstanceUID",) if c in frame})


def header_features(headers: pd.DataFrame) -> pd.DataFrame:
    """One row per study: slice count, spacing, extent, position and orientation, all in mm.

    Args:
        headers: one row per slice with `COLUMNS`; other columns are ignored.

    Returns:
        study_uid (str, sorted) and float64 features, all finite.

    Raises:
        TableError: a missing column, a doubled slice, or a value that is not finite.
    """
    missing = [c for c in COLUMNS if c not in headers]
    if missing or headers.empty:
        raise TableError("headers: " + (f"no column {missing}" if missing else "no rows"))
    uid = headers["StudyInstanceUID"].astype(str).to_numpy(dtype=object)
    codes, uids = pd.factorize(uid, sort=True)
    number = headers["slice_number"].to_numpy(np.int64)
    order = np.lexsort((number, codes))
    doubled = (np.diff(codes[order]) == 0) & (np.diff(number[order]) == 0)
    if doubled.any():
        rows = [(str(uid[i]), int(number[i])) for i in order[1:][doubled][:SHOWN]]
        raise TableError(f"headers: slices given twice (study, slice_number): {rows}")
    numbers = headers[list(COLUMNS[2:])].to_numpy(np.float64)[order]
    if not np.isfinite(numbers).all():
        row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(numbers)))
        raise TableError(f"headers: {COLUMNS[2 + column]} is not finite in {uid[order[row]]}")
    rows_, cols_, thickness, x, y, z = numbers.T
    number = number[order]
    studies = Segments(np.unique(codes[order], return_index=True)[1].astype(np.int64), len(z))
    first, last = studies.starts, studies.ends - 1
    position = position_features(z, studies, thickness[first])
    features = {
        "slices": studies.counts.astype(np.float64),
        "missing": number[last] - number[first] + 1.0 - studies.counts,
        "first_number": number[first].astype(np.float64),
        "rows": rows_[first],
        "cols": cols_[first],
        "thickness": thickness[first],
        **position,
        "overlap": position["step"] / np.maximum(thickness[first], 1e-3),
        "reversed": (z[last] > z[first]).astype(np.float64),
        "x": x[first],
        "y": y[first],
        "x_minus_y": x[first] - y[first],
        "x_drift": studies.max(x) - studies.min(x),
        "y_drift": studies.max(y) - studies.min(y),
        "x_decimals": decimals(x[first]),
        "y_decimals": decimals(y[first]),
    }
    frame = pd.DataFrame(features)
    frame.insert(0, "study_uid", [str(u) for u in uids])
    return frame

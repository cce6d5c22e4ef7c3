"""The annotators' masks: labels of every voxel as the competition's NIfTI.

In: labels (z, y, x) on a scan's grid. Out: `segmentations/<uid>.nii`. Example::

    write_mask(Path("1.2.3.nii"), scan, np.zeros(scan.grid.shape, np.uint8))
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspine_kit.phantom.scanner.scan import Scan


def write_mask(path: Path, scan: Scan, labels: NDArray[np.uint8]) -> None:
    """Write labels (z, y, x) as the competition's NIfTI: x to the left, y forward, z up.

    `get_fdata()[:, ::-1, ::-1].transpose(2, 1, 0)` gives (z, y, x) in file order where z descends
    with the file number; where it ascends, that z flip must be left out.
    """
    import nibabel

    data = np.ascontiguousarray(labels.transpose(2, 1, 0)[:, ::-1, ::-1])
    dz, dy, dx = scan.spacing_mm
    grid, (right, down, up) = scan.grid, scan.axes
    first = grid.x[0] * right + grid.y[-1] * down + grid.z[-1] * up + np.array(scan.origin_mm)
    affine = np.eye(4)
    affine[:3] = np.column_stack([dx * right, -dy * down, dz * up, first])
    affine[:2] *= -1.0  # DICOM's x and y run the other way round
    image = nibabel.Nifti1Image(data, affine)  # type: ignore[no-untyped-call]
    image.set_qform(affine, 1)  # type: ignore[no-untyped-call]
    image.set_sform(affine, 1)  # type: ignore[no-untyped-call]
    path.write_bytes(image.to_bytes())

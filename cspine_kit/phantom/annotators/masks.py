"""The annotators' masks: labels of every voxel as the competition's NIfTI, faults included.

In: labels (z, y, x) on a scan's grid. Out: `segmentations/<uid>.nii`. Example::

    labels = np.zeros(scan.grid.shape, np.uint8)
    drawn = draw_mask(rng, labels, scan.spacing_mm)       # strays, gaps, swapped levels
    write_nifti(Path("1.2.3.nii"), scan, drawn)

Of 60 real masks 23 have strays: 41 of their 420 levels hold voxels more than 5 mm beyond their main
run in z, up to 166 mm, and 46 levels are not contiguous in z.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.phantom.scanner.scan import Scan

STRAY_STUDIES = 23 / 60
STRAY_LEVELS = 0.13
"""A study with strays has them in one level, and in each other one with this probability."""
STRAY_MM, STRAY_SCALE_MM, FARTHEST_MM = 5.5, 28.0, 166.0
"""Nearest stray beyond its level, and scale and end of the distances' exponential."""
GAP_LEVELS = 5 / 420
"""Levels with slices left out in their middle: not contiguous, yet without a stray."""
SWAPPED_STUDIES = 0.01
"""Masks with two neighbors' labels swapped; assumed, for none of the 60 has it."""


def _stray(
    rng: np.random.Generator,
    labels: NDArray[np.uint8],
    level: int,
    spacing_mm: tuple[float, float, float],
) -> None:
    """A dab of the brush with a level's label above or below it, in place."""
    z, y, x = np.nonzero(labels == level)
    away = STRAY_MM + min(float(rng.exponential(STRAY_SCALE_MM)), FARTHEST_MM - STRAY_MM)
    steps = round(away / spacing_mm[0]) + 1
    room = [at for at in (z.min() - steps, z.max() + steps) if 0 <= at < len(labels)]
    if not room:
        return
    spot = rng.integers(len(z))
    middle = np.array([rng.choice(room), y[spot], x[spot]])
    half = np.maximum(0, np.round(rng.uniform(0.5, 2.5, 3) / spacing_mm)).astype(int)
    half[0] = min(half[0], 1)
    window = tuple(
        slice(max(0, m - h), m + h + 1) for m, h in zip(middle.tolist(), half.tolist(), strict=True)
    )
    labels[window] = level


def draw_mask(
    rng: np.random.Generator, labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """Labels (z, y, x) as an annotator leaves them, with the faults of the real masks."""
    drawn = labels.copy()
    present = [int(v) for v in np.unique(labels) if 1 <= v <= len(LEVELS)]
    if not present:
        return drawn
    for level in present:
        if rng.random() < GAP_LEVELS:
            run = np.flatnonzero((labels == level).any(axis=(1, 2)))
            first = run[0] + max(1, int(rng.uniform(0.2, 0.7) * len(run)))
            part = drawn[first : min(first + int(rng.integers(1, 4)), run[-1])]
            part[part == level] = 0
    if rng.random() < STRAY_STUDIES:
        chosen = {int(rng.choice(present))}
        chosen |= {level for level in present if rng.random() < STRAY_LEVELS}
        for level in sorted(chosen):
            _stray(rng, drawn, level, spacing_mm)
    if rng.random() < SWAPPED_STUDIES and len(present) > 1:
        upper = present[int(rng.integers(len(present) - 1))]
        names = np.arange(int(drawn.max()) + 2, dtype=np.uint8)
        names[[upper, upper + 1]] = upper + 1, upper
        drawn = names[drawn]
    return drawn


def write_nifti(path: Path, scan: Scan, labels: NDArray[np.uint8 | np.int16]) -> None:
    """Write labels or HU (z, y, x) as the competition's NIfTI: x to the left, y forward, z up; of
    prone patients x to the right and y back.

    `get_fdata()[:, ::-1, ::-1].transpose(2, 1, 0)` gives (z, y, x) in file order where z descends
    with the file number; where it ascends, that z flip must be left out.
    """
    import nibabel

    way = scan.way
    data = np.ascontiguousarray(labels.transpose(2, 1, 0)[::way, ::-way, ::-1])
    dz, dy, dx = scan.spacing_mm
    (right, down, up), origin = scan.axes, np.array(scan.origin_mm)
    x, y, z = scan.grid.x[::way], scan.grid.y[::-way], scan.grid.z[::-1]
    first = x[0] * right + y[0] * down + z[0] * up + origin
    affine = np.eye(4)
    affine[:3] = np.column_stack([way * dx * right, -way * dy * down, dz * up, first])
    affine[:2] *= -1.0  # DICOM's x and y run the other way round
    image = nibabel.Nifti1Image(data, affine)  # type: ignore[no-untyped-call]
    image.set_qform(affine, 1)  # type: ignore[no-untyped-call]
    image.set_sform(affine, 1)  # type: ignore[no-untyped-call]
    path.write_bytes(image.to_bytes())

"""A NIfTI mask on the grid of its study: cut to its vertebrae, checked to sit on bone, in order.

In: `segmentations/<uid>.nii` or `.nii.gz`, and a `Study`. Out: uint8 (z, y, x) labels beside
`study.hu`: 1..7 are C1..C7, 8..19 T1..T12. Example::

    mask = read_mask(competition.segmentation(uid), study)
    study.hu[mask == 2].mean()       # C2
    check_mask(competition.segmentation(uid), study).remarks     # what was cut, what is missing
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS, SPINE_LABEL_COUNT
from cspine_kit.core.errors import StudyError
from cspine_kit.data.components import MASK_STRAYS, Cut, keep_vertebrae
from cspine_kit.data.reader.dicom import Study

MaskArray = NDArray[np.uint8]

MASKS_VERSION = 3
"""Raised when the same mask file and study give another mask, or another refusal."""

BAD_MASK = "bad_mask"
"""Problem code of a study that is kept without its mask."""

MASK_GAP = "mask_gap"
"""Problem code of a mask that leaves out a level between two others."""

MOST_LABEL = 19
"""1..7 are C1..C7, 8..19 T1..T12."""

BONE_MEAN_HU = 110.0
"""Mean HU inside a mask of vertebrae from here on is bone; neck muscle is 40 to 80."""
BETTER_HU = 60.0
"""A flip must beat the header's own orientation by this much to be believed."""
SAMPLED_VOXELS = 60_000

PARALLEL_VOXELS = 1e-3
"""Axes of mask and study that part by less than this over the whole scan are parallel."""

MOST_EXTENT_MM = 75.0
"""No cervical vertebra is so tall in z, its processes included (90 % of C2: below 51)."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""DICOM's x runs to the left and y to the back, NIfTI's to the right and to the front."""

FLIPS = ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))


def grid_to_array(
    study: Study, affine: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the study's voxels lie in the mask array.

    Returns:
        (nz, 3) array index of each slice's pixel [0, 0], and (2, 3) its change per row and column.
    """
    inverse = np.linalg.inv(affine)
    starts = study.origins_mm @ LPS_TO_RAS @ inverse[:3, :3].T + inverse[:3, 3]
    steps = study.axes * np.array(study.spacing_mm[1:])[:, None]
    return starts, steps @ LPS_TO_RAS @ inverse[:3, :3].T


def _sample(
    labels: MaskArray,
    start: NDArray[np.float64],
    steps: NDArray[np.float64],
    shape: tuple[int, int],
) -> MaskArray:
    """Nearest labels (rows, cols) of one slice; 0 outside the array."""
    rows, cols = (np.arange(size)[:, None] for size in shape)
    down, right = start + rows * steps[0], cols * steps[1]
    index, inside = [], np.ones(shape, dtype=bool)
    for axis in range(3):
        at = np.rint(down[:, None, axis] + right[None, :, axis]).astype(np.int64)
        inside &= (at >= 0) & (at < labels.shape[axis])
        index.append(np.clip(at, 0, labels.shape[axis] - 1))
    return np.where(inside, labels[tuple(index)], 0).astype(np.uint8)


def _parallel_axes(
    starts: NDArray[np.float64], steps: NDArray[np.float64], shape: tuple[int, int]
) -> tuple[int, int, int] | None:
    """The array axes along the study's slices, rows and columns; None where they are oblique."""
    ends = np.array(shape)[:, None] - 1
    moved = np.vstack([np.ptp(starts, axis=0), np.abs(steps) * ends]) > PARALLEL_VOXELS
    if not ((moved.sum(axis=0) == 1).all() and (moved.sum(axis=1) == 1).all()):
        return None
    along = moved.argmax(axis=1)
    return int(along[0]), int(along[1]), int(along[2])


def place_mask(labels: MaskArray, affine: NDArray[np.float64], study: Study) -> MaskArray:
    """Labels of a NIfTI array on the study's grid (z, y, x), by the affine alone."""
    starts, steps = grid_to_array(study, affine)
    axes = _parallel_axes(starts, steps, study.shape)
    if axes is None:
        return np.stack([_sample(labels, start, steps, study.shape) for start in starts])
    z, row, column = axes
    along = (
        starts[:, z],
        starts[0, row] + np.arange(study.shape[0]) * steps[0, row],
        starts[0, column] + np.arange(study.shape[1]) * steps[1, column],
    )
    found = np.zeros((len(starts), *study.shape), np.uint8)
    at = [np.rint(places).astype(np.int64) for places in along]
    inside = [(k >= 0) & (k < labels.shape[axis]) for k, axis in zip(at, axes, strict=True)]
    picked = np.ix_(*(k[own] for k, own in zip(at, inside, strict=True)))
    found[np.ix_(*inside)] = labels.transpose(axes)[picked]
    return found


def mean_hu_by_flip(mask: MaskArray, study: Study) -> dict[tuple[int, ...], float]:
    """Mean HU under C1..C7 for the mask and each of its seven flips along z, y, x."""
    at = np.argwhere((mask >= 1) & (mask <= SPINE_LABEL_COUNT))
    at = at[:: max(1, len(at) // SAMPLED_VOXELS)]
    means: dict[tuple[int, ...], float] = {}
    for flip in FLIPS:
        index = [
            mask.shape[axis] - 1 - at[:, axis] if axis in flip else at[:, axis] for axis in range(3)
        ]
        means[flip] = float(study.hu[tuple(index)].mean())
    return means


def settle_on_bone(mask: MaskArray, study: Study) -> MaskArray:
    """The mask as it is, or flipped where only that puts it on bone.

    Raises:
        StudyError: no cervical label, or no flip sits on bone.
    """
    if not ((mask >= 1) & (mask <= SPINE_LABEL_COUNT)).any():
        raise StudyError(study.study_uid, "its mask holds no voxel of C1..C7 inside the scan")
    means = mean_hu_by_flip(mask, study)
    best = max(means, key=lambda flip: means[flip])
    if means[()] >= BONE_MEAN_HU and means[best] - means[()] < BETTER_HU:
        return mask
    if means[best] < BONE_MEAN_HU or means[best] - means[()] < BETTER_HU:
        raise StudyError(
            study.study_uid,
            f"its mask sits on no bone: mean {means[()]:.0f} HU, at best {means[best]:.0f} HU with "
            f"axes {best} flipped",
            "repair the NIfTI header; the study is used without its mask",
        )
    # FLIPS goes from none to all: of flips that fit alike, the one that turns least is meant.
    least = next(flip for flip in FLIPS if means[best] - means[flip] < BETTER_HU)
    return np.ascontiguousarray(np.flip(mask, least))


class Mask(NamedTuple):
    """Labels (z, y, x) beside `study.hu`, and what is told of them: problem codes and remarks."""

    labels: MaskArray
    codes: tuple[str, ...]
    remarks: tuple[str, ...]


def _places_mm(mask: MaskArray, study: Study) -> dict[int, NDArray[np.float64]]:
    """Highest, median and lowest z (3,) in mm of each of C1..C7 that the mask holds."""
    places: dict[int, NDArray[np.float64]] = {}
    counts = np.stack([np.bincount(plane.ravel(), minlength=MOST_LABEL + 1) for plane in mask])
    for label in range(1, SPINE_LABEL_COUNT + 1):
        area = counts[:, label]
        if area.any():
            shown = np.flatnonzero(area)
            middle = np.searchsorted(np.cumsum(area), area.sum() / 2)
            places[label] = study.z_mm[[shown[0], middle, shown[-1]]]
    return places


def check_order(mask: MaskArray, study: Study) -> tuple[str, ...]:
    """Prove that C1..C7 follow each other from the head down, each as tall as a vertebra may be.

    Returns:
        The levels that are missing between two others.

    Raises:
        StudyError: a level lies above the one before it, or is too tall; names it.
    """
    places = _places_mm(mask, study)
    present = sorted(places)
    swapped = [
        (upper, lower) for upper, lower in pairwise(present) if places[lower][1] > places[upper][1]
    ]
    name = {label: LEVELS[label - 1] for label in present}
    if swapped and len(swapped) == len(present) - 1:
        problem = f"its mask is upside down: {name[present[-1]]} lies above {name[present[0]]}"
    elif swapped:
        said = ", ".join(f"{name[lower]} lies above {name[upper]}" for upper, lower in swapped)
        problem = f"its mask is wrongly numbered: {said}"
    else:
        tall = {k: float(at[0] - at[2]) for k, at in places.items()}
        worst = max(tall, key=lambda k: tall[k])
        if tall[worst] <= MOST_EXTENT_MM:
            inner = range(present[0], present[-1])
            return tuple(LEVELS[k - 1] for k in inner if k not in places)
        problem = f"its mask's {name[worst]} is {tall[worst]:.0f} mm tall, which no vertebra is"
    raise StudyError(study.study_uid, problem, "number its labels 1 to 7 from the head down")


def _whole_labels(values: NDArray[Any]) -> MaskArray:
    """Labels 0..19 of a mask's numbers; axes of length 1 after the third are left out.

    Raises:
        ValueError: other numbers, or other axes.
    """
    if values.ndim < 3 or values.size != np.prod(values.shape[:3]):
        raise ValueError(f"it has shape {values.shape}, not three axes")
    whole = (values >= 0) & (values <= MOST_LABEL)
    if not np.issubdtype(values.dtype, np.integer):
        whole &= values == np.rint(values)
    if not whole.all():
        raise ValueError(f"it holds {values[~whole][0]}, labels are 0..{MOST_LABEL}")
    return values.reshape(values.shape[:3]).astype(np.uint8)


def _told(cuts: list[Cut], missing: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Codes and remarks of what was cut and of what is missing."""
    said: dict[str, str] = {}
    if cuts:
        parts = ", ".join(f"{cut.level} {cut.beyond_mm:.0f} mm" for cut in cuts)
        said[MASK_STRAYS] = f"voxels of its mask far from their vertebra were left out: {parts}"
    if missing:
        said[MASK_GAP] = f"its mask leaves out {', '.join(missing)} between other levels"
    return tuple(said), tuple(said.values())


def check_mask(path: Path, study: Study) -> Mask:
    """Read one mask, lay it over its study through the NIfTI affine and cut it to its vertebrae.

    Args:
        path: NIfTI file in any orientation.
        study: the study it belongs to.

    Returns:
        Labels of the shape of `study.hu`, and what is told of them.

    Raises:
        StudyError: unreadable, with other labels than 0..19, without C1..C7, on no bone in any
            flip, with a level in two places, or with levels that do not run from the head down.
    """
    import nibabel

    try:
        image = nibabel.load(path)
        labels = _whole_labels(np.asarray(image.dataobj))  # type: ignore[attr-defined]
        affine = np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
        placed = place_mask(labels, affine, study)
    except Exception as error:
        problem = f"its mask {path.name} cannot be read: {type(error).__name__}: {error}"
        raise StudyError(study.study_uid, problem) from error
    cuts = keep_vertebrae(placed, study)
    mask = settle_on_bone(placed, study)
    return Mask(mask, *_told(cuts, check_order(mask, study)))


def read_mask(path: Path, study: Study) -> MaskArray:
    """Labels (z, y, x) of `check_mask`, for those who do not tell what is wrong with them.

    Raises:
        StudyError: as `check_mask`.
    """
    return check_mask(path, study).labels

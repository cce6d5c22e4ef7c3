"""Which voxels of a label are its vertebra, and which are strays of the annotator's brush.

In: labels (z, y, x) on a study's grid. Out: the same with every label cut, in place, to its largest
connected piece and what lies beside it, and a `Cut` for each label that reached far. Example::

    from cspine_kit.data.masks import read_mask

    mask = read_mask(competition.segmentation(uid), study)
    mask[0, 0, 0] = 4                     # a voxel of C4 in the air above the head
    keep_vertebrae(mask, study)           # [Cut(level='C4', voxels=1, beyond_mm=...)]

Of 60 masks of the competition 23 hold labels more than 5 mm beyond their vertebra, up to 166 mm.
A vertebra may be in several pieces, though: broken, or drawn with slices left out. So pieces
beside the largest stay, unless they are crumbs.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.errors import StudyError
from cspine_kit.data.reader.dicom import Study

MASK_STRAYS = "mask_strays"
"""Problem code of a mask from which far voxels were cut."""

PIECE_SHARE = 0.02
"""A piece of at least this share of the largest may be part of the vertebra."""
BESIDE_MM = 8.0
"""As far beyond the largest piece's box a part of the same vertebra lies at most."""
TWIN_SHARE = 0.5
"""A far piece of this share of the largest may be the vertebra as well as that one."""
TOLD_MM = 5.0
"""Crumbs that reach less far beyond what is kept are cut without a word."""


class Cut(NamedTuple):
    """What was cut of one label, and how far it reached beyond what is kept."""

    level: str
    voxels: int
    beyond_mm: float


def _dense(own: NDArray[np.bool_], axis: int) -> NDArray[np.intp]:
    """Planes along an axis that hold something, and one empty plane of each gap between them."""
    at = np.flatnonzero(own.any(axis=tuple(k for k in range(3) if k != axis)))
    gaps = [a + 1 for a, b in pairwise(at) if b > a + 1]
    return np.sort(np.concatenate([at, np.array(gaps, dtype=np.intp)]))


def _pieces(
    own: NDArray[np.bool_],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], tuple[NDArray[np.intp], ...]]:
    """Pieces of one label, connected over faces, edges and corners.

    Returns:
        Piece of each voxel of the planes looked at, (z, y, x); the size of each piece (n,), the
        first for what is none; its lowest and highest index in `own` (n, 3, 2); those planes.
    """
    from scipy import ndimage

    # Far strays make the box large and mostly empty; empty planes are left out.
    planes = tuple(_dense(own, axis) for axis in range(3))
    piece, count = ndimage.label(own[np.ix_(*planes)], np.ones((3, 3, 3), bool))
    size = np.bincount(piece.ravel(), minlength=count + 1)
    ends = np.zeros((count + 1, 3, 2), np.int64)
    for k, box in enumerate(ndimage.find_objects(piece), start=1):
        ends[k] = [(at[s.start], at[s.stop - 1]) for at, s in zip(planes, box, strict=True)]
    return piece, size, ends, planes


def _beyond_mm(boxes: NDArray[np.float64], kept: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far boxes (n, 3, 2) lie beyond a box (3, 2): 0 inside, the largest of three axes."""
    over = np.maximum(kept[:, 0] - boxes[:, :, 1], boxes[:, :, 0] - kept[:, 1])
    return np.asarray(np.maximum(over, 0.0).max(axis=1))


def keep_vertebrae(mask: NDArray[np.uint8], study: Study) -> list[Cut]:
    """Cut every label of a mask (z, y, x) to its vertebra, in place.

    Returns:
        The cervical labels whose voxels lay more than `TOLD_MM` beyond what is kept.

    Raises:
        StudyError: two pieces of a cervical label, alike in size and apart, may be it.
    """
    from scipy import ndimage

    cuts: list[Cut] = []
    down_mm = study.z_mm[0] - study.z_mm
    for label, box in enumerate(ndimage.find_objects(mask), start=1):
        if box is None:
            continue
        own = mask[box] == label
        piece, size, ends, planes = _pieces(own)
        size[0] = 0
        largest = int(size.argmax())
        if size[largest] == size.sum():
            continue
        mm = np.empty(ends.shape)
        mm[:, 0] = down_mm[ends[:, 0] + box[0].start]
        mm[:, 1:] = ends[:, 1:] * np.array(study.spacing_mm[1:])[:, None]
        beyond = _beyond_mm(mm, mm[largest])
        keep = (size >= PIECE_SHARE * size[largest]) & (beyond <= BESIDE_MM)
        keep[0] = True
        twins = np.flatnonzero(~keep & (size >= TWIN_SHARE * size[largest]))
        if len(twins) and label <= len(LEVELS):
            raise StudyError(
                study.study_uid,
                f"its mask shows {LEVELS[label - 1]} in two places, {beyond[twins].max():.0f} mm "
                "apart",
                "remove the wrong one",
            )
        mask[box][np.ix_(*planes)] *= keep[piece]
        farthest = float(beyond[~keep].max(initial=0.0))
        if farthest > TOLD_MM and label <= len(LEVELS):
            cuts.append(Cut(LEVELS[label - 1], int(size[~keep].sum()), farthest))
    return cuts

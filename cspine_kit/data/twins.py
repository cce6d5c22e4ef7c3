"""Studies that must share a fold: the same patient, or nearly the same volume.

In: a small thumbnail and the PatientID of every study. Out: group, and why, by study. Example::

    >>> thumbnail = make_thumbnail(study, lambda z: study.hu[z])
    >>> thumbnails = {"1.2.3": thumbnail, "1.2.4": thumbnail}
    >>> group_studies({"1.2.3": "", "1.2.4": ""}, thumbnails)["reason"].tolist()
    ['near-duplicate (1.000) of 1.2.4', 'near-duplicate (1.000) of 1.2.3']

A copy under another UID, re-encoded, re-windowed, noisier or some slices shorter, would put a
fold's validation among its training rows. Thumbnails are compared by the correlation of their
local detail, which other necks do not share, at several offsets along z. Copies that were moved
inside the frame, or along z by less than a plane, are not looked for.
"""

import base64
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Mapping

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cspine_kit.core.execution import with_bar
from cspine_kit.data.reader.pixels.values import HuArray
from cspine_kit.data.reader.problems import FileError
from cspine_kit.data.reader.scans.geometry import Geometry
from cspine_kit.data.volumes.neck import Survey

log = logging.getLogger(__name__)

Thumbnail = NDArray[np.uint8]

DEPTH, SIDE = 32, 24
"""A thumbnail is 32 planes, 5 mm apart from the head down, of 24 x 24 cells over the frame."""
LOW_HU, HIGH_HU = -200, 1000
DETAIL_CELLS = 1.0
"""Sigma of what is subtracted: differences between neighboring cells remain."""
OFFSETS, LEAST_PLANES = 5, 12
"""Copies may start up to 20 mm apart and must share 60 mm."""
TWIN = 0.93
"""Correlation from which two studies are the same volume (measured in docs/data.md)."""
MOST_PER_PATIENT = 20
"""A PatientID of more studies is what some de-identification puts everywhere."""
NO_NAMES = {
    *("", "0", "anon", "anonymous", "anonymised", "anonymized"),
    *("deidentified", "na", "none", "removed", "unknown"),
}
"""PatientIDs, letters and digits alone, that name nobody."""


def make_thumbnail(geometry: Geometry, frame: Callable[[int], HuArray]) -> Thumbnail | None:
    """Coarse grey cells (DEPTH, SIDE, SIDE) of the whole frame; zero where the scan has ended.

    Args:
        geometry: of the study.
        frame: HU of one slice; a slice for which it raises FileError is left out.

    Returns:
        The thumbnail, or None where not one slice can be decoded.
    """
    survey, planes = Survey(geometry), dict[int, HuArray]()
    for z in survey.slices:
        try:
            planes[z] = survey.coarse(frame(z))
        except FileError:
            continue
    if not planes:
        return None
    seen = np.array(list(planes))
    cells = np.zeros((DEPTH, SIDE, SIDE), np.uint8)
    for k, wanted in enumerate(survey.nearest[:DEPTH]):
        plane = planes[int(seen[np.abs(seen - wanted).argmin()])].clip(LOW_HU, HIGH_HU)
        grey = (plane - LOW_HU).astype(np.float32) * (255 / (HIGH_HU - LOW_HU))
        cells[k] = np.rint(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    return cells


def pack(thumbnail: Thumbnail | None) -> str | None:
    """A thumbnail as text for JSON."""
    if thumbnail is None:
        return None
    return base64.b64encode(zlib.compress(thumbnail.tobytes())).decode()


def unpack(text: str | None) -> Thumbnail | None:
    """The inverse of `pack`."""
    if text is None:
        return None
    plain = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return plain.reshape(DEPTH, SIDE, SIDE)


def _detail(thumbnail: Thumbnail) -> NDArray[np.float32]:
    """Differences from the local mean, plane by plane."""
    planes = thumbnail.astype(np.float32)
    return np.stack([p - cv2.GaussianBlur(p, (0, 0), DETAIL_CELLS) for p in planes])


def similarities(thumbnails: list[Thumbnail]) -> NDArray[np.float32]:
    """Correlation of detail between any two thumbnails at their best offset (n, n), 0..1.

    A few large matrix products: two thousand studies take seconds.
    """
    detail = np.stack([_detail(t) for t in thumbnails]).reshape(len(thumbnails), DEPTH, -1)
    energy = np.square(detail).sum(axis=2)
    filled = (energy > 0).astype(np.float32)
    best = np.zeros((len(thumbnails), len(thumbnails)), np.float32)
    for offset in with_bar(range(OFFSETS), "near-duplicates", unit="offset"):
        lower, upper = slice(offset, DEPTH), slice(0, DEPTH - offset)
        product = (
            detail[:, lower].reshape(len(detail), -1) @ detail[:, upper].reshape(len(detail), -1).T
        )
        # Norms over the planes that both have.
        norm = (energy[:, lower] @ filled[:, upper].T) * (filled[:, lower] @ energy[:, upper].T)
        shared = filled[:, lower] @ filled[:, upper].T
        found = np.where(shared >= LEAST_PLANES, product / np.sqrt(norm + 1e-6), 0.0)
        best = np.maximum(best, np.maximum(found, found.T))
    np.fill_diagonal(best, 0.0)
    return best


def named_patients(patients: Mapping[str, str]) -> dict[str, str]:
    """PatientIDs that tell patients apart, by study_uid; what de-identification left is dropped.

    A placeholder, an ID of more than `MOST_PER_PATIENT` studies and one that all studies bear name
    nobody; the last two are logged.
    """
    shared = Counter(patients.values())
    nobody = {
        patient
        for patient in shared
        if "".join(filter(str.isalnum, patient)).casefold() in NO_NAMES
    }
    for patient, count in shared.items():
        if patient not in nobody and (count > MOST_PER_PATIENT or 1 < count == len(patients)):
            nobody.add(patient)
            log.warning(
                "PatientID %r stands on %d of %d studies: taken for what de-identification left, "
                "these studies may part in folds; if it is one patient, give them one group in "
                "folds.csv",
                patient,
                count,
                len(patients),
            )
    return {uid: patient for uid, patient in patients.items() if patient not in nobody}


def group_studies(
    patients: Mapping[str, str], thumbnails: Mapping[str, Thumbnail | None]
) -> pd.DataFrame:
    """Put studies of one patient, and near-duplicate volumes, into one group.

    Args:
        patients: PatientID by study_uid, "" where there is none.
        thumbnails: by study_uid, None where there is none.

    Returns:
        study_uid, group (the first study_uid of its members), reason ("" where a study is alone).
    """
    group = {uid: uid for uid in sorted(patients)}
    reasons: dict[str, list[str]] = {uid: [] for uid in group}

    def join(one: str, other: str, reason: str) -> None:
        reasons[one].append(f"{reason} {other}")
        reasons[other].append(f"{reason} {one}")
        first, second = sorted((group[one], group[other]))
        for uid, name in group.items():
            if name == second:
                group[uid] = first

    first_of: dict[str, str] = {}
    for uid, patient in sorted(named_patients(patients).items()):
        if patient in first_of:
            join(first_of[patient], uid, "same PatientID as")
        first_of.setdefault(patient, uid)
    known = {uid: t for uid in group if (t := thumbnails.get(uid)) is not None}
    if known:
        uids, alike = list(known), similarities(list(known.values()))
        for i, j in np.argwhere(np.triu(alike >= TWIN)):
            join(uids[i], uids[j], f"near-duplicate ({alike[i, j]:.3f}) of")
    return pd.DataFrame(
        {
            "study_uid": list(group),
            "group": list(group.values()),
            "reason": ["; ".join(reasons[uid]) for uid in group],
        }
    )

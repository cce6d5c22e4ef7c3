"""What a study's files hold, and what is wrong with them.

In: a folder of DICOM files, a .zip of them or a NIfTI file. Out: a JSON-ready dict. Example::

    found, study = inspect_study(folder)
    found["problems"], found["hu_sha256"]
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cspine_kit.data.reader.dicom import Study, headers_of, list_files, read_study, uid_of
from cspine_kit.data.reader.headers.files import opened
from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.nifti import nifti_of
from cspine_kit.data.reader.problems import PROBLEMS


def _series(headers: list[Header]) -> list[dict[str, Any]]:
    """Every series of a folder, whether kept or not."""
    groups: dict[str, list[Header]] = {}
    for header in headers:
        groups.setdefault(header.series_uid, []).append(header)
    return [
        {
            "series_uid": uid,
            "files": len(group),
            "shapes": sorted({f"{h.rows}x{h.cols}" for h in group}),
            "image_type": group[0].image_type,
            "orientation": list(group[0].orientation or ()),
        }
        for uid, group in groups.items()
    ]


def _hu_sha256(study: Study) -> str:
    return hashlib.sha256(np.ascontiguousarray(study.hu).data).hexdigest()


def inspect_study(folder: Path, study_uid: str | None = None) -> tuple[dict[str, Any], Study]:
    """Read a study and describe it.

    Args:
        folder: the study's files, a .zip of them, or a NIfTI file.
        study_uid: its name; that of the folder or of the NIfTI file where it is None.

    Returns:
        JSON-ready facts, and the study itself. `hu_sha256` is the SHA-256 of the int16 volume in C
        order, little endian; `z_mm` is z of ImagePositionPatient of the most cranial and the last
        slice; `left_out` says what of the folder's slices was not taken, by scan.

    Raises:
        StudyError: nothing can be read.
    """
    name = study_uid or uid_of(folder)
    with opened(folder) as place:
        files = 1 if nifti_of(place) else len(list_files(place))
        headers, errors = headers_of(place)
        study = read_study(place, name)
    uids = Counter(h.study_uid for h in headers)
    lost = {error.file: f"{error.code}: {error.detail}" for error in errors}
    facts = {
        "study_uid": name,
        "study_uids_in_files": sorted(uids),
        "files": files,
        "slices": len(study.hu),
        "rows": study.shape[0],
        "cols": study.shape[1],
        "spacing_mm": dict(zip("zyx", map(float, study.spacing_mm), strict=True)),
        "z_mm": {
            name: float(study.patient_mm(study.z_mm[k])[2])
            for name, k in (("first", 0), ("last", -1))
        },
        "reversed": study.reversed,
        "irregular": study.irregular,
        "transfer_syntax": study.transfer_syntax,
        "transfer_syntaxes": dict(Counter(h.syntax for h in headers)),
        "series": _series(headers),
        "hu_range": [int(study.hu.min()), int(study.hu.max())],
        "hu_sha256": _hu_sha256(study),
        "first_file": study.files[0],
        "last_file": study.files[-1],
        "left_out": list(study.left_out),
        "problems": {code: str(PROBLEMS[code]) for code in study.problems},
        "unusable_files": lost,
    }
    return facts, study

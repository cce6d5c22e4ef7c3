"""The source series as DICOM objects refer to it: headers without pixels, gaps filled.

In: a folder, its `Geometry`. Out: pydicom datasets in slice order. Example::

    from cspine_kit.data.reader.dicom import read_geometry

    series = source_series(folder, read_geometry(folder))
    len(series), series[0].StudyInstanceUID

Public collections strip attributes that the standard requires of what stands beside a series. They
are left empty where the standard allows it; a frame of reference gets an id made from the series'.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from cspine_kit.core.errors import ArtifactError, StudyError
from cspine_kit.data.reader.headers.files import opened
from cspine_kit.data.reader.scans.geometry import Geometry

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
"""Type 2: must be there, may be empty."""


def require_highdicom() -> None:
    """Refuse to write DICOM objects without the library for it.

    Raises:
        ArtifactError: highdicom is not installed.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise ArtifactError(
            "DICOM objects need highdicom, which is not installed; pip install 'cspine-kit[dicom]'"
        ) from error


def derived_uid(*parts: str) -> str:
    """A DICOM UID that the same parts always give (PS3.5 annex B.2: 2.25 and a 128-bit number)."""
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix="2.25.", entropy_srcs=list(parts)))


def source_series(folder: Path, geometry: Geometry) -> "list[Dataset]":
    """Headers of the slices of a study, in slice order.

    Raises:
        StudyError: a file holds several frames: whoever refers to it must name them.
    """
    import pydicom

    files = [header.file for header in geometry.headers]
    if geometry.source is not None or any(h.frame is not None for h in geometry.headers):
        raise StudyError(
            geometry.study_uid,
            "its slices are not files of their own (several frames in one, or cut from another "
            "plane), so that no DICOM object can stand beside them",
            "export single axial slices",
        )
    with opened(folder) as place:
        series: list[Dataset] = [
            pydicom.dcmread(place / file, stop_before_pixels=True, force=True) for file in files
        ]
    for one in series:
        for name in EMPTY:
            if name not in one:
                setattr(one, name, "")
        if not one.get("Modality"):
            one.Modality = "CT"  # the reader took it for one
        if not one.get("FrameOfReferenceUID"):
            one.FrameOfReferenceUID = derived_uid(str(one.SeriesInstanceUID), "frame of reference")
    return series

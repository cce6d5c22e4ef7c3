"""Which files of a folder may be slices of a CT scan, by what they say about themselves.

In: headers. Out: those that remain. Example::

    from cspine_kit.data.reader.headers.files import read_headers

    headers, errors = read_headers(folder)
    slices = ct_slices(uid, headers, set())

An absent tag is never evidence: the competition's files carry neither Modality nor ImageType.
"""

from collections import Counter
from functools import lru_cache

from cspine_kit.core.errors import StudyError
from cspine_kit.data.reader.headers.header import Header

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
}
"""CT, Enhanced CT, Legacy Converted Enhanced CT Image Storage (PS3.4 B.5)."""
OTHER_CLASSES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{part}"
    for part in ("1", "3", "4", "6", "12", "13", "14", "20", "30", "77", "128", "130", "481")
)
"""X-ray, ultrasound, MR, angiography, tomosynthesis, nuclear medicine, visible light, PET, RT."""
OTHER_MODALITIES = {
    *("MR", "PT", "NM", "US", "CR", "DX", "DR", "MG", "XA", "RF", "IO", "PX", "BMD", "BI", "ES"),
    *("XC", "SM", "GM", "OP", "OPT", "IVUS", "IVOCT", "TG", "DG", "LS", "RTIMAGE", "RTDOSE"),
    *("RTPLAN", "RTSTRUCT", "SR", "PR", "KO", "SEG", "REG", "DOC", "ECG", "OCT", "SC", "OT"),
}
"""Defined terms of Modality (PS3.3 C.7.3.1.1.1) that are no CT."""
NO_EVIDENCE = {"SC", "OT"}
"""Modalities that tell only that the files were converted."""
OTHER_VALUES = {
    *("MGML", "BQML", "Z_EFF", "ZEFF", "ED", "EDW", "PCT", "OD", "CNTS", "CPS", "GML", "PROPCPS"),
    *("PROPCNTS", "ML/MIN/ML", "MG/ML", "SUV", "GY"),
}
"""RescaleTypes (PS3.3 C.11.1.1.2) and units that are no Hounsfield units."""
MAP_WORDS = {
    *("IODINE", "ZEFF", "URIC", "CBF", "CBV", "MTT", "TTP", "TMAX", "PERFUSION", "SCREENSHOT"),
}
MAP_PHRASES = (
    *("EFFECTIVE_Z", "EFF_Z", "Z_EFF", "ELECTRON_DENSITY", "FAT_FRACTION", "RHO_Z", "PROTOCOL"),
    *("SCREEN SAVE", "SCREEN_SAVE", "DOSE_INFO", "DOSE INFO", "DOSE REPORT"),
)
"""Words and parts of ImageType that tell of maps and pictures instead of slices."""
SLAB_WORDS = {"MIP", "MINIP", "MNIP", "AVERAGE", "AVG", "PROJECTION IMAGE", "MAX_IP", "MIN_IP"}
SCOUT_WORDS = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM")


def no_ct_because(header: Header) -> str:
    """What in a header says that this is no CT slice in Hounsfield units; "" where nothing does."""
    return _no_ct(header.sop_class, header.modality, header.rescale_type, header.image_type)


@lru_cache(maxsize=64)
def _no_ct(sop_class: str, modality: str, rescale_type: str, image_type: str) -> str:
    """`no_ct_because`, asked once for all files that say the same."""
    other_class = sop_class.startswith(tuple(f"{c}." for c in OTHER_CLASSES)) or (
        sop_class in OTHER_CLASSES
    )
    if other_class and sop_class not in CT_CLASSES:
        return f"its SOP class is {sop_class}, Modality {modality or 'absent'}"
    if modality in OTHER_MODALITIES - NO_EVIDENCE and sop_class not in CT_CLASSES:
        return f"Modality is {modality}"
    if rescale_type in OTHER_VALUES:
        return f"RescaleType is {rescale_type}"
    upper = image_type.upper()
    words = set(upper.replace("\\", " ").replace("_", " ").split())
    map_like = not MAP_WORDS.isdisjoint(words) or any(part in upper for part in MAP_PHRASES)
    return f"ImageType is {image_type}" if map_like else ""


def is_scout(header: Header) -> bool:
    """True where ImageType calls it a localizer."""
    image_type = header.image_type.upper()
    return any(word in image_type for word in SCOUT_WORDS)


def is_projection(header: Header) -> bool:
    """True where ImageType tells of slabs of greatest, least or average intensity."""
    return not SLAB_WORDS.isdisjoint(header.image_type.upper().split("\\"))


def _bare(header: Header) -> bool:
    """True where a file says nothing at all about its place."""
    return header.position_mm is None and header.orientation is None and header.spacing_mm is None


def _look(header: Header) -> tuple[object, ...]:
    """What slices of one scan share besides their place."""
    rescaled = header.slope == header.slope
    kind = header.image_type, header.sop_class, header.bits_allocated, header.photometric
    return (*kind, header.rows, header.cols, rescaled)


def ct_slices(study_uid: str, headers: list[Header], problems: set[str]) -> list[Header]:
    """Headers that may be slices: no other modality, no map, no screen among true slices.

    Raises:
        StudyError: every file says that it is no CT.
    """
    reasons = [no_ct_because(header) for header in headers]
    kept = [header for header, reason in zip(headers, reasons, strict=True) if not reason]
    if not kept:
        reason, count = Counter(reasons).most_common(1)[0]
        raise StudyError(
            study_uid,
            f"it is no CT in Hounsfield units: {reason} in {count} of {len(headers)} files",
            "give the CT series of the examination",
        )
    if len(kept) < len(headers):
        problems.add("other_modality")
    if any(h.modality in OTHER_MODALITIES - NO_EVIDENCE for h in kept):
        problems.add("modality_conflict")
    placed = {_look(h) for h in kept if not _bare(h)}
    if placed:
        lost = [h for h in kept if _bare(h) and _look(h) not in placed]
        if lost:
            problems.add("no_geometry")
            kept = [h for h in kept if not (_bare(h) and _look(h) not in placed)]
    return kept

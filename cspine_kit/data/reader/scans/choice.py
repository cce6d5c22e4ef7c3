"""Which scan of a folder is the one to read.

In: headers of slices. Out: one scan, whole, and what is left out. Example::

    from cspine_kit.data.reader.headers.files import read_headers

    headers, errors = read_headers(folder)
    series, orientation, others = choose_scan(uid, headers, set())
"""

import math

from cspine_kit.core.errors import StudyError
from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.scans.find import (
    AXIAL,
    STACK_SLICES,
    Orientation,
    Scan,
    by_number,
    find_scans,
    modal,
    normal_of,
    when,
)
from cspine_kit.data.reader.scans.kinds import is_projection, is_scout

AXIAL_COSINE = 0.7
"""A series is axial where its normal lies within 45 degrees of the table axis."""
ENOUGH_COVER = 0.9
"""Scans that cover this share of what the longest covers compete by thickness."""
THINNER = 1.2
"""Steps count as different from this ratio on."""


def _rank(scan: Scan, study_uid: str) -> tuple[object, ...]:
    """Sort key among scans that cover enough: the one to read comes first."""
    header, step = scan.headers[0], scan.step_mm
    return (
        header.study_uid != study_uid,
        header.modality not in ("", "CT"),
        is_projection(header),
        0 if math.isnan(step) else round(math.log(max(step, 0.05)) / math.log(THINNER)),
        header.image_type.upper().startswith("DERIVED"),
        -len(scan.headers),
        *when(header),
        by_number(min(scan.headers, key=by_number)),
    )


def choose_scan(
    study_uid: str, headers: list[Header], problems: set[str]
) -> tuple[list[Header], Orientation, list[Scan]]:
    """The thinnest axial scan among those that cover most, its orientation, and the other scans.

    Where none is axial, a sagittal or coronal stack is taken.

    Raises:
        StudyError: there is none of these.
    """
    found = find_scans(headers)
    stacks = [
        s
        for s in found
        if not is_scout(s.headers[0]) or (len(s.headers) >= STACK_SLICES and len(s.gaps))
    ]
    axial = [s for s in stacks if abs(_orientation(s)[1][2]) >= AXIAL_COSINE]
    plain = [s for s in axial if not is_scout(s.headers[0])]
    axial = plain or axial
    if not axial:
        problems.add("resliced")
        axial = [s for s in stacks if len(s.gaps) >= STACK_SLICES - 1]
    if not axial:
        raise StudyError(
            study_uid,
            f"none of its {len(found)} series is axial, none a stack of {STACK_SLICES} slices",
            "give the axial series of the examination",
        )
    enough = ENOUGH_COVER * max(s.cover_mm for s in axial)
    best = min((s for s in axial if s.cover_mm >= enough), key=lambda scan: _rank(scan, study_uid))
    left_out = [s for s in found if s is not best]
    if any(is_scout(h) for s in left_out for h in s.headers):
        problems.add("localizer")
    if is_scout(best.headers[0]):
        problems.add("called_localizer")
    if is_projection(best.headers[0]):
        problems.add("projection")
    _note(best, [s for s in left_out if not is_scout(s.headers[0])], headers, problems)
    best_headers = sorted(best.headers, key=by_number)
    return best_headers, _orientation(best)[0], left_out


def _orientation(scan: Scan) -> tuple[Orientation, FloatArray]:
    told = [h.orientation for h in scan.headers if h.orientation is not None]
    orientation: Orientation = modal(told) if told else AXIAL
    return orientation, normal_of(orientation)


def _note(best: Scan, others: list[Scan], headers: list[Header], problems: set[str]) -> None:
    """Codes that say what was chosen from what."""
    if any(h.orientation is None for h in best.headers):
        problems.add("assumed_axial")
    own = {h.series_uid for h in best.headers}
    each_its_own = len({h.series_uid for h in headers}) > max(2, len(headers) // 2)
    for scan in others:
        same = each_its_own or not own.isdisjoint({h.series_uid for h in scan.headers})
        problems.add("several_scans" if same else "several_series")
    if best.pieces > 1:
        problems.add("joined_series")
    for named in ({h.patient_id for h in headers}, {h.study_uid for h in headers}):
        if 1 < len(named - {""}) <= max(2, len(headers) // 2):
            problems.add("several_patients")

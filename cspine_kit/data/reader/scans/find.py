"""Which slices belong to one scan.

In: headers of slices. Out: scans, each whole. Example::

    from cspine_kit.data.reader.headers.files import read_headers

    for scan in find_scans(read_headers(folder)[0]):
        scan.describe(), scan.cover_mm, scan.step_mm

A series may hold several acquisitions or reconstructions of the same place, and a scan may lie in
several series. So files are first split by everything that differs between scans, as far as the
parts lie over each other, then parts that continue or complete each other are joined again.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TypeVar

import numpy as np

from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.headers.header import RUN, SCAN, Header

Value = TypeVar("Value")
Orientation = tuple[float, ...]

AXIAL: Orientation = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAME_DIRECTION = 0.03
"""Direction cosines of one series differ less: about two degrees."""
SAME_POSITION_MM = 0.01
REACH_MM = 10.0
"""A slice of unknown thickness stands for this much of the scan at most."""
ALIKE = 1.3
"""Steps of parts that are joined differ by less than this ratio."""
LEAST_GAP = 0.6
"""Two stacks of the same step that lie between each other come nearer than half a step."""
STACK_SLICES = 10
RESTED_S = 5.0
"""A scanner that starts again rests for longer."""


@dataclass(frozen=True)
class Scan:
    """Slices that belong together, with their positions along the normal (NaN where unknown).

    `pieces` counts the parts that were joined.
    """

    headers: list[Header]
    z_mm: FloatArray
    pieces: int = 1

    @cached_property
    def step_mm(self) -> float:
        """Median distance of neighbors, else what the files say, else NaN."""
        gaps = self.gaps
        if len(gaps) >= 2:
            return float(np.median(gaps))
        told = [h.step_mm for h in self.headers if h.step_mm > 0]
        told = told or [h.thickness_mm for h in self.headers if h.thickness_mm > 0]
        return float(np.median(told)) if told else float("nan")

    def describe(self) -> str:
        """One line that tells it from others."""
        header = self.headers[0]
        told = [header.image_type, header.series_uid and f"series {header.series_uid}"]
        told += [f"{name} {text}" for name, text in zip(SCAN, header.scan, strict=True) if text]
        step = f"{self.step_mm:.2f} mm apart, " if self.step_mm > 0 else ""
        return f"{len(self.headers)} slices, {step}" + ", ".join(filter(None, told))

    @cached_property
    def gaps(self) -> FloatArray:
        """Distances of neighboring positions, ascending places; equal positions count once."""
        known = np.sort(self.z_mm[np.isfinite(self.z_mm)])
        gaps = np.diff(known)
        return gaps[gaps > SAME_POSITION_MM]

    @property
    def cover_mm(self) -> float:
        """Length that slices cover; each reaches three thicknesses, or `REACH_MM`, at most."""
        told = [h.thickness_mm for h in self.headers if h.thickness_mm > 0]
        reach = 3 * float(np.median(told)) if told else REACH_MM
        step = self.step_mm
        if math.isnan(step):
            return float(len(self.headers))
        longest = max(reach, min(step, REACH_MM))
        return float(np.minimum(self.gaps, longest).sum()) + min(step, reach)


def modal(values: Iterable[Value]) -> Value:
    """The most frequent value; the first seen wins a tie."""
    return Counter(values).most_common(1)[0][0]


@lru_cache(maxsize=256)
def normal_of(orientation: Orientation) -> FloatArray:
    """Unit normal (3,) of a slice, turned to point to the head; read-only."""
    normal = np.cross(orientation[:3], orientation[3:])
    unit: FloatArray = normal / np.linalg.norm(normal) * (1.0 if normal[2] >= 0 else -1.0)
    unit.flags.writeable = False
    return unit


def by_number(header: Header) -> tuple[float, str]:
    """Sort key: file number, then name; files without a number last."""
    return (math.inf if math.isnan(header.number) else header.number, header.file)


def directions(headers: list[Header]) -> dict[Orientation | None, Orientation]:
    """By orientation as it stands in a header, that of all which lie within `SAME_DIRECTION`."""
    counts = Counter(h.orientation for h in headers)
    found: dict[Orientation | None, Orientation] = {}
    leaders: list[Orientation] = []
    for orientation, _ in counts.most_common():
        own = orientation or (leaders[0] if leaders else AXIAL)
        near = (way for way in leaders if np.abs(np.subtract(way, own)).max() < SAME_DIRECTION)
        leader = next(near, None)
        if leader is None:
            leaders.append(own)
        found[orientation] = leader or own
    return found


def _along(headers: list[Header], normal: FloatArray) -> FloatArray:
    """Positions (n,) along the normal: from ImagePositionPatient, else SliceLocation; NaN."""
    told = [h.position_mm is not None for h in headers]
    positions = np.array([h.position_mm or (math.nan,) * 3 for h in headers])
    z = positions @ normal
    if sum(told) > 1 and np.ptp(z[told]) > SAME_POSITION_MM:
        return z
    return np.array([h.location_mm for h in headers])


def _parts(headers: list[Header], key: Callable[[Header], Hashable]) -> list[list[Header]]:
    """Headers by key, in the order in which keys are met."""
    found: dict[Hashable, list[Header]] = {}
    for header in headers:
        found.setdefault(key(header), []).append(header)
    return list(found.values())


def _telling(values: Sequence[str]) -> bool:
    """True where values part files: they differ, but nearly every file has no value of its own."""
    return 1 < len(set(values)) <= max(2, len(values) // 2)


def _by_tags(
    headers: list[Header], turns: dict[Orientation | None, Orientation]
) -> list[list[Header]]:
    """Split by every attribute that differs between scans and not inside one."""
    told = [[h.series_uid for h in headers], [h.study_uid for h in headers]]
    told += map(list, zip(*(h.scan for h in headers), strict=True))
    keys = list(zip(*filter(_telling, told), strict=True)) or [()] * len(headers)
    found: dict[Hashable, list[Header]] = {}
    for h, key in zip(headers, keys, strict=True):
        kind = h.patient_id, h.image_type, h.sop_class, h.rescale_type, turns[h.orientation]
        found.setdefault((kind, key), []).append(h)
    return list(found.values())


def _seconds(text: str) -> float:
    """A DICOM time in seconds of the day; NaN where there is none."""
    try:
        return int(text[:2]) * 3600 + int(text[2:4] or 0) * 60 + float(text[4:] or 0)
    except ValueError:
        return math.nan


def _by_pauses(headers: list[Header], which: int) -> list[list[Header]]:
    """Split where the clock stood still for longest: at least `RESTED_S`, ten times the usual."""
    times = np.array([_seconds(h.times[which]) for h in headers])
    if not np.isfinite(times).all():
        return [headers]
    order = np.argsort(times, kind="stable")
    waits = np.diff(times[order])
    if not len(waits) or waits.max() < max(RESTED_S, 10 * float(np.median(waits))):
        return [headers]
    start = times[order][int(waits.argmax()) + 1]
    return _parts(headers, lambda h: _seconds(h.times[which]) >= start)


def _by_runs(headers: list[Header], numbers: Callable[[Header], float]) -> list[list[Header]]:
    """Split where z, in the order of numbers, turns back to where it started."""
    if not all(math.isfinite(numbers(h)) for h in headers):
        return [headers]
    order = sorted(headers, key=numbers)
    z = _along(order, normal_of(order[0].orientation or AXIAL))
    steps = np.diff(z)
    if not len(steps) or not np.isfinite(steps).all():
        return [headers]
    back = np.flatnonzero(np.sign(steps) != np.sign(np.median(steps)))
    edges = [0, *(int(b) + 1 for b in back), len(order)]
    return [order[a:b] for a, b in pairwise(edges)]


def _by_place(header: Header) -> Hashable:
    """Frame, field and thickness of a slice."""
    x, y, _ = header.position_mm or (0.0, 0.0, 0.0)
    field = header.rows, header.cols, header.spacing_mm, round(x), round(y)
    return (*field, f"{header.thickness_mm:.2f}")


def _splitters() -> Iterator[Callable[[list[Header]], list[list[Header]]]]:
    yield lambda headers: _parts(headers, _by_place)
    for which in (0, 1):
        yield lambda headers, which=which: _by_pauses(headers, which)  # type: ignore[misc]
    for numbers in (lambda h: h.instance, lambda h: h.number):
        yield lambda headers, numbers=numbers: _by_runs(headers, numbers)  # type: ignore[misc]


def _lie_over_each_other(parts: list[FloatArray]) -> bool:
    """True where every two parts share more than half of the shorter one's length."""
    ends = sorted((float(np.nanmin(z)), float(np.nanmax(z))) for z in parts)
    for i, (low, high) in enumerate(ends):
        for other_low, other_high in ends[i + 1 :]:
            shared = min(high, other_high) - max(low, other_low)
            if shared <= 0.5 * min(high - low, other_high - other_low):
                return False
    return True


def _crowded(scan: Scan) -> bool:
    """True where a tenth of the slices come much nearer to their neighbors than the others."""
    known = np.sort(scan.z_mm[np.isfinite(scan.z_mm)])
    gaps = np.diff(known)
    if len(gaps) < 2:
        return False
    usual = float(np.quantile(gaps, 0.75))
    return bool((gaps < LEAST_GAP * usual).mean() > 0.1)


def _split(headers: list[Header], normal: FloatArray) -> list[Scan]:
    """Scans of one part: split further while slices crowd and something tells them apart."""
    scan = Scan(headers, _along(headers, normal))
    if len(headers) < 2 * STACK_SLICES or not _crowded(scan):
        return [scan]
    for splitter in _splitters():
        parts = splitter(headers)
        if not 1 < len(parts) <= len(headers) // STACK_SLICES + 1:
            continue
        whole = [part for part in parts if len(part) >= STACK_SLICES]
        z = [_along(part, normal) for part in whole]
        if len(whole) > 1 and not any(np.isnan(v).all() for v in z) and _lie_over_each_other(z):
            return [found for part in parts for found in _split(part, normal)]
    return [scan]


def _alike(one: Scan, other: Scan) -> bool:
    """True where nothing but its place tells a part of a scan from another."""
    a, b = one.headers[0], other.headers[0]
    people = ((a.patient_id, b.patient_id), (a.study_uid, b.study_uid), (a.modality, b.modality))
    apart = normal_of(a.orientation or AXIAL) - normal_of(b.orientation or AXIAL)
    return (
        all(x == y or not x or not y for x, y in people)
        and (a.scan[-1], a.rescale_type) == (b.scan[-1], b.rescale_type)
        and float(np.abs(apart).max()) < SAME_DIRECTION
    )


def _interleaved(both: Scan, one: Scan, other: Scan) -> bool:
    """True where every second slice of one scan lies in another series: together they touch."""
    told = [h.thickness_mm for h in both.headers]
    gaps = both.gaps
    return (
        min(len(one.headers), len(other.headers)) >= STACK_SLICES
        and len(gaps) == len(both.headers) - 1
        and float(np.ptp(gaps)) < 0.1 * both.step_mm
        and float(np.nanmax(told, initial=0.0)) <= 1.1 * both.step_mm
        and not np.isnan(told).any()
        and one.headers[0].scan[: len(RUN)] == other.headers[0].scan[: len(RUN)]
    )


def _joined(one: Scan, other: Scan) -> Scan | None:
    """Both as one scan where they continue or complete each other, else None."""
    if not _alike(one, other):
        return None
    z = np.concatenate([one.z_mm, other.z_mm])
    both = Scan(one.headers + other.headers, z, one.pieces + other.pieces)
    if np.isnan(z).any():
        known = np.isfinite(z)
        same_series = one.headers[0].series_uid == other.headers[0].series_uid
        return both if same_series and not known.any() else None
    smaller, larger = sorted((one, other), key=lambda s: len(s.headers))
    step = larger.step_mm
    steps_differ = len(smaller.gaps) > 2 and not 1 / ALIKE <= smaller.step_mm / step <= ALIKE
    if math.isnan(step) or steps_differ:
        return None
    if np.diff(np.sort(z)).min(initial=math.inf) < LEAST_GAP * step:
        return both if _interleaved(both, one, other) else None
    apart = max(other.z_mm.min() - one.z_mm.max(), one.z_mm.min() - other.z_mm.max())
    return both if apart <= 2 * step else None


def _ordinal(text: str) -> float:
    """A number or time as text, to sort by; absent ones last."""
    try:
        return float(text)
    except ValueError:
        return math.inf


def when(header: Header) -> tuple[float, ...]:
    """Series, acquisition, dates and times, to sort by."""
    told = dict(zip(SCAN, header.scan, strict=True))
    first = ("SeriesNumber", "SeriesDate", "SeriesTime", *RUN)
    return tuple(_ordinal(text) for text in (*(told[name] for name in first), *header.times))


def _join(scans: list[Scan]) -> list[Scan]:
    """Join until nothing fits any more, the longest first, each into the first that it fits."""
    count = 0
    while count != len(scans):
        count = len(scans)
        kept: list[Scan] = []
        for scan in sorted(scans, key=lambda s: (-len(s.headers), *when(s.headers[0]))):
            for k, other in enumerate(kept):
                both = _joined(other, scan)
                if both is not None:
                    kept[k] = both
                    break
            else:
                kept.append(scan)
        scans = kept
    return scans


def find_scans(headers: list[Header]) -> list[Scan]:
    """All scans of a folder, each whole."""
    turns = directions(headers)
    parts = _by_tags(headers, turns)
    scans = [s for part in parts for s in _split(part, normal_of(turns[part[0].orientation]))]
    return scans if len(scans) == 1 else _join(scans)

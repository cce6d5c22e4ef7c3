"""From stored values to Hounsfield units, and whether they can be any.

In: stored values, a `Header`, a `Meaning`. Out: int16 HU. Example::

    from cspine_kit.data.reader.pixels.decode import decode

    stored = decode(path, header)
    meaning, codes = judge([stored], header)
    hu, more = hounsfield(stored, header, meaning)

A header may be wrong about sign, offset and bits. In a CT air lies near -1000 and tissue near 0.
Where they do not, and another sign or a constant offset puts both into place, that is meant; where
nothing does, the study says so.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cspine_kit.data.reader.headers.header import Header
from cspine_kit.data.reader.pixels.record import Stored

HuArray = NDArray[np.int16]

AIR_HU = -1024
"""Value of padding outside the field of view: the lowest of a 12-bit CT."""
TISSUE_HU = (-900.0, 3000.0)
"""Values in between are no padding."""

OFFSETS = (0.0, -1024.0, 1024.0, -2048.0, 2048.0, -1000.0, -8192.0, 8192.0, -32768.0, 32768.0)
"""Offsets that a missing, doubled or inverted RescaleIntercept leaves behind."""
LEAST_SHARE, CLEAR_SHARE = 0.005, 0.02
"""Share of air and of tissue in a plausible CT, and in one believed after a repair."""
UNDER_SHARE, COMMON_SHARE = 0.05, 0.2
"""Most that may lie below air beside padding, and least that air and tissue make up together."""
LOWEST_PADDING_HU = -5000
OVERLAY_SHARE = 0.05
"""No overlay covers more of a frame; where more values need more bits, BitsStored is wrong."""
DENSE_HU, DENSE_SHARE = 700, 0.3
"""No more of a scan than this share is as dense as cortical bone or metal."""
AROUND_SHARE, MIDDLE_HU = 0.1, -985.0
"""Where so much of a frame is air, it surrounds the body, and half of it lies below: a scanner is
off by a few HU, an intercept of -1000 where -1024 was meant by 24."""
BELOW_HU, NOTHING = -200, 0.001
"""In any scan of a neck something, if only the windpipe, lies below."""
SAMPLED = 4
"""Every fourth pixel in both directions is looked at."""


class Meaning(NamedTuple):
    """How stored values are meant: their sign, all bits or those that BitsStored counts, what is
    added to the intercept, and the sum of a value and its mirror image where they are inverted."""

    signed: bool
    all_bits: bool = False
    offset: float = 0.0
    total: int | None = None


def settle_bits(stored: Stored, header: Header) -> tuple[Stored, str | None]:
    """Values as BitsStored, HighBit and the sign of their type mean them (PS3.5 8.1.1), and a
    problem code or None. Other bits hold overlays or nothing."""
    bits = header.bits_stored
    if bits == 16:
        return stored, None
    signed = stored.dtype.kind == "i"
    low, high = int(stored.min()) if signed else 0, int(stored.max())
    shift = header.high_bit + 1 - bits
    if 0 < shift <= 16 - bits and high > 0 and not (stored & ((1 << shift) - 1)).any():
        return settle_bits(stored >> shift, header._replace(high_bit=bits - 1))[0], "left_justified"
    limit = 1 << (bits - 1) if signed else 1 << bits
    if -limit <= low and high < limit:
        return stored, None
    if not signed:
        return stored & ((1 << bits) - 1), "excess_bits"
    up = 16 - bits
    bare = low >= 0 and high < 1 << bits
    return (stored << up) >> up, "sign_extended" if bare else "excess_bits"


def mirrors(header: Header) -> list[int]:
    """Sums `stored + mirrored` by which a writer may have inverted values, likeliest first.

    Within BitsStored, or within the scanner's 12 bits whatever BitsStored says.
    """
    return [-1] if header.signed else [(1 << header.bits_stored) - 1, 4095]


def _padded(stored: Stored, header: Header, offset: float) -> tuple[NDArray[np.bool_] | None, bool]:
    """Pixels outside the field, and whether the padding value is one of tissue."""
    if header.padding is None:
        return None, False
    low, high = header.padding
    padded = stored == low if low == high else (stored >= low) & (stored <= high)
    slope, intercept = _rescale(header)
    inside = TISSUE_HU[0] < low * slope + intercept + offset < TISSUE_HU[1]
    if not inside or not padded.any():
        return padded, False
    _, parts = cv2.connectedComponents(padded.astype(np.uint8), connectivity=4)
    corners = set(parts[[0, 0, -1, -1], [0, -1, 0, -1]].tolist()) - {0}
    return np.isin(parts, list(corners)), True


def _rescale(header: Header) -> tuple[float, float]:
    slope = 1.0 if math.isnan(header.slope) else header.slope
    return slope, 0.0 if math.isnan(header.intercept) else header.intercept


def _fits(stored: Stored, intercept: float, bits: int) -> bool:
    """True where sums are int16; where values of so many bits always fit, none is looked at."""
    signed = stored.dtype.kind == "i"
    half = 1 << (bits - 1)
    low, high = (-half, half - 1) if signed else (0, 2 * half - 1)
    if low + intercept >= -32768 and high + intercept <= 32767:
        return True
    low = int(stored.min()) if signed else 0
    return low + intercept >= -32768 and int(stored.max()) + intercept <= 32767


def _linear(
    stored: Stored, slope: float, intercept: float, out: HuArray | None, bits: int
) -> HuArray:
    """Stored values of `bits` to int16, rounded, clipped; `out` may be the memory of `stored`."""
    hu = np.empty(stored.shape, np.int16) if out is None or out.shape != stored.shape else out
    if slope == 1.0 and intercept.is_integer() and _fits(stored, intercept, bits):
        # The result fits, so arithmetic modulo 2^16 is exact, whatever the sign of the input.
        step = np.array(int(intercept) & 0xFFFF, np.uint16)
        np.add(stored.view(np.uint16), step, out=hu.view(np.uint16))
    else:
        np.clip(np.rint(stored * slope + intercept), -32768, 32767, out=hu, casting="unsafe")
    return hu


def hounsfield(
    stored: Stored, header: Header, meaning: Meaning, out: HuArray | None = None
) -> tuple[HuArray, set[str]]:
    """HU (rows, cols) int16 of one frame as stored, and problem codes.

    Args:
        stored: its values; they may be overwritten.
        header: slope, intercept, bits and padding of this very file.
        meaning: what the header is wrong about.
        out: memory for the result; it may be that of `stored`.
    """
    codes: set[str] = set()
    padded, in_tissue = _padded(stored, header, meaning.offset)
    if in_tissue:
        codes.add("padding_in_tissue")
    if meaning.signed != header.signed:
        stored = stored.view(np.int16 if meaning.signed else np.uint16)
    if not meaning.all_bits:
        if padded is not None:
            stored = np.where(padded, 0, stored).astype(stored.dtype, copy=False)
        stored, code = settle_bits(stored, header)
        codes |= {code} if code else set()
    if meaning.total is not None:
        stored = (meaning.total - stored.astype(np.int32)).astype(stored.dtype)
    slope, intercept = _rescale(header)
    settled = not meaning.all_bits and meaning.total is None
    bits = header.bits_stored if settled else 16
    hu = _linear(stored, slope, intercept + meaning.offset, out, bits)
    if padded is not None:
        hu[padded] = AIR_HU
    return hu, codes


class _Shares(NamedTuple):
    """Shares of pixels that are air, tissue, in between, below all tissue, below air and no
    padding, denser than most bone; whether bits above BitsStored were cut off; median of air."""

    air: float
    tissue: float
    between: float
    below: float
    under: float
    dense: float
    cut: bool
    middle: float

    @property
    def clear(self) -> bool:
        """True where air and tissue are two heaps with little in between."""
        return (
            min(self.air, self.tissue) >= CLEAR_SHARE
            and self.air + self.tissue >= 0.4
            and self.between <= 0.5 * self.tissue
            and self.under <= UNDER_SHARE
        )

    @property
    def plausible(self) -> bool:
        """True where nothing speaks against a CT: some of both, and little that air cannot be."""
        return (
            min(self.air, self.tissue) >= LEAST_SHARE
            and self.under <= UNDER_SHARE
            and self.dense <= DENSE_SHARE
            and not self.cut
        )

    @property
    def hopeless(self) -> bool:
        """True for what no scan of a neck looks like."""
        return (
            self.below < NOTHING
            or self.air + self.tissue < COMMON_SHARE
            or self.dense > DENSE_SHARE
            or (self.tissue < LEAST_SHARE and self.under > UNDER_SHARE)
        )


def _shares(samples: Sequence[Stored], header: Header, meaning: Meaning) -> _Shares:
    frames = [hounsfield(sample.copy(), header, meaning) for sample in samples]
    hu = np.concatenate([frame.ravel() for frame, _ in frames])

    def share(low: int, high: int) -> float:
        return float(((hu >= low) & (hu <= high)).mean())

    air = hu[(hu >= -1100) & (hu <= -900)]
    # The lowest value below air is padding, unless it is where the scale ends.
    lowest = int(hu.min()) + 1 if hu.min() > LOWEST_PADDING_HU else -32768
    return _Shares(
        air=share(-1100, -900),
        tissue=share(-150, 150),
        between=share(-800, -200),
        below=share(-32768, BELOW_HU),
        under=share(lowest, -1101),
        dense=share(DENSE_HU, 32767),
        cut=any("excess_bits" in codes for _, codes in frames),
        middle=float(np.median(air[::8])) if len(air) else math.nan,
    )


def _beyond(samples: Sequence[Stored], header: Header) -> float:
    """Share of values that BitsStored cannot hold."""
    limit = 1 << (header.bits_stored - header.signed)
    return float(np.mean([(sample >= limit).mean() for sample in samples]))


def _meanings(header: Header, likely: float) -> list[Meaning]:
    """Ways to read values that a header may be wrong about, the simplest first."""
    own = header.signed
    ways = [(own, False), (own, True), (not own, True), (not own, False)]
    ways = [
        (signed, all_bits)
        for signed, all_bits in ways
        if (signed == own or header.bits_allocated == 16)
        and (not all_bits or header.bits_stored < 16 or signed != own)
    ]
    offsets = [0.0, likely - _rescale(header)[1], *OFFSETS]
    return [Meaning(*way, offset) for offset in offsets for way in ways]


def judge(
    samples: Sequence[Stored], header: Header, usual_intercept: float = -1024.0
) -> tuple[Meaning, set[str]]:
    """How the values of files like `header` are meant, from some of their frames.

    Args:
        samples: stored values of at least one frame.
        header: of one of them; sign, bits, slope and intercept are those of all.
        usual_intercept: RescaleIntercept of most files of the study.

    Returns:
        The meaning, and the codes of what had to be repaired or cannot be true.
    """
    small = [np.ascontiguousarray(sample[::SAMPLED, ::SAMPLED]) for sample in samples]
    header = header._replace(padding=None)
    plain, codes = Meaning(header.signed), set[str]()
    if header.photometric == "MONOCHROME1":
        # By the standard it changes only the display, but some writers invert the values too.
        ways = [plain, *(plain._replace(total=total) for total in mirrors(header))]
        plain = max(ways, key=lambda way: sum(_shares(small, header, way)[:2]))
        codes.add("monochrome1" if plain.total is None else "monochrome1_inverted")
    if header.bits_stored <= 8:
        return plain, codes | {"eight_bits"}
    found = _shares(small, header, plain)
    whole = plain._replace(all_bits=True)
    if found.cut and _beyond(small, header) > OVERLAY_SHARE and _shares(small, header, whole).clear:
        return whole, codes | {"bits_repaired"}
    if found.plausible or found.clear:
        high = found.air >= AROUND_SHARE and found.middle > MIDDLE_HU
        return plain, codes | {"high_air"} if high else codes
    # Turned upside down, tissue could pass for air.
    meanings = _meanings(header, usual_intercept) if _rescale(header)[0] > 0 else []
    ways = [way._replace(total=plain.total) for way in meanings]
    best = next((way for way in ways if _shares(small, header, way).clear), None)
    if best is not None:
        codes |= {"offset_repaired"} if best.offset else set()
        codes |= {"sign_repaired"} if best.signed != header.signed else set()
        return best, codes
    if found.hopeless:
        return plain, codes | {"implausible_hu"}
    return plain, codes if found._replace(cut=False).plausible else codes | {"unverified_hu"}

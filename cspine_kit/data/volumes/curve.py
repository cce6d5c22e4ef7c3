"""HU as 8 bits: fine steps where bone and soft tissue differ, coarse ones outside.

In: knots of a piecewise linear curve, as a config has them. Out: codes 0..255 and look-up tables.
Example::

    >>> curve = HuCurve(((-1000, 0), (-200, 16), (400, 150), (1400, 240), (2500, 255)))
    >>> curve.encode(np.array([-3000, -1000, 100, 400, 3000], np.int16)).tolist()
    [0, 0, 83, 150, 255]
    >>> curve.window(-200, 600)[[0, 16, 150, 255]].tolist()
    [0, 0, 191, 255]

One volume so serves several windows: a network's window is a look-up table over codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from cspine_kit.core.numbers import FloatArray
from cspine_kit.data.reader.pixels.values import HuArray

Grey = NDArray[np.uint8]

CODES = 256


@dataclass(frozen=True)
class HuCurve:
    """A monotone piecewise linear map of HU to codes.

    Attributes:
        knots: (HU, code) pairs, both strictly ascending, codes from 0 to 255.
    """

    knots: tuple[tuple[float, int], ...]

    @classmethod
    def of(cls, knots: Sequence[Sequence[float]]) -> "HuCurve":
        """A curve through knots as a config or a file has them."""
        return cls(tuple((float(hu), int(code)) for hu, code in knots))

    @cached_property
    def _table(self) -> Grey:
        """Codes of all int16, in the order of their bits as uint16."""
        hu = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
        at, codes = zip(*self.knots, strict=True)
        return np.rint(np.interp(hu, at, codes)).astype(np.uint8)

    def encode(self, hu: HuArray, out: Grey | None = None) -> Grey:
        """Codes of int16 HU, in the same shape; beyond the outer knots they stay 0 and 255."""
        # Clipping changes nothing and spares numpy a buffer for `out`.
        index = np.ascontiguousarray(hu).view(np.uint16)
        codes: Grey = np.take(self._table, index, out=out, mode="clip")
        return codes

    @cached_property
    def hu(self) -> FloatArray:
        """HU that each code stands for, (256,) ascending."""
        at, codes = zip(*self.knots, strict=True)
        return np.interp(np.arange(CODES), codes, at)

    def window(self, low_hu: float, high_hu: float) -> Grey:
        """Table (256,) uint8 that turns codes into grey values: `low_hu` is 0, `high_hu` 255."""
        return _window(self, float(low_hu), float(high_hu))


@lru_cache(maxsize=64)
def _window(curve: HuCurve, low_hu: float, high_hu: float) -> Grey:
    share = (curve.hu - low_hu) / (high_hu - low_hu)
    table = np.rint(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8)
    table.flags.writeable = False
    return table

"""Where in its scan a slice lies, from geometry alone.

In: distances below the top slice. Out: three columns. Example::

    >>> scan_position(np.array([0.0, 10.0, 40.0])).tolist()
    [[0.0, 40.0, 0.0], [10.0, 30.0, 0.25], [40.0, 0.0, 1.0]]
"""

import numpy as np

from cspine_kit.core.numbers import FloatArray

SHORTEST_MM = 1.0


def scan_position(below_mm: FloatArray) -> FloatArray:
    """Position of each slice seen from both ends of its scan.

    Args:
        below_mm: (n,) distance below the most cranial slice, ascending from 0.

    Returns:
        (n, 3): mm below the top slice, mm above the bottom slice, share of the way down (0..1).
        Source document B's header branch reads these.
    """
    extent = below_mm[-1]
    return np.column_stack([below_mm, extent - below_mm, below_mm / max(extent, SHORTEST_MM)])

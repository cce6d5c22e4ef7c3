"""One numbered check of a run: its verdict, its figure, what to do.

In: what a check found. Out: a `Check`. Example::

    >>> Check("leak", "pass", "no group in two folds").verdict
    'pass'
    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c, d and 1 more'
"""

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["pass", "warn", "fail", "not yet"]

SHOWN = 4


@dataclass(frozen=True)
class Check:
    """One check: its number on the page, what was found, and what to do about it."""

    name: str
    verdict: Verdict
    figure: str
    advice: str = ""
    number: int = 0


def some(values: Any) -> str:
    """The first few values in a line."""
    listed = [str(v) for v in values]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more

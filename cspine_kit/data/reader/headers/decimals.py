"""Numbers of DICOM texts, also badly written ones.

In: a value as the walk or pydicom gives it (number, text, list). Out: finite floats. Example::

    several(["0.5", "0.5"], 2)          # (0.5, 0.5)
    meant("0,5 mm", 1)                  # (0.5,): a decimal comma and a unit
    meant("0.5,0.5", 2)                 # (0.5, 0.5): a comma between the two
"""

import math
import re
from typing import Any

MISSING = math.nan

_NUMBER = re.compile(r"[-+]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][-+]?\d+)?")
_ONE = re.compile(rf"\s*({_NUMBER.pattern})\s*[A-Za-z]*\s*")
_BETWEEN = re.compile(r"[;\s]+")


def several(value: Any, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers of a value as the standard writes it, or None."""
    try:
        numbers = tuple(map(float, value if isinstance(value, (list, tuple)) else (value,)))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _single(text: str) -> float:
    """One number with a decimal point or comma and perhaps a unit behind it; NaN where it is none.

    Two numbers in one text are none.
    """
    found = _ONE.fullmatch(text)
    return float(found[1].replace(",", ".")) if found else MISSING


def meant(value: Any, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers of a value that breaks the standard's rules, or None.

    Decimal commas, units, and commas, semicolons or blanks between numbers are understood where
    the number of values leaves one way to read them.
    """
    parts = [value] if isinstance(value, (str, int, float)) else list(value or ())
    texts = [str(part) for part in parts]
    if len(texts) == 1 and count > 1:
        blanks = _BETWEEN.split(texts[0].strip())
        commas = texts[0].split(",")
        whole = ["".join((a, ".", b)) for a, b in zip(commas[::2], commas[1::2], strict=False)]
        texts = next((way for way in (blanks, commas, whole) if len(way) == count), texts)
    numbers = tuple(map(_single, texts))
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def first(value: Any) -> float:
    """The first number of a value, single or multiple; NaN where there is none."""
    if isinstance(value, list):
        value = value[0] if value else None
    try:
        return float(value) if value is not None else MISSING
    except (TypeError, ValueError):
        return MISSING

"""When work stops by itself: a time of day that this process and those it starts look at.

In: seconds from now. Out: whether they are over. Example::

    set_deadline(3600.0)
    time_is_up()                              # False for an hour
    clear_deadline()

Who stops keeps what is done and raises `Unfinished`; the same call goes on from there. Without a
deadline nothing stops.
"""

import os
import time

VARIABLE = "CSPINE_DEADLINE"
"""Processes that are started inherit it."""


def set_deadline(seconds: float) -> None:
    """Stop `seconds` from now."""
    os.environ[VARIABLE] = repr(time.time() + seconds)


def clear_deadline() -> None:
    """Do not stop."""
    os.environ.pop(VARIABLE, None)


def time_is_up() -> bool:
    """True once the deadline is over."""
    return VARIABLE in os.environ and time.time() >= float(os.environ[VARIABLE])

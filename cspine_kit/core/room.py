"""How much a folder may come to hold: a limit that this process and those it starts look at.

In: a folder, a size. Out: what is left of it. Example::

    set_room(Path("working"), 18.0)
    room_left_gb()                            # 18.0 as long as nothing lies there
    clear_room()

Links count as nothing. Who finds no room for what it is about to do leaves it and raises
`Unfinished`. Without a limit there is room for everything.
"""

import json
import math
import os
from pathlib import Path

VARIABLE = "CSPINE_ROOM"
"""Processes that are started inherit it."""


def set_room(folder: Path, most_gb: float) -> None:
    """Let `folder` hold at most so much, in 10^9 bytes."""
    os.environ[VARIABLE] = json.dumps([str(folder.absolute()), most_gb])


def clear_room() -> None:
    """Let it hold anything."""
    os.environ.pop(VARIABLE, None)


def room_left_gb() -> float:
    """What may still be written, in 10^9 bytes; infinite without a limit."""
    if VARIABLE not in os.environ:
        return math.inf
    folder, most_gb = json.loads(os.environ[VARIABLE])
    return float(most_gb) - size_gb(Path(folder))


def size_gb(folder: Path) -> float:
    """What the files of a folder hold, in 10^9 bytes; files that vanish meanwhile are none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                path = Path(place, name)
                total += 0 if path.is_symlink() else path.stat().st_size
            except FileNotFoundError:
                continue
    return total / 1e9

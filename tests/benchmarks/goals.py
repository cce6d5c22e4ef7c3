"""What a benchmark measured beside what it should reach; `bench_all.py` makes one table of it.

In: a figure, its goal. Out: a line of JSON in the file that CSPINE_GOALS names, if it names one.
"""

import json
import os
from pathlib import Path

FILE = "CSPINE_GOALS"


def record(what: str, found: float, goal: float, *, most: bool = False) -> None:
    """Write one figure down.

    Args:
        what: in words, with its unit.
        found: the figure.
        goal: what it should reach.
        most: it should not exceed the goal, rather than reach it.
    """
    named = os.environ.get(FILE)
    if named:
        row = {"what": what, "found": float(found), "goal": float(goal), "most": most}
        with Path(named).open("a") as file:
            file.write(json.dumps(row) + "\n")

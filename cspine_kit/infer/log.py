"""What a kernel run did, as JSON lines: one event per study and per fault, written and read here.

In: events. Out: `kernel_log.jsonl`, flushed as they happen; read back as `KernelEvents`. Example::

    log = KernelLog(Path("kernel_log.jsonl"))
    log.write("study", study_uid="1.2.3", source="image", total_s=3.1)
    read_kernel_log(log.path).studies[["study_uid", "source", "cause", "decode_s"]]

Events: `priors_written`, `origin`, `headers_written`, `bundle` (or `models_unusable`),
`external_absent` (a partner's file is not there), `device_ready`, `device_lost`, `device_spare`,
`study` (source `image`, `header_levels`, `header` or `priors`, with a `cause` where it is not
`image`), `pulse` (how the run stands, each minute), `fault`, `degraded`, `stopped`, `end`, and
outside a hidden rerun `proof`. A log that cannot be written costs nothing but itself.
"""

import json
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cspine_kit.core.errors import DataError

log = logging.getLogger(__name__)

STAGES = ("decode_s", "vertebra_s", "members_s", "stack_s")
"""Seconds of one study by stage, in the order they run; members_s is the sum over members."""

IMAGE = "image"
PRIORS_ONLY = "priors"
SOURCES = (IMAGE, "header_levels", "header", PRIORS_ONLY)
"""What a study's rows came from, best first."""


@dataclass
class KernelLog:
    """Append-only JSON lines; several threads may write."""

    path: Path
    start: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def mend(self) -> None:
        """Drop a last line that was cut off: whoever wrote it died."""
        try:
            text = self.path.read_text(errors="replace")
            if not text.endswith("\n"):
                self.path.write_text(text[: text.rfind("\n") + 1])
        except OSError as error:
            log.warning("%s cannot be mended: %s", self.path, error)

    def write(self, event: str, **details: object) -> None:
        """Append one event with the time of day and the seconds since the start."""
        at = {"time": round(time.time(), 3), "at_s": round(time.monotonic() - self.start, 3)}
        line = json.dumps({"event": event, **at, **details}, default=str)
        try:
            with self._lock, self.path.open("a") as handle:
                handle.write(line + "\n")
        except OSError as error:
            log.warning("%s cannot be written (%s): %s", self.path, error, line)


@dataclass(frozen=True)
class KernelEvents:
    """A kernel log."""

    studies: pd.DataFrame
    """One row per finished study: study_uid, time, source, cause, problems, slices, the `STAGES`
    (NaN where not measured) and total_s, their sum where the log has no total."""
    members: dict[str, float]
    """Seconds per member, summed over studies."""
    others: list[dict[str, Any]]
    """Every other event, in order: priors_written, degraded, fault, end, ..."""

    def first(self, event: str) -> dict[str, Any] | None:
        """The first event of a name, or None."""
        return next((e for e in self.others if e["event"] == event), None)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text()
    except OSError as error:
        raise DataError(f"kernel log {path} cannot be read: {error}") from error
    events = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(event, dict) or "event" not in event:
            raise DataError(f"{path}:{number} is no event")
        events.append(event)
    return events


def read_kernel_log(path: Path) -> KernelEvents:
    """Read a kernel's log.

    Raises:
        DataError: absent, or a line that is no event.
    """
    rows, others, members = [], [], dict[str, float]()
    for event in _lines(path):
        if event["event"] != "study":
            others.append(event)
            continue
        parts = event.get("members_s") or {}
        for name, seconds in parts.items():
            members[name] = members.get(name, 0.0) + float(seconds)
        row: dict[str, Any] = {
            "study_uid": str(event["study_uid"]),
            "time": event.get("time"),
            "source": str(event.get("source")),
            "cause": event.get("cause") or "",
            "problems": list(event.get("problems") or []),
            "slices": event.get("slices"),
            "total_s": event.get("total_s"),
            **{stage: event.get(stage) for stage in STAGES},
        }
        row["members_s"] = sum(map(float, parts.values())) if parts else None
        rows.append(row)
    columns = ["study_uid", "time", "source", "cause", "problems", "slices", "total_s", *STAGES]
    studies = pd.DataFrame(rows, columns=columns)
    numbers = ["time", "slices", "total_s", *STAGES]
    studies[numbers] = studies[numbers].apply(pd.to_numeric, errors="coerce")
    parts = studies[list(STAGES)].sum(axis=1, min_count=1)
    studies["total_s"] = studies["total_s"].fillna(parts)
    return KernelEvents(studies, members, others)

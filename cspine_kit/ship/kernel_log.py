"""What a kernel run did, as JSON lines: one event per study and per fault.

In: events. Out: `kernel_log.jsonl`, flushed as they happen. Example::

    log = KernelLog(Path("kernel_log.jsonl"))
    log.write("study", study_uid=uid, source="image", total_s=3.1)

Events: `priors_written`, `headers_written`, `bundle` (or `models_unusable`), `study` (source
`image`, `header_levels`, `header` or `priors`, with a `cause` where it is not `image`), `fault`,
`degraded`, `stopped`, `end`. A log that cannot be written costs nothing but itself.
"""

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass
class KernelLog:
    """Append-only JSON lines."""

    path: Path
    start: float = field(default_factory=time.monotonic)

    def write(self, event: str, **details: object) -> None:
        """Append one event with the time of day and the seconds since the start."""
        at = {"time": round(time.time(), 3), "at_s": round(time.monotonic() - self.start, 3)}
        line = json.dumps({"event": event, **at, **details}, default=str)
        try:
            with self.path.open("a") as handle:
                handle.write(line + "\n")
        except OSError as error:
            log.warning("%s cannot be written (%s): %s", self.path, error, line)

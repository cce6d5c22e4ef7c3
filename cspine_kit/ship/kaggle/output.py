"""What a kernel session left: its log, its submission, whether both are what was pushed.

In: a folder that the client filled. Out: rows checked, faults, one line of summary. Example::

    rows = check_output(config, submission)
    faults = kernel_faults(submission.with_name("kernel_log.jsonl"))
"""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config
from cspine_kit.core.errors import SubmissionError
from cspine_kit.core.paths import Competition, is_safe_uid
from cspine_kit.infer.log import PRIORS_ONLY
from cspine_kit.infer.submission import read_submission, read_wanted_rows

_BUNDLE_LINE = re.compile(r"bundle manifest ([0-9a-f]{64})")


def log_text(folder: Path) -> str:
    """The session's log: JSON events on Kaggle, or plain text; empty where there is none."""
    text = "\n".join(p.read_text(errors="replace") for p in sorted(folder.glob("*.log")))
    try:
        return "".join(str(event["data"]) for event in json.loads(text))
    except (ValueError, TypeError, KeyError):
        return text


def bundle_of(log: str) -> str | None:
    """Manifest hash of the bundle that a session mounted, as submit.py printed it."""
    found = _BUNDLE_LINE.search(log)
    return found.group(1) if found else None


def _events(kernel_log: Path) -> list[dict[str, Any]]:
    """Events of the kernel's own log; a line that is none is left out, it comes from outside."""
    events = []
    for line in kernel_log.read_text(errors="replace").splitlines() if kernel_log.exists() else ():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def summary(kernel_log: Path) -> str:
    """What the kernel's own log says about its studies; empty where it wrote none."""
    for event in reversed(_events(kernel_log)):
        if event.get("event") == "end":
            shown = {name: event[name] for name in event if name not in ("event", "time")}
            return "kernel: " + ", ".join(f"{name} {value}" for name, value in shown.items())
    return ""


def kernel_faults(kernel_log: Path) -> list[str]:
    """Why a session must not be submitted, from the kernel's own log; empty where it may.

    Its rows may all be priors, since the public listing asks for studies that have no folder: then
    the event `proof` must say that the networks work there.
    """
    events = _events(kernel_log)
    named = {str(event.get("event")): event for event in events}
    faults = []
    if "models_unusable" in named:
        faults.append(f"models_unusable: {named['models_unusable'].get('cause')}")
    if "proof" in named:
        if named["proof"].get("ok") is not True:
            faults.append(f"the proof failed: {named['proof'].get('faults')}")
        return faults
    sources = named.get("end", {}).get("sources")
    kinds = {name for name, count in sources.items() if count} if isinstance(sources, dict) else {}
    if not set(kinds) - {PRIORS_ONLY}:
        faults.append("its log shows nothing but priors, and no proof that the networks work")
    return faults


def _own_rows(path: Path) -> pd.Series:
    """Row ids of a submission, each `<study>_<target>`.

    Raises:
        SubmissionError: unreadable, empty, or an id of another form.
    """
    try:
        ids = pd.read_csv(path, dtype=str, keep_default_na=False)["row_id"]
    except (OSError, ValueError, KeyError) as error:
        raise SubmissionError(f"{path} cannot be read as a submission: {error}") from error
    if ids.empty:
        raise SubmissionError(f"{path} has no rows")
    for row_id in ids:
        study, _, target = row_id.partition("_")
        if target not in TARGETS or not is_safe_uid(study):
            raise SubmissionError(f"{path}: row_id {row_id!r} is not <study>_<target>")
    return ids.drop_duplicates()


def check_output(config: Config, path: Path) -> int:
    """Number of rows of a fetched submission, after checking them.

    Against the local test.csv where it is the competition's own public listing, otherwise against
    the file's own ids, each of which must be a study and a target.

    Raises:
        SubmissionError: absent or not valid; names the rows.
    """
    if not path.exists():
        raise SubmissionError(f"the kernel wrote no {path.name}; its log is in {path.parent}")
    listing = Competition(config.competition.dir).test_csv
    if config.competition.phantom is None and listing.exists():
        wanted = read_wanted_rows(listing)["row_id"]
    else:
        wanted = _own_rows(path)
    return len(read_submission(path, wanted))

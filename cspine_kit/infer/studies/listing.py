"""Which studies have files, and what their headers alone say, before any network is loaded.

In: a competition, study ids, a header model. Out: a `Survey`. Example::

    uids = [folder.name for folder in competition.test_images.iterdir()]
    found = Survey(competition, uids, fallback)
    found.look(wait_s=900.0, patience_s=60.0)
    found.folders, found.files            # what is worth reading
    found.fallback(uids[0])               # from headers, or why the priors must do

A folder that cannot be listed or hangs costs itself alone: each study is looked at in a guard of
its own, on several threads. What is late goes on in the background, and `fallback` sees it when it
comes.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import StudyError
from cspine_kit.core.paths import Competition, is_safe_uid
from cspine_kit.data.reader.dicom import list_files, read_geometry
from cspine_kit.data.reader.scans.geometry import Geometry
from cspine_kit.infer.answer import Answer, cause_of
from cspine_kit.infer.patience import run_all

THREADS = 16
"""Headers wait for the disk: on a network mount most of the time."""

LATE = "its files could not be listed in time"


class HeaderModel(Protocol):
    """What predicts from headers: `stack.fallback.headers.HeaderFallback`."""

    def predict(self, geometry: Geometry) -> dict[str, float]:
        """Probability of each target."""


class Survey:
    """Folders, number of files and header predictions of many studies; safe to ask meanwhile.

    Args:
        competition: holds test_images/.
        uids: of all studies.
        headers: the model, or None and why there is none.
    """

    def __init__(
        self,
        competition: Competition,
        uids: Sequence[str],
        headers: HeaderModel | None,
        reason: str = "there is no header model",
    ) -> None:
        self._competition, self._uids = competition, list(uids)
        self._headers, self._reason = headers, reason
        self._files: dict[str, int] = {}
        self._lost: dict[str, str] = {}
        self._answers: dict[str, Answer] = {}
        self._lock = threading.Lock()

    def look(self, *, wait_s: float, patience_s: float) -> None:
        """List every folder and read every header; at most `wait_s` seconds in all."""
        run_all(self._look, self._uids, threads=THREADS, wait_s=wait_s, patience_s=patience_s)

    def _look(self, uid: str) -> None:
        if not is_safe_uid(uid):
            with self._lock:
                self._lost[uid] = f"study id {uid!r} is not digits and dots; refused as a path"
            return
        folder = self._competition.images("test", uid)
        try:
            count = len(list_files(folder))
        except Exception as error:  # noqa: BLE001 - a folder that cannot be listed costs itself
            with self._lock:
                self._lost[uid] = cause_of(error)
            return
        with self._lock:
            self._files[uid] = count
        answer = self._from_headers(uid, folder)
        with self._lock:
            self._answers[uid] = answer

    def _from_headers(self, uid: str, folder: Path) -> Answer:
        if self._headers is None:
            return Answer(uid, "priors", cause=self._reason)
        try:
            probs = pd.Series(self._headers.predict(read_geometry(folder, uid)))
            probs = probs.reindex(list(TARGETS)).astype(float)
            if not probs.between(0, 1, inclusive="neither").all():
                raise StudyError(uid, "a probability outside (0, 1)")
        except Exception as error:  # noqa: BLE001 - the priors stand
            return Answer(uid, "priors", cause=cause_of(error))
        return Answer(uid, "header", probs=probs)

    @property
    def lost(self) -> dict[str, str]:
        """Studies without a folder that can be listed, and why."""
        with self._lock:
            return dict(self._lost)

    @property
    def folders(self) -> dict[str, Path]:
        """Folders worth reading: the listed ones first, then those that were late."""
        with self._lock:
            late = [u for u in self._uids if u not in self._files and u not in self._lost]
            listed = [uid for uid in self._uids if uid in self._files]
        return {uid: self._competition.images("test", uid) for uid in (*listed, *late)}

    @property
    def files(self) -> dict[str, int]:
        """Number of files of each of `folders`; the mean where the listing was late."""
        with self._lock:
            known = dict(self._files)
        mean = round(sum(known.values()) / len(known)) if known else 1
        return {uid: known.get(uid, mean) for uid in self.folders}

    @property
    def spoken(self) -> list[Answer]:
        """Header predictions made so far."""
        with self._lock:
            return [answer for answer in self._answers.values() if answer.probs is not None]

    def fallback(self, uid: str) -> Answer:
        """What headers say about a study, or why they say nothing."""
        with self._lock:
            late = self._lost.get(uid, LATE if uid not in self._files else "its headers were late")
            return self._answers.get(uid) or Answer(uid, "priors", cause=late)

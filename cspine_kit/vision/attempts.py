"""Rows of one fold model on its studies, one study at a time: what fails is kept and tried again.

In: studies and a function that predicts one. Out: parquet files of rows and, beside them,
`failures.json`. Example::

    rows = Attempts("effnet", 0, (Path("rows.parquet"),), key="1", state=lambda uid: uid)
    if not rows.done():
        rows.make([uid], lambda uid: (pd.DataFrame({"slice_idx": [0, 1]}),), "effnet fold 0")

Where files and key agree, only the failed studies whose inputs changed are predicted.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from cspine_kit.core.errors import DataError
from cspine_kit.core.failures import (
    FILES,
    ROWS,
    TRAINING,
    Failure,
    read_failures,
    write_failures,
)
from cspine_kit.core.runs import fingerprint, is_fresh, publish
from cspine_kit.core.tasks import is_worker, report
from cspine_kit.vision.predict import is_out_of_memory
from cspine_kit.vision.views import StudyView

log = logging.getLogger(__name__)

Frames = tuple[pd.DataFrame, ...]


def is_broken_device(error: Exception) -> bool:
    """True for what torch raises where a GPU answers nothing any more: no study's own fault."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("cuda error", "cudnn", "cublas", "device-side assert")
    )


def failure_of(error: Exception, uid: str, stage: str, attempts: "Attempts") -> Failure:
    """What an error says about one study, logged; raised again where it is the device's.

    Where memory was short the study is tried at every run, else when its inputs change.
    """
    if is_broken_device(error):
        raise error
    text = str(error)
    cause = text if uid in text else f"study {uid}: {type(error).__name__}: {text}"
    log.warning("%s fold %d: left out of %s: %s", attempts.member, attempts.fold, stage, cause)
    state = "" if is_out_of_memory(error) else attempts.state(uid)
    return Failure(stage, attempts.member, uid, attempts.fold, cause, state)


@dataclass(frozen=True)
class Attempts:
    """The rows of one fold model.

    Attributes:
        member: its name.
        fold: k of fold model k.
        files: parquet files of rows, one frame each; the first one's folder holds `failures.json`.
        key: what all studies' rows are made from.
        state: fingerprint of what one study's rows are made from.
    """

    member: str
    fold: int
    files: tuple[Path, ...]
    key: str
    state: Callable[[str], str]

    @property
    def _ledger(self) -> Path:
        return self.files[0].with_name(FILES[ROWS])

    def failures(self) -> list[Failure]:
        """Studies without rows."""
        return read_failures(self._ledger) if is_fresh(self._ledger, self.key) else []

    def again(self) -> list[str]:
        """Failed studies whose inputs have changed since."""
        failed = self.failures()
        return [f.study_uid for f in failed if f.inputs_key != self.state(f.study_uid)]

    def made(self) -> bool:
        """True where the files are there, whatever failed."""
        return all(is_fresh(path, self.key) for path in (*self.files, self._ledger))

    def done(self) -> bool:
        """True where there is nothing to make, nor to try again."""
        return self.made() and not self.again()

    def content_key(self) -> str:
        """Fingerprint of what the files hold: the key, and which studies are missing."""
        missing = sorted(failure.study_uid for failure in self.failures())
        return fingerprint(self.key, missing) if missing else self.key

    def make(self, uids: Iterable[str], predict: Callable[[str], Frames], title: str) -> None:
        """Predict all studies, or those that are to be tried again; one that fails costs itself.

        Args:
            uids: every study of the fold model.
            predict: a study's frames, one for each file.
            title: of the progress bar.

        Raises:
            DataError: there are no rows at all.
        """
        made = self.made()
        todo = self.again() if made else list(uids)
        failures = [f for f in self.failures() if f.study_uid not in todo] if made else []
        parts: list[list[pd.DataFrame]] = [[] for _ in self.files]
        if made:
            for path, part in zip(self.files, parts, strict=True):
                old = pd.read_parquet(path)
                part.append(old[~old["study_uid"].isin(todo)])
        for uid in tqdm(todo, desc=title, unit="study", disable=is_worker()):
            report(f"{title}, study {uid}")
            try:
                frames = predict(uid)
            except Exception as error:  # noqa: BLE001 - one bad study must cost only itself
                failures.append(failure_of(error, uid, ROWS, self))
                continue
            for frame, part in zip(frames, parts, strict=True):
                frame.insert(0, "study_uid", uid)
                part.append(frame)
        if not parts[0]:
            first = failures[0].cause if failures else "it was given no study"
            raise DataError(f"{title}: every study failed; the first: {first}")
        for path, part in zip(self.files, parts, strict=True):
            with publish(path, self.key) as temporary:
                pd.concat(part, ignore_index=True).to_parquet(temporary, index=False)
        write_failures(self._ledger, failures, self.key)

    def views(
        self, uids: Iterable[str], build: Callable[[str], StudyView]
    ) -> tuple[list[StudyView], list[Failure]]:
        """What a model learns from, and the studies that it cannot learn from."""
        found, failures = list[StudyView](), list[Failure]()
        for uid in uids:
            try:
                found.append(build(uid))
            except Exception as error:  # noqa: BLE001 - one bad study must cost only itself
                failures.append(failure_of(error, uid, TRAINING, self))
        return found, failures

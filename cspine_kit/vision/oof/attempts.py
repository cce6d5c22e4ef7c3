"""Rows of one fold model, one study at a time: each under its own key, and what fails is kept.

In: studies, the key of each one's rows, a function that makes them. Out: a parquet file of rows for
each table, beside the first `<name>.json` (keys by study) and the failures. Example::

    rows = Attempts("rows", "effnet", 0, Path("slices.parquet"), ("1.2",), key=lambda uid: "1")
    if rows.todo():
        rows.make(lambda uid: {"slices": pd.DataFrame({"position": [0, 1]})}, "effnet fold 0")
    rows.frame()["position"].tolist()         # [0, 1]

Only studies whose key changed are made again, and those that failed when their inputs change.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from cspine_kit.core.deadline import time_is_up
from cspine_kit.core.errors import DataError, Unfinished
from cspine_kit.core.failures import FILES, Failure, read_failures, write_failures
from cspine_kit.core.runs import fingerprint, is_fresh, publish, read_json, write_json
from cspine_kit.core.tasks import is_worker, report
from cspine_kit.vision.passes import is_out_of_memory

log = logging.getLogger(__name__)

KeyOf = Callable[[str], str]


def is_broken_device(error: Exception) -> bool:
    """True for what torch raises where a GPU answers nothing any more: no study's own fault."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("cuda error", "cudnn", "cublas", "device-side assert")
    )


def failure_of(
    error: Exception, uid: str, *, stage: str, member: str, fold: int, state: str
) -> Failure:
    """What an error says about one study, logged; raised again where it is the device's.

    Where memory was short the study is tried at every run, else when `state` changes.
    """
    if is_broken_device(error):
        raise error
    text = str(error)
    cause = text if uid in text else f"study {uid}: {type(error).__name__}: {text}"
    log.warning("%s fold %d: left out of %s: %s", member, fold, stage, cause)
    return Failure(stage, member, uid, fold, cause, "" if is_out_of_memory(error) else state)


@dataclass(frozen=True)
class Attempts:
    """Rows of one fold model.

    Attributes:
        stage: of its failures, a key of `core.failures.FILES`.
        member: the model's name.
        fold: k of fold model k.
        file: parquet, named after its table; its folder also holds the keys and the failures.
        uids: every study that is to have rows.
        key: of a study's rows: what they are made from.
        state: of what a failure may hang on besides, such as a damaged file that is mended.
        others: further tables whose rows are made together with those of `file`.
    """

    stage: str
    member: str
    fold: int
    file: Path
    uids: tuple[str, ...]
    key: KeyOf
    state: KeyOf = lambda uid: ""
    others: tuple[str, ...] = ()

    @property
    def _ledger(self) -> Path:
        return self.file.with_suffix(".json")

    def _held(self) -> dict[str, str]:
        """Keys of all rows in the file; none where it was not written to its end."""
        held = dict(read_json(self._ledger)) if self._ledger.exists() else {}
        key = fingerprint(held)
        return held if all(is_fresh(file, key) for file in self._files.values()) else {}

    @property
    def _files(self) -> dict[str, Path]:
        """Parquet file of each table, the first one first."""
        others = {table: self.file.with_name(f"{table}.parquet") for table in self.others}
        return {self.file.stem: self.file, **others}

    def content(self) -> dict[str, str]:
        """Keys of the studies whose rows are there and up to date."""
        held = self._held()
        wanted = {uid: self.key(uid) for uid in self.uids}
        return {uid: key for uid, key in wanted.items() if held.get(uid) == key}

    def frame(self, table: str | None = None) -> pd.DataFrame:
        """Rows of the studies in `content`, of one table, by default the first."""
        rows = pd.read_parquet(self._files[table or self.file.stem])
        return rows[rows["study_uid"].isin(set(self.content()))].reset_index(drop=True)

    def _whole_state(self, uid: str) -> str:
        return fingerprint(self.key(uid), self.state(uid))

    def _failed(self) -> dict[str, Failure]:
        """Failures that would come again."""
        found = read_failures(self.file.with_name(FILES[self.stage]))
        wanted = set(self.uids)
        return {
            f.study_uid: f
            for f in found
            if f.study_uid in wanted and f.inputs_key == self._whole_state(f.study_uid)
        }

    def todo(self) -> list[str]:
        """Studies without rows, or with rows of another key, that are to be made (again)."""
        done = self.content().keys() | self._failed().keys()
        return [uid for uid in self.uids if uid not in done]

    def make(self, make: Callable[[str], Mapping[str, pd.DataFrame]], title: str) -> None:
        """Make what is missing, one study at least; a study that fails costs itself.

        Args:
            make: a study's rows of each table.
            title: of the progress bar.

        Raises:
            DataError: there are no rows at all.
            Unfinished: its time is up; the rows so far are kept.
        """
        todo, content, failed = self.todo(), self.content(), self._failed()
        files, tried = self._files, 0
        parts = {table: [self.frame(table)] if content else [] for table in files}
        for uid in tqdm(todo, desc=title, unit="study", disable=is_worker()):
            if tried and time_is_up():
                break
            tried += 1
            report(f"{title}, study {uid}")
            try:
                made = make(uid)
                found = {table: made[table] for table in files}
            except Exception as error:  # noqa: BLE001 - one bad study must cost only itself
                failed[uid] = failure_of(
                    error,
                    uid,
                    stage=self.stage,
                    member=self.member,
                    fold=self.fold,
                    state=self._whole_state(uid),
                )
                continue
            for table, rows in found.items():
                rows.insert(0, "study_uid", uid)
                parts[table].append(rows)
            content[uid] = self.key(uid)
        if not content and tried == len(todo):
            first = next((f.cause for f in failed.values()), "it was given no study")
            raise DataError(f"{title}: every study failed; the first: {first}")
        for table, file in files.items() if content else ():
            joined = pd.concat(parts[table], ignore_index=True)
            with publish(file, fingerprint(content)) as temporary:
                joined.sort_values("study_uid", kind="stable").to_parquet(temporary, index=False)
        write_json(self._ledger, content)
        failures = [failed[uid] for uid in sorted(failed)]
        write_failures(self.file.with_name(FILES[self.stage]), failures, fingerprint(content))
        if tried < len(todo):
            raise Unfinished(f"{title}: stopped after {tried} of {len(todo)} studies")

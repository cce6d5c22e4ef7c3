"""The inference that Kaggle runs, run anywhere: test studies in, a full submission out.

In: a competition folder and a bundle. Out: `submission.csv`, and beside it `kernel_log.jsonl`,
`predictions.parquet` and `features.parquet`. Example::

    report = run_kernel(competition.root, bundle, Path("submission.csv"))
    print(report.summary())

A complete submission of priors is written before anything heavy, then what headers alone say about
every study; it is replaced atomically as studies finish. Processes read ahead (`reading`), one
thread for each device runs the networks (`worker`), the governor keeps the time. A study that fails
costs no other; the log says why.
"""

import contextlib
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import load_config
from cspine_kit.core.execution import usable_cores
from cspine_kit.core.paths import KERNEL_LOG, KERNEL_MARKER, Competition, is_safe_uid
from cspine_kit.core.runs import (
    file_hash,
    fingerprint,
    is_fresh,
    listing_fingerprint,
    publish,
    read_json,
    write_json,
)
from cspine_kit.data.reader.dicom import list_files
from cspine_kit.infer.governor import Governor
from cspine_kit.infer.log import SOURCES, KernelLog
from cspine_kit.infer.manifest import MANIFEST, open_bundle
from cspine_kit.infer.reading import ReadAhead, cause_of
from cspine_kit.infer.submission import listed_rows, prior_probs, read_submission, write_submission
from cspine_kit.infer.worker import Answer, Worker, answers, header_answers

PUBLIC_PRIORS = dict(
    zip(TARGETS, (0.103, 0.193, 0.051, 0.075, 0.110, 0.184, 0.256, 0.531), strict=True)
)
"""Best constants of form A on the real train.csv, for a bundle whose own cannot be read."""

WRITE_EVERY_S = 1.0
"""The submission is replaced this often at most while studies finish."""

LAST_WAITS_S = (1.0, 3.0, 6.0)
"""Between tries of the last write."""

HEADERS_SHARE, HEADERS_MAX_S = 0.1, 300.0
"""Header predictions may take this share of the time limit before the networks, but no longer than
this: it is what a file that hangs costs all others."""

RESERVE_SHARE = 0.05
"""The reserve takes no more than this share of a short time limit."""


class Stopped(BaseException):
    """SIGTERM arrived: what is finished is written, and the run ends well."""


@dataclass(frozen=True)
class KernelReport:
    """How a kernel run ended: studies by source, and why some are not from the image chain."""

    rows: int
    sources: dict[str, int]
    causes: dict[str, str]
    seconds: float
    stopped: str | None = None

    def summary(self) -> str:
        """One line for the console, and the first causes of fallbacks."""
        counts = ", ".join(f"{self.sources[s]} {s}" for s in SOURCES if self.sources.get(s))
        line = f"{self.rows} rows; studies by source: {counts}; {self.seconds:.1f} s"
        causes = [f"  {uid}: {cause}" for uid, cause in list(self.causes.items())[:5]]
        return "\n".join([line, *([f"stopped: {self.stopped}"] if self.stopped else []), *causes])


class Submission:
    """The rows wanted, their probabilities so far, and the file that holds them all."""

    def __init__(self, wanted: pd.DataFrame, probs: pd.Series, out: Path, log: KernelLog) -> None:
        self.wanted, self.probs, self.out, self.log = wanted, probs, out, log
        self.rows_of = {
            str(uid): group.index for uid, group in wanted.groupby("study_uid", sort=False)
        }
        self._written_s = -WRITE_EVERY_S

    def put(self, study_uid: str, probs: pd.Series) -> None:
        """Take the probabilities of one study by target; unknown prediction types stay."""
        rows = self.rows_of[study_uid]
        known = rows[self.wanted.loc[rows, "target"].isin(TARGETS)]
        self.probs.loc[known] = self.wanted.loc[known, "target"].map(probs)
        if time.monotonic() - self._written_s >= WRITE_EVERY_S:
            self.write()

    def write(self) -> bool:
        """Replace the file atomically; where that fails, the complete one before it stands."""
        self._written_s = time.monotonic()
        try:
            write_submission(self.wanted, self.probs, self.out)
        except OSError as error:
            self.log.write("fault", stage="write", cause=cause_of(error))
            return False
        return True

    def finish(self) -> None:
        """The last write: a disk that is full just then is given some time."""
        for wait_s in (*LAST_WAITS_S, None):
            if self.write() or wait_s is None:
                return
            time.sleep(wait_s)


def _priors(bundle: Path, log: KernelLog) -> dict[str, float]:
    try:
        return {t: float(p) for t, p in read_json(bundle / "priors.json").items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        log.write("fault", stage="priors", cause=cause_of(error))
        return PUBLIC_PRIORS


def _folders(
    competition: Competition, uids: Sequence[str]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Folder of every study that has one, and why the others have none."""
    folders, causes = {}, {}
    for uid in uids:
        if not is_safe_uid(uid):
            causes[uid] = f"study id {uid!r} is not digits and dots; refused as a path"
        elif not competition.images("test", uid).is_dir():
            causes[uid] = f"study {uid}: there is no folder {competition.images('test', uid)}"
        else:
            folders[uid] = competition.images("test", uid)
    return folders, causes


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM raises `Stopped` in the main thread."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _answers(
    competition: Competition,
    submission: Submission,
    bundle: Path,
    scratch: Path,
    log: KernelLog,
    *,
    started_s: float,
    hours: float | None,
) -> Iterator[Answer]:
    """One answer for every study; torch and LightGBM are first imported here.

    What headers say about all of them is put into the submission before the networks are loaded.
    """
    folders, causes = _folders(competition, list(submission.rows_of))
    for uid, cause in causes.items():
        yield Answer(uid, "priors", cause=cause)
    files = {uid: len(list_files(folder)) for uid, folder in folders.items()}
    fallbacks = {uid: Answer(uid, "priors") for uid in folders}
    try:
        from cspine_kit.stack.fallback.headers import HeaderFallback

        root = open_bundle(bundle, scratch / "bundle")
        config = load_config(root / "config.yaml")
        limit_s = 3600.0 * (config.kernel.hours if hours is None else hours)
        headers = HeaderFallback.load(root / "stack" / "header")
        fallbacks = header_answers(headers, folders, min(HEADERS_SHARE * limit_s, HEADERS_MAX_S))
        known = [a for a in fallbacks.values() if a.probs is not None]
        for answer in known:
            submission.put(answer.study_uid, answer.probs)
        submission.write()
        log.write("headers_written", studies=len(known))

        from cspine_kit.infer.ensemble import Ensemble
        from cspine_kit.vision.predict import devices, set_device_threads

        ensembles = [Ensemble(root, device) for device in devices()]
        set_device_threads(config)
    except Exception as error:  # noqa: BLE001 - without models what is written stands
        cause = f"no models: {cause_of(error)}"
        log.write("models_unusable", cause=cause)
        yield from (answer.because(cause) for answer in fallbacks.values())
        return
    reserve_s = min(60.0 * config.kernel.reserve_minutes, RESERVE_SHARE * limit_s)
    readers = config.kernel.readers or max(1, usable_cores() - 1)
    governor = Governor(
        ensembles[0].efforts,
        deadline_s=started_s + limit_s - reserve_s,
        files=sum(files.values()),
        studies=len(files),
        readers=readers,
        networks=len(ensembles),
    )
    log.write(
        "bundle",
        name=config.name,
        devices=devices(),
        readers=readers,
        efforts=[str(effort) for effort in governor.efforts],
        seconds_left=round(governor.left_s, 1),
    )
    workers = [Worker(e, governor, folders, files, fallbacks) for e in ensembles]
    with ReadAhead(folders, config.cache, scratch, readers=readers) as readings:
        full = str(governor.efforts[0])
        for answer in answers(workers, readings, len(folders)):
            effort = str(answer.details.get("effort", full))
            if effort != full:
                full = effort
                log.write("degraded", what=effort, seconds_left=round(governor.left_s, 1))
            yield answer


def run_kernel(
    competition_dir: Path,
    bundle: Path,
    out: Path,
    *,
    hours: float | None = None,
    spent_s: float = 0.0,
) -> KernelReport:
    """Predict every row of test.csv; from the start on a complete, valid submission is on disk.

    Args:
        competition_dir: folder with test.csv and test_images/.
        bundle: folder that `build_bundle` wrote.
        out: the submission; log, predictions and features go beside it.
        hours: time limit; by default the bundle's `kernel.hours`.
        spent_s: seconds of it that were spent before this call.

    Raises:
        DataError: test.csv itself cannot be used, or no submission could be written at all (a disk
            that is full from the first to the last write). What fails in between ends no run.
    """
    started = time.monotonic()
    competition = Competition(competition_dir)
    wanted, mismatch = listed_rows(competition.test_csv, competition.sample_submission_csv)
    out.parent.mkdir(parents=True, exist_ok=True)
    log = KernelLog(out.with_name(KERNEL_LOG))
    with contextlib.suppress(OSError):
        log.path.unlink(missing_ok=True)
    submission = Submission(wanted, prior_probs(wanted, _priors(bundle, log)), out, log)
    submission.write()
    log.write("priors_written", rows=len(wanted))
    if mismatch:
        log.write("fault", stage="listing", cause=mismatch)
    tables: dict[str, list[pd.DataFrame]] = {"predictions": [], "features": []}
    sources: Counter[str] = Counter()
    causes: dict[str, str] = {}
    stopped = None
    # Readers may still be writing when the folder goes.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, _stoppable():
        stream = _answers(
            competition,
            submission,
            bundle,
            Path(scratch),
            log,
            started_s=started - spent_s,
            hours=hours,
        )
        try:
            for answer in tqdm(stream, total=len(submission.rows_of), desc="kernel", unit="study"):
                sources[answer.source] += 1
                _note(answer, log, causes)
                if answer.probs is not None:
                    submission.put(answer.study_uid, answer.probs)
                for name, rows in (("predictions", answer.table), ("features", answer.features)):
                    if rows is not None:
                        tables[name].append(rows)
        except Stopped:
            stopped = "SIGTERM"
            log.write("stopped", cause=stopped, studies=sum(sources.values()))
        finally:
            submission.finish()
    read_submission(out, wanted["row_id"])
    for name, parts in tables.items():
        path = out.with_name(f"{name}.parquet")
        try:
            path.unlink(missing_ok=True)
            if parts:
                with publish(path) as temporary:
                    pd.concat(parts, ignore_index=True).to_parquet(temporary, index=False)
        except OSError as error:
            log.write("fault", stage=name, cause=cause_of(error))
    seconds = time.monotonic() - started
    report = KernelReport(len(wanted), dict(sources), causes, seconds, stopped)
    log.write("end", studies=len(submission.rows_of), sources=report.sources, seconds=seconds)
    return report


def _note(answer: Answer, log: KernelLog, causes: dict[str, str]) -> None:
    """Write a study and its faults to the log."""
    if answer.cause is not None:
        causes[answer.study_uid] = answer.cause
    for stage, cause in answer.faults.items():
        log.write("fault", study_uid=answer.study_uid, stage=stage, cause=cause)
    log.write(
        "study",
        study_uid=answer.study_uid,
        source=answer.source,
        **({"cause": answer.cause} if answer.cause is not None else {}),
        **answer.details,
    )


def run_kernel_once(
    competition_dir: Path, bundle: Path, out: Path, *, hours: float | None = None
) -> str:
    """`run_kernel`, unless `out` is what it wrote for exactly this.

    The marker beside `out` holds the report and what was run: the bundle's manifest, test.csv, the
    listing of its images and the time limit.

    Returns:
        A line that says what happened.

    Raises:
        DataError: test.csv cannot be used.
    """
    competition = Competition(competition_dir)
    manifest = file_hash(bundle / MANIFEST) if (bundle / MANIFEST).exists() else None
    key = fingerprint(
        manifest,
        file_hash(competition.test_csv) if competition.test_csv.exists() else None,
        listing_fingerprint(competition.root / "test_images"),
        hours,
    )
    marker = out.with_name(KERNEL_MARKER)
    if out.exists() and is_fresh(marker, key) and read_json(marker)["sha256"] == file_hash(out):
        return f"{out} is up to date"
    report = run_kernel(competition.root, bundle, out, hours=hours)
    if report.stopped is None:
        made = {"sha256": file_hash(out), "manifest": manifest, "hours": hours}
        write_json(marker, {**asdict(report), **made}, key)
    return report.summary()

"""The inference that Kaggle runs, run anywhere: test studies in, a full submission out.

In: a competition folder and a bundle. Out: `submission.csv`, and beside it `kernel_log.jsonl`,
`predictions.parquet` and `features.parquet`. Example::

    report = run_kernel(competition.root, bundle, Path("submission.csv"))
    print(report.summary())

A complete submission of priors is written before anything heavy, then what headers alone say about
every study (`listing`); it is replaced atomically as studies finish. Processes read ahead
(`reading`), one thread for each device runs the networks (`devices`), the governor keeps the time.
A study that fails costs no other, what hangs costs itself; the log says why.
"""

import contextlib
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.paths import KERNEL_LOG, KERNEL_MARKER, Competition
from cspine_kit.core.runs import (
    file_hash,
    fingerprint,
    is_fresh,
    listing_fingerprint,
    publish,
    read_json,
    write_json,
)
from cspine_kit.infer.answer import Answer, cause_of
from cspine_kit.infer.log import PRIORS_ONLY, SOURCES, KernelLog
from cspine_kit.infer.manifest import MANIFEST, PRIORS
from cspine_kit.infer.origin import note_of, origin_of
from cspine_kit.infer.patience import Patience, within
from cspine_kit.infer.studies.pulse import pulse
from cspine_kit.infer.studies.stream import Run
from cspine_kit.infer.submission import (
    Submission,
    finished_rows,
    listed_rows,
    prior_probs,
    read_submission,
)

PUBLIC_PRIORS = dict(
    zip(TARGETS, (0.103, 0.193, 0.051, 0.075, 0.110, 0.184, 0.256, 0.531), strict=True)
)
"""Best constants of form A on the real train.csv, for a bundle whose own cannot be read."""


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
    origin: str = ""

    def summary(self) -> str:
        """One line for the console, what must be known about it, the first causes of fallbacks."""
        counts = ", ".join(f"{self.sources[s]} {s}" for s in SOURCES if self.sources.get(s))
        lines = [f"{self.rows} rows; studies by source: {counts}; {self.seconds:.1f} s"]
        lines += [f"stopped: {self.stopped}"] if self.stopped else []
        lines += [note] if (note := note_of(self.origin)) else []
        return "\n".join([*lines, *(f"  {u}: {c}" for u, c in list(self.causes.items())[:5])])

    def require_predictions(self) -> None:
        """Refuse a run whose rows are all priors; for a run by hand, not for a hidden one.

        Raises:
            ArtifactError: nothing was predicted; names the first cause.
        """
        if not any(self.sources.get(source) for source in SOURCES if source != PRIORS_ONLY):
            cause = next(iter(self.causes.values()), "test.csv asks for no study")
            raise ArtifactError(
                f"the submission is written, but all of its {self.rows} rows are priors: {cause}"
            )


def _priors(bundle: Path, log: KernelLog) -> dict[str, float]:
    try:
        raw = within(Patience.study_s, read_json, bundle / PRIORS)
        found = {target: float(raw[target]) for target in TARGETS}
        if not all(0.0 < p < 1.0 for p in found.values()):
            raise ValueError(f"not all inside (0, 1): {found}")
        return found
    except Exception as error:  # noqa: BLE001 - the public ones do
        log.write("fault", stage="priors", cause=cause_of(error))
        return PUBLIC_PRIORS


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM raises `Stopped` in the main thread."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        # A second one must not disturb the last write.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_kernel(
    competition_dir: Path,
    bundle: Path,
    out: Path,
    *,
    hours: float | None = None,
    spent_s: float = 0.0,
    patience: Patience | None = None,
    every_device: bool = False,
    resume: bool = False,
) -> KernelReport:
    """Predict every row of test.csv; from the start on a complete, valid submission is on disk.

    Args:
        competition_dir: folder with test.csv and test_images/.
        bundle: folder that `build_bundle` wrote.
        out: the submission; log, predictions and features go beside it.
        hours: time limit; by default the bundle's `kernel.hours`.
        spent_s: seconds of it that were spent before this call.
        patience: after how long what hangs is given up.
        every_device: wait for each to load, though others have answered everything.
        resume: go on where a run that died left its submission and log.

    Raises:
        DataError: test.csv itself cannot be used, or no submission could be written at all (a disk
            that is full from the first to the last write). What fails in between ends no run.
    """
    started = time.monotonic()
    competition = Competition(competition_dir)
    wanted, mismatch = listed_rows(competition.test_csv, competition.sample_submission_csv)
    out.parent.mkdir(parents=True, exist_ok=True)
    log = KernelLog(out.with_name(KERNEL_LOG))
    kept, done = finished_rows(out, log.path, wanted) if resume else (None, {})
    if resume:
        log.mend()
    else:
        with contextlib.suppress(OSError):
            log.path.unlink(missing_ok=True)
    probs = prior_probs(wanted, _priors(bundle, log))
    submission = Submission(wanted, probs if kept is None else kept.fillna(probs), out, log)
    submission.write()
    log.write("priors_written", rows=len(wanted), studies_kept=len(done))
    if mismatch:
        log.write("fault", stage="listing", cause=mismatch)
    tables: dict[str, list[pd.DataFrame]] = {"predictions": [], "features": []}
    sources: Counter[str] = Counter(done.values())
    causes: dict[str, str] = {}
    stopped = None
    # Readers may still be writing when the folder goes.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, _stoppable():
        run = Run(
            *(competition, bundle, Path(scratch), log, started - spent_s, hours),
            *(patience or Patience(), every_device),
        )
        left = [uid for uid in submission.rows_of if uid not in done]
        stream = run.answers(left, submission.put_all)

        def told() -> dict[str, object]:
            studies = f"{sum(sources.values())} of {len(submission.rows_of)}"
            return {"studies done": studies, **run.told(), "sources": dict(sources)}

        bar = tqdm(stream, total=len(left), desc="kernel", unit="study", disable=None)
        try:
            with pulse(told, log):
                for answer in bar:
                    sources[answer.source] += 1
                    _note(answer, log, causes)
                    if answer.probs is not None:
                        submission.put(answer.study_uid, answer.probs)
                    said = {"predictions": answer.table, "features": answer.features}
                    for name, rows in said.items():
                        if rows is not None:
                            tables[name].append(rows)
        except Stopped:
            stopped = "SIGTERM"
            log.write("stopped", cause=stopped, studies=sum(sources.values()))
        finally:
            submission.finish()
    read_submission(out, wanted["row_id"])
    _write_tables(tables, out, log)
    seconds = time.monotonic() - started
    origin = origin_of(bundle)
    report = KernelReport(len(wanted), dict(sources), causes, seconds, stopped, origin)
    log.write("end", studies=len(submission.rows_of), sources=report.sources, seconds=seconds)
    return report


def _write_tables(tables: dict[str, list[pd.DataFrame]], out: Path, log: KernelLog) -> None:
    """Write what every model said beside the submission; a disk that is full costs only this."""
    for name, parts in tables.items():
        path = out.with_name(f"{name}.parquet")
        try:
            path.unlink(missing_ok=True)
            if parts:
                with publish(path) as temporary:
                    pd.concat(parts, ignore_index=True).to_parquet(temporary, index=False)
        except OSError as error:
            log.write("fault", stage=name, cause=cause_of(error))


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
        ArtifactError: the submission is written, but holds nothing but priors.
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
    report.require_predictions()
    if report.stopped is None:
        made = {"sha256": file_hash(out), "manifest": manifest, "hours": hours}
        write_json(marker, {**asdict(report), **made}, key)
    return report.summary()

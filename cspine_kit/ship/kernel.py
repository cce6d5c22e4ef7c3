"""The inference that Kaggle runs, run anywhere: test studies in, a full submission out, always.

In: a competition folder and a bundle. Out: `submission.csv`, `kernel_log.jsonl` and
`predictions.parquet` beside it. Example::

    report = run_kernel(Path("/kaggle/input/..."), bundle, Path("submission.csv"))

A complete submission of priors is written before anything heavy and replaced atomically as studies
finish. A study that fails keeps its priors and costs no other; the log says why.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config, load_config
from cspine_kit.core.errors import CSpineError, DataError
from cspine_kit.core.paths import Competition, is_safe_uid
from cspine_kit.core.runs import (
    file_hash,
    fingerprint,
    is_fresh,
    listing_fingerprint,
    publish,
    read_json,
    write_json,
)
from cspine_kit.data.dicom import read_study
from cspine_kit.data.volumes import Volume, make_volume
from cspine_kit.ship.bundle import MANIFEST, open_bundle
from cspine_kit.ship.submission import prior_probs, read_wanted_rows, write_submission
from cspine_kit.vision.names import VERTEBRA

PUBLIC_PRIORS = dict(
    zip(TARGETS, (0.103, 0.193, 0.051, 0.075, 0.110, 0.184, 0.256, 0.531), strict=True)
)
"""Best constants of form A on the real train.csv, for a bundle whose own cannot be read."""


@dataclass
class KernelLog:
    """Append-only JSON lines: one event per study and per fault, flushed as they happen."""

    path: Path
    counts: dict[str, int] = field(default_factory=dict)

    def write(self, event: str, **details: object) -> None:
        """Append one event."""
        self.counts[event] = self.counts.get(event, 0) + 1
        line = json.dumps({"event": event, "time": round(time.time(), 3), **details}, default=str)
        with self.path.open("a") as handle:
            handle.write(line + "\n")


@dataclass(frozen=True)
class KernelReport:
    """How a kernel run ended."""

    rows: int
    from_models: int
    from_priors: dict[str, str]
    seconds: float

    def summary(self) -> str:
        """One line for the console, and the first causes of missing studies."""
        line = (
            f"{self.rows} rows: {self.from_models} studies from the models, "
            f"{len(self.from_priors)} from the priors, {self.seconds:.1f} s"
        )
        causes = [f"  {uid}: {cause}" for uid, cause in list(self.from_priors.items())[:5]]
        return "\n".join([line, *causes])


class Ensemble:
    """Every fold chain of a bundle: vertebra k -> crops k -> members k -> statistics -> boosters k.

    torch and LightGBM are imported when an ensemble is loaded, not with this module: priors must be
    on disk before anything heavy starts.
    """

    def __init__(self, root: Path) -> None:
        """Load every model below `root`, a tree laid out by `open_bundle`."""
        from cspine_kit.stack.booster import Stack
        from cspine_kit.vision.model import load_model
        from cspine_kit.vision.predict import set_device_threads

        self.config: Config = load_config(root / "config.yaml")
        device = set_device_threads(self.config)
        folds = range(self.config.folds.n)
        self.vertebra = [
            load_model(root / "models" / VERTEBRA / f"fold_{k}").to(device) for k in folds
        ]
        self.members = {
            name: [load_model(root / "models" / name / f"fold_{k}").to(device) for k in folds]
            for name in self.config.members
        }
        self.stack = Stack.load(root / "stack" / "models")

    def levels(self, volume: Volume) -> list[pd.DataFrame]:
        """The seven ordered levels of a study by each fold's vertebra model."""
        from cspine_kit.vision.predict import decode_study, predict_vertebra

        batch = self.config.kernel.batch_size
        return [decode_study(predict_vertebra(m, volume, batch), volume) for m in self.vertebra]

    def tables(self, volume: Volume) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Slice rows of all members and folds, and the crops, of one study (fold -1)."""
        from cspine_kit.vision.predict import predict_fracture

        slices, crops = [], []
        for fold, levels in enumerate(self.levels(volume)):
            crops.append(levels.assign(study_uid=volume.study_uid, model_fold=fold))
            for name, models in self.members.items():
                rows = predict_fracture(models[fold], volume, levels, self.config.kernel.batch_size)
                slices.append(
                    rows.assign(member=name, study_uid=volume.study_uid, model_fold=fold, fold=-1)
                )
        return pd.concat(slices, ignore_index=True), pd.concat(crops, ignore_index=True)

    def predict(self, volume: Volume) -> pd.DataFrame:
        """Predictions of the stack and of every named baseline (contract `predictions`)."""
        from cspine_kit.stack.aggregate import aggregate

        return self.stack.predict_all(aggregate(*self.tables(volume)))


def load_volume(folder: Path, study_uid: str, config: Config) -> tuple[Volume, tuple[str, ...]]:
    """Read one study and make the volume the networks see; also the reader's problem codes."""
    study = read_study(folder, study_uid)
    return make_volume(study, config.cache), study.problems


def _priors(bundle: Path, log: KernelLog) -> dict[str, float]:
    try:
        return {t: float(p) for t, p in read_json(bundle / "priors.json").items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        log.write("priors_unreadable", cause=f"{type(error).__name__}: {error}")
        return PUBLIC_PRIORS


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, CSpineError) else f"{type(error).__name__}: {error}"


def _load(bundle: Path, scratch: Path, log: KernelLog) -> Ensemble | str:
    """The ensemble, or why there is none (then the priors stand)."""
    try:
        return Ensemble(open_bundle(bundle, scratch))
    except Exception as error:  # noqa: BLE001 - without models the priors still stand
        cause = f"no models: {_cause(error)}"
        log.write("models_unusable", cause=cause)
        return cause


def _predict_study(
    ensemble: Ensemble, competition: Competition, uid: str, log: KernelLog
) -> pd.DataFrame | str:
    """Predictions of one study, or why it keeps its priors; never stops the others."""
    start = time.monotonic()
    try:
        if not is_safe_uid(uid):
            raise DataError(f"study id {uid!r} is not digits and dots; refused as a path")
        folder = competition.images("test", uid)
        if not folder.is_dir():
            raise DataError(f"study {uid}: there is no folder {folder}")
        volume, problems = load_volume(folder, uid, ensemble.config)
        read_s = time.monotonic() - start
        predictions = ensemble.predict(volume)
        if not predictions["prob"].between(0, 1, inclusive="neither").all():
            raise DataError(f"study {uid}: a probability outside (0, 1)")
    except Exception as error:  # noqa: BLE001 - the other studies must still be predicted
        cause = _cause(error)
        log.write("study_from_priors", study_uid=uid, cause=cause)
        return cause
    log.write(
        "study",
        study_uid=uid,
        source="models",
        problems=problems,
        slices=len(volume.z_mm),
        read_s=round(read_s, 3),
        total_s=round(time.monotonic() - start, 3),
    )
    return predictions


def run_kernel_of(config: Config, bundle: Path, out: Path) -> str:
    """Run the kernel on a config's own competition, unless it was run on exactly this.

    Returns:
        A line that says what happened.
    """
    competition = Competition(config.competition.dir)
    key = fingerprint(
        file_hash(bundle / MANIFEST) if (bundle / MANIFEST).exists() else None,
        file_hash(competition.test_csv) if competition.test_csv.exists() else None,
        listing_fingerprint(competition.root / "test_images"),
    )
    marker = out.with_name("kernel.json")
    if out.exists() and is_fresh(marker, key) and read_json(marker)["sha256"] == file_hash(out):
        return f"{out} is up to date"
    report = run_kernel(competition.root, bundle, out)
    write_json(marker, {**asdict(report), "sha256": file_hash(out)}, key)
    return report.summary()


def run_kernel(competition_dir: Path, bundle: Path, out: Path) -> KernelReport:
    """Predict every row of test.csv and write a valid submission, whatever happens on the way.

    Args:
        competition_dir: folder with test.csv and test_images/.
        bundle: folder that `build_bundle` wrote.
        out: the submission; `kernel_log.jsonl` and `predictions.parquet` go beside it.

    Raises:
        DataError: test.csv itself cannot be used; nothing else ends a run.
    """
    start = time.monotonic()
    competition = Competition(competition_dir)
    wanted = read_wanted_rows(competition.test_csv)
    out.parent.mkdir(parents=True, exist_ok=True)
    log = KernelLog(out.with_name("kernel_log.jsonl"))
    log.path.unlink(missing_ok=True)
    probs = prior_probs(wanted, _priors(bundle, log))
    write_submission(wanted, probs, out)
    log.write("priors_written", rows=len(wanted))
    rows_of = {str(uid): group.index for uid, group in wanted.groupby("study_uid", sort=False)}
    from_priors: dict[str, str] = {}
    tables: list[pd.DataFrame] = []
    with tempfile.TemporaryDirectory() as scratch:
        ensemble = _load(bundle, Path(scratch), log)
        for uid, rows in tqdm(rows_of.items(), desc="kernel", unit="study"):
            if isinstance(ensemble, str):
                from_priors[uid] = ensemble
                continue
            predictions = _predict_study(ensemble, competition, uid, log)
            if isinstance(predictions, str):
                from_priors[uid] = predictions
                continue
            shipped = predictions[predictions["model"] == ensemble.stack.ships]
            probability = shipped.set_index("target")["prob"]
            known = rows[wanted.loc[rows, "target"].isin(TARGETS)]
            probs.loc[known] = wanted.loc[known, "target"].map(probability)
            write_submission(wanted, probs, out)
            tables.append(predictions)
    if tables:
        with publish(out.with_name("predictions.parquet")) as temporary:
            pd.concat(tables, ignore_index=True).to_parquet(temporary, index=False)
    report = KernelReport(len(wanted), len(tables), from_priors, time.monotonic() - start)
    log.write("end", studies=len(rows_of), from_models=len(tables), seconds=report.seconds)
    return report

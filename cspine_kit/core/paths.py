"""Where files lie: the competition's layout, a config's run folder, and ids that become paths.

In: a root folder or a config name. Out: paths, never created here. Example::

    >>> competition = Competition(Path("data/rsna"))
    >>> competition.images("train", "1.2.826.0.1.3680043.6200").as_posix()
    'data/rsna/train_images/1.2.826.0.1.3680043.6200'
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from cspine_kit.core.errors import DataError

Split = Literal["train", "test"]

BOXES_CSV_COLUMNS = ("StudyInstanceUID", "x", "y", "width", "height", "slice_number")
"""Header of train_bounding_boxes.csv; slice_number is the number in the file's name."""

MASK_ENDINGS = (".nii", ".nii.gz")

FINDER = Path(__file__).resolve().parents[1] / "finder"
"""Folder of the level finder that ships with the kit: weights, model card."""
FINDER_WEIGHTS = FINDER / "weights.safetensors"

SUBMISSION, KERNEL_LOG = "submission.csv", "kernel_log.jsonl"
"""What a kernel leaves in its working folder."""

RESULTS, KERNEL_MARKER = "results.csv", "kernel.json"
"""What `cspine score` and `cspine kernel --config` leave beside a config's submission."""

COMPETITION = "competition"
"""Source, in table `studies`, of what lies in the competition's own folder."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_LIMIT = 64
"""DICOM PS3.5 section 9.1: digits and dots, at most 64 characters."""


def is_safe_uid(value: str) -> bool:
    """True where `value` is a DICOM UID and therefore safe as a folder name."""
    return len(value) <= _UID_LIMIT and _UID.fullmatch(value) is not None


def safe_uid(value: str) -> str:
    """Return `value` where it is safe as a folder name.

    Raises:
        DataError: anything but digits and dots (an id from outside becomes a path).
    """
    if not is_safe_uid(value):
        raise DataError(
            f"StudyInstanceUID {value!r} is not digits and dots (at most {_UID_LIMIT}); "
            "it would become a path, so the row is refused"
        )
    return value


def _unfolded(folder: Path) -> Path:
    """`folder`, or the folder of its own name inside it, as unzipping `train_images.zip` into
    `train_images/` leaves it."""
    inner = folder / folder.name
    try:
        return inner if inner.is_dir() else folder
    except OSError:
        return folder


@dataclass(frozen=True)
class Competition:
    """A folder in the layout of the RSNA 2022 competition, and others whose studies are learned
    from beside its own.

    `train_images/train_images/` and the like, one folder too deep, are found.
    """

    root: Path
    extra: tuple[Path, ...] = ()

    @cached_property
    def sources(self) -> "dict[str, Competition]":
        """Every folder of training studies by the name that table `studies` gives it."""
        return {COMPETITION: self, **{str(folder): Competition(folder) for folder in self.extra}}

    def holder(self, study_uid: str) -> "Competition":
        """The first folder that has the images of a training study; this one where none has."""
        uid = safe_uid(study_uid)
        places = self.sources.values() if self.extra else ()
        return next((place for place in places if (place.train_images / uid).is_dir()), self)

    @cached_property
    def train_images(self) -> Path:
        """Folders of the training studies."""
        return _unfolded(self.root / "train_images")

    @cached_property
    def test_images(self) -> Path:
        """Folders of the test studies."""
        return _unfolded(self.root / "test_images")

    @cached_property
    def segmentations(self) -> Path:
        """NIfTI masks."""
        return _unfolded(self.root / "segmentations")

    @property
    def train_csv(self) -> Path:
        """Labels: StudyInstanceUID, patient_overall, C1..C7."""
        return self.root / "train.csv"

    @property
    def boxes_csv(self) -> Path:
        """Fracture boxes: StudyInstanceUID, x, y, width, height, slice_number."""
        return self.root / "train_bounding_boxes.csv"

    @property
    def test_csv(self) -> Path:
        """Rows to predict: row_id, StudyInstanceUID, prediction_type."""
        return self.root / "test.csv"

    @property
    def sample_submission_csv(self) -> Path:
        """row_id, fractured."""
        return self.root / "sample_submission.csv"

    @property
    def solution_csv(self) -> Path:
        """Truth of the test set in train.csv's shape; only a phantom has one."""
        return self.root / "solution.csv"

    @property
    def levels_truth(self) -> Path:
        """Which levels each study shows, and where they lie; only a phantom has it."""
        return self.root / "truth" / "levels.csv"

    def images(self, split: Split, study_uid: str) -> Path:
        """Folder of one study's DICOM files (`safe_uid` is enforced)."""
        train = split == "train"
        folder = self.holder(study_uid).train_images if train else self.test_images
        return folder / safe_uid(study_uid)

    def segmentation(self, study_uid: str) -> Path:
        """NIfTI mask of one study, `.nii` or `.nii.gz`; most studies have none."""
        return mask_in(self.holder(study_uid).segmentations, study_uid)


def mask_in(folder: Path, study_uid: str) -> Path:
    """NIfTI file of one study in a folder of them, `.nii` or `.nii.gz` (`safe_uid` is enforced)."""
    plain, packed = (folder / f"{safe_uid(study_uid)}{ending}" for ending in MASK_ENDINGS)
    return packed if packed.exists() and not plain.exists() else plain


@dataclass(frozen=True)
class RunPaths:
    """Everything one config writes under `oof/<name>/`."""

    root: Path

    @property
    def resolved_config(self) -> Path:
        """The config that the folder was made from, every default filled in (`core.resolved`)."""
        return self.root / "config.yaml"

    @property
    def folds(self) -> Path:
        """CSV study_uid, group, stratum, fold; wins over the generator."""
        return self.root / "folds.csv"

    @property
    def cache(self) -> Path:
        """Compact volumes of the studies: `coarse/<study_uid>.arrow`, `fine/<study_uid>.arrow`."""
        return self.root / "cache"

    def table(self, name: str) -> Path:
        """One parquet table by its contract's name (`core.tables`)."""
        return self.root / "tables" / f"{name}.parquet"

    def model(self, member: str, fold: int) -> Path:
        """Folder that owns one fold model and its out-of-fold predictions."""
        return self.root / "models" / member / f"fold_{fold}"

    @property
    def stack(self) -> Path:
        """Boosters, scores and predictions of the stack."""
        return self.root / "stack"

    @property
    def bundle(self) -> Path:
        """The Kaggle dataset folder."""
        return self.root / "bundle"

    @property
    def upload(self) -> Path:
        """The bundle as the two datasets that go to Kaggle."""
        return self.root / "upload"

    @property
    def training(self) -> Path:
        """The dataset of a training on Kaggle."""
        return self.root / "training"

    @property
    def report(self) -> Path:
        """The page that shows the run (`cspine report`)."""
        return self.root / "report.html"

    @property
    def ablation(self) -> Path:
        """Rows of grids, each a run folder of its own, and their tables (`cspine ablate`)."""
        return self.root / "ablation"

    @property
    def proof(self) -> Path:
        """A phantom competition whose test study travels with the bundle."""
        return self.root / "proof"

"""What a study's headers alone say, for the day its pixels cannot be read or its models fail.

In: tables `slices` and `studies` of a run, labels. Out: a `HeaderFallback`: levels and the eight
probabilities of any study from slice positions, spacing and matrix. Example::

    fallback = HeaderFallback.load(paths.stack / "header")
    fallback.vertebra_logits(study)            # (nz, 7), for data.levels.decode_levels
    fallback.predict(study)["patient_overall"]

Levels come from a Gaussian process on the masked training studies (`ends`), the probabilities from
the stack's own heads on header features alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.config import StackConfig
from cspine_kit.core.errors import ArtifactError, TableError
from cspine_kit.core.numbers import FloatArray, IntArray, logit
from cspine_kit.core.runs import derive_seed, publish, read_json, write_json
from cspine_kit.core.tables import MASK_COLUMNS
from cspine_kit.data.centers import LEVEL_EXTENT_MM, LEVEL_PITCH_MM
from cspine_kit.data.reader.scans.geometry import Geometry
from cspine_kit.stack.fallback.ends import EndsModel, Scan, one_peak
from cspine_kit.stack.features.names import ALL, SITE
from cspine_kit.stack.features.positions import position_features
from cspine_kit.stack.features.segments import Segments
from cspine_kit.stack.features.units import SHOWN
from cspine_kit.stack.model.design import FeatureTable
from cspine_kit.stack.model.folds import Progress
from cspine_kit.stack.model.linear import one_blas_thread
from cspine_kit.stack.model.nested import Sample, cross_fit, fit_heads
from cspine_kit.stack.model.stack import Heads
from cspine_kit.stack.scores.baselines import all_predictions

HEADERS = "headers"
"""Name of the header-only model among the predictions."""

FILE = "header.json"
HEADER_STACK = StackConfig(
    form="per_exam",
    folds=5,
    seeds=3,
    rounds=600,
    patience=60,
    learning_rate=0.03,
    num_leaves=15,
    min_rows=10,
    feature_fraction=0.4,
    bagging_fraction=0.7,
    extra_trees=True,
    l2=2.0,
    clip=0.003,
)
"""The signal is weak and made of fine steps (a site's slice spacing): many shallow random trees."""

SUPPORT_STACK = HEADER_STACK.model_copy(update={"seeds": 1, "rounds": 200, "patience": 20})
"""The same in a tenth of the time, for where headers only support something better."""

PROB_EDGE = 0.005
"""Visibility probabilities end inside [0.005, 0.995]: headers are never surer than that."""

C4_TOP_MM, C4_SHARE = 29.0, 0.363
"""C4's center lies 29 mm plus 36.3 % of the scan's extent below its top slice: least squares on 60
masked studies of the competition; the errors spread with about 12 mm."""

TYPICAL_EXTENTS_MM = (130.0, 160.0, 190.0, 220.0, 250.0)
TYPICAL_SHIFTS_MM = (-15.0, 0.0, 15.0)
FEW_STUDIES = 30
"""Fewer studies tell nothing of sites: the heads then give the levels' rates."""

FEW_SCANS = 10
"""Below this many masked studies, typical scans are fitted beside them."""


@dataclass(frozen=True)
class Headers:
    """One study of a run's tables in `Geometry`'s words; `shown` (nz, 7) where it is masked.

    `slice_numbers` (nz,) are file numbers, NaN where a name has none.
    """

    z_mm: FloatArray
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int]
    slice_numbers: FloatArray
    shown: FloatArray | None = None


def _facts(geometry: Geometry | Headers) -> FloatArray:
    """What tells where in the scan the neck lies: extent, spacing, field and position grid."""
    z, (step, pitch, _) = geometry.z_mm, geometry.spacing_mm
    extent = float(z[0] - z[-1])
    half = abs(2 * z[0] - round(2 * z[0])) < 0.01
    field_mm = pitch * geometry.shape[0]
    return np.array([extent, np.log(max(extent, 1.0)), step, field_mm, float(half)])


def _site_features(geometry: Geometry | Headers) -> dict[str, float]:
    """What tells sites and protocols apart: slice positions, file numbers, matrix and pixels."""
    z, (step, pitch_y, pitch_x) = np.asarray(geometry.z_mm, np.float64), geometry.spacing_mm
    one = Segments(np.zeros(1, dtype=np.int64), len(z))
    rows, cols = geometry.shape
    numbers = np.asarray(geometry.slice_numbers, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    known = numbers if len(numbers) else np.ones(1)
    return {
        **{"slices": len(z), "rows": rows, "cols": cols, "pitch_y": pitch_y, "pitch_x": pitch_x},
        **{"field": pitch_y * rows, "missing": np.ptp(known) + 1.0 - len(known)},
        **{"first_number": known.min(), "reversed": float(known[-1] < known[0])},
        **{name: v[0] for name, v in position_features(z, one, np.array([step])).items()},
    }


def _site_table(headers: Mapping[str, Geometry | Headers], fold: IntArray) -> FeatureTable:
    """Header features of some studies as the stack's heads read them."""
    rows = [_site_features(own) for own in headers.values()]
    values = np.array([list(row.values()) for row in rows], dtype=np.float64)
    columns = tuple(f"{ALL}__{SITE}__{name}" for name in rows[0])
    uid = np.array(list(headers), dtype=object)
    return FeatureTable(uid, fold, fold, np.repeat(values[:, None], N_LEVELS, axis=1), columns)


def _typical_scans(spacing_mm: tuple[float, float, float], shape: tuple[int, int]) -> list[Headers]:
    """Made-up masked studies with the level pitches and extents of `data.levels`."""
    center = np.concatenate([[0.0], np.cumsum(LEVEL_PITCH_MM)])
    center -= center[3]
    scans = []
    for extent in TYPICAL_EXTENTS_MM:
        below = np.arange(0.0, extent + 0.5)
        for shift in TYPICAL_SHIFTS_MM:
            middle = C4_TOP_MM + C4_SHARE * extent + shift + center
            shown = np.abs(below[:, None] - middle) <= LEVEL_EXTENT_MM / 2
            numbers = below + 1.0
            scans.append(Headers(-below, spacing_mm, shape, numbers, shown.astype(np.float64)))
    return scans


def read_headers(slices: pd.DataFrame, studies: pd.DataFrame) -> dict[str, Headers]:
    """Geometry and masks of every study of `studies`, by study_uid.

    Args:
        slices: rows of contract `slices`; rows of other studies are ignored.
        studies: rows of contract `studies`.

    Raises:
        TableError: a study without slices.
    """
    grouped = dict(iter(slices.sort_values("z_mm", ascending=False).groupby("study_uid")))
    bare = [uid for uid in studies["study_uid"] if uid not in grouped]
    if bare:
        raise TableError(f"slices: studies without a row: {bare[:SHOWN]}")
    headers = {}
    for row in studies.to_dict("records"):
        own = grouped[row["study_uid"]]
        masks = own[list(MASK_COLUMNS)].to_numpy(np.float64)
        headers[str(row["study_uid"])] = Headers(
            own["z_mm"].to_numpy(np.float64),
            (row["spacing_z"], row["spacing_y"], row["spacing_x"]),
            (int(row["rows"]), int(row["cols"])),
            own["slice_number"].to_numpy(np.float64),
            None if np.isnan(masks).all() else (masks > 0).astype(np.float64),
        )
    return headers


@dataclass(frozen=True)
class HeaderFallback:
    """Levels and probabilities from geometry; `low`, `high` (facts,) are the range fitted on.

    `heads` are fitted on all training studies; None where their files could not be read.
    """

    ends: EndsModel
    low: FloatArray
    high: FloatArray
    heads: Heads | None = None

    def vertebra_logits(self, geometry: Geometry | Headers) -> FloatArray:
        """Log-odds (nz, 7) that each slice shows C1..C7; each level has one peak, in order."""
        facts = np.clip(_facts(geometry), self.low, self.high)
        probs = one_peak(self.ends.probs(Scan(geometry.z_mm[0] - geometry.z_mm, facts)))
        return logit(np.clip(probs, PROB_EDGE, 1.0 - PROB_EDGE))

    def predict(self, geometry: Geometry | Headers) -> dict[str, float]:
        """Probability in (0, 1) of each target."""
        own = self.rows({"": geometry})
        return dict(zip(own["target"], own["prob"], strict=True))

    def rows(self, headers: Mapping[str, Geometry | Headers]) -> pd.DataFrame:
        """Rows of contract `predictions`, model `headers`, for test studies.

        Raises:
            ArtifactError: the heads could not be read.
        """
        if self.heads is None:
            raise ArtifactError("the header heads of the bundle could not be read")
        fold = pd.Series(-1, index=list(headers))
        table = _site_table(headers, fold.to_numpy(np.int64)).only(self.heads.columns)
        probs = np.clip(self.heads.predict(table), HEADER_STACK.clip, 1.0 - HEADER_STACK.clip)
        return all_predictions(table.study_uid, {HEADERS: probs}, fold)

    def save(self, folder: Path) -> None:
        """Write header.json and the boosters as LightGBM text, atomically."""
        with publish(folder) as temporary:
            temporary.mkdir()
            heads = self.heads and self.heads.save(temporary, HEADERS)
            write_json(temporary / FILE, vars(self) | {"ends": vars(self.ends), "heads": heads})

    @classmethod
    def load(cls, folder: Path, faults: dict[str, str] | None = None) -> "HeaderFallback":
        """Read what `save` wrote.

        Args:
            folder: holds header.json and the boosters.
            faults: gets heads whose files cannot be read, by "header heads", instead of an error.

        Raises:
            ArtifactError: no header.json in the folder.
        """
        if not (folder / FILE).exists():
            raise ArtifactError(f"no {FILE} in {folder}; run make stack first")
        raw = read_json(folder / FILE)
        heads = None
        try:
            heads = Heads.load(folder, raw["heads"])
        except Exception as error:
            if faults is None:
                raise
            faults["header heads"] = f"{type(error).__name__}: {error}"
        low, high = np.asarray(raw["low"]), np.asarray(raw["high"])
        return cls(EndsModel.from_json(raw["ends"]), low, high, heads)


def fit_ends(headers: list[Headers]) -> tuple[EndsModel, FloatArray, FloatArray]:
    """The level model, and the range (low, high) of the facts it was fitted on.

    Masked studies teach it; typical scans join where they are few or never show some level.
    """
    scans = [h for h in headers if h.shown is not None]
    seen = np.array([np.asarray(h.shown).any(axis=0) for h in scans]).reshape(-1, len(LEVELS))
    if len(scans) < FEW_SCANS or not seen.any(axis=0).all():
        scans = [*scans, *_typical_scans(headers[0].spacing_mm, headers[0].shape)]
    facts = np.array([_facts(h) for h in scans])
    model = EndsModel(
        [Scan(h.z_mm[0] - h.z_mm, f, h.shown) for h, f in zip(scans, facts, strict=True)]
    )
    return model, facts.min(axis=0), facts.max(axis=0)


def fit_fallback(
    headers: Mapping[str, Headers],
    labels: pd.DataFrame,
    config: StackConfig,
    *,
    seed: int,
    jobs: int = 0,
    progress: Progress | None = None,
) -> tuple[HeaderFallback, pd.DataFrame]:
    """The level model on all masked studies, and header heads on all studies.

    Args:
        headers: of `read_headers`, every study of `labels`.
        labels: study_uid, the eight targets, fold, and optionally group.
        config: the stack's section; its form is used.
        seed, jobs, progress: as in `each_fold`.

    Returns:
        The fallback, and out-of-fold rows of contract `predictions`, model `headers`.
    """
    fold = labels["fold"].to_numpy(np.int64)
    own = SUPPORT_STACK.model_copy(update={"form": config.form})
    table = _site_table({uid: headers[uid] for uid in labels["study_uid"]}, fold)
    table = table if table.n >= FEW_STUDIES else table.only(())
    sample = Sample(table, labels.reset_index(drop=True), own)
    probs, _, _ = cross_fit(sample, fold, seed=seed, jobs=jobs, progress=progress)
    with one_blas_thread():
        heads, _ = fit_heads(sample, seed=derive_seed(seed, HEADERS))
    rows = all_predictions(table.study_uid, {HEADERS: probs}, pd.Series(fold, table.study_uid))
    return HeaderFallback(*fit_ends(list(headers.values())), heads), rows

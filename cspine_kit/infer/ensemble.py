"""Every fold chain of a bundle on one study: vertebra k -> crops k -> members k -> stack k.

In: a bundle laid out by `open_bundle`, a `Volume`. Out: a `Prediction`. Example::

    ensemble = Ensemble(open_bundle(bundle, scratch), devices()[0])
    prediction = ensemble.predict(volume, folder)
    prediction.table                      # contract `predictions`: what ships, and every baseline

The out-of-fold run calls the same `predict_vertebra`, `decode_study`, `predict_fracture` and
`aggregate`. What fails on the way is replaced by the next best thing and named in `faults`: a
member by rows imputed from another, a vertebra model by levels from headers alone.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cspine_kit.core.config import Config, load_config
from cspine_kit.core.errors import StudyError
from cspine_kit.core.runs import read_json
from cspine_kit.core.tables import SPINE_BOX_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.reader.dicom import read_geometry
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.infer.governor import Costs, Effort, ladder
from cspine_kit.infer.reading import cause_of
from cspine_kit.stack.external.extras import Extras
from cspine_kit.stack.fallback.headers import HeaderFallback
from cspine_kit.stack.fallback.imputer import FILE as IMPUTER
from cspine_kit.stack.fallback.imputer import Imputer
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.model.stack import Stack
from cspine_kit.vision.model import load_model
from cspine_kit.vision.names import VERTEBRA
from cspine_kit.vision.predict import (
    decode_study,
    predict_fracture,
    predict_vertebra,
    set_device_threads,
)


@dataclass
class Prediction:
    """What the networks say about one study, what it cost, and what stood in for what failed.

    `table` holds rows of contract `predictions` of every model, `features` those of `aggregate`.
    `faults` maps a stage ("vertebra fold 0", "effnetv2s fold 1") to its cause; `levels_from` is
    "image", or "header_levels" where no vertebra model gave levels.
    """

    table: pd.DataFrame
    features: pd.DataFrame
    costs: Costs
    faults: dict[str, str] = field(default_factory=dict)
    levels_from: str = "image"


@dataclass
class Trace:
    """Seconds of every stage, and what failed why, of one study."""

    seconds: dict[str, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to those of a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


class Ensemble:
    """The models of a bundle on one device."""

    def __init__(self, root: Path, device: str | None = None) -> None:
        """Load every model below `root`, a tree laid out by `open_bundle`."""
        self.stack = Stack.load(root / "stack" / "models")
        config: Config = load_config(root / "config.yaml")
        kept = {name: m for name, m in config.members.items() if name in self.stack.members}
        self.config = config.model_copy(update={"members": kept})
        device = device or set_device_threads(self.config)
        folds = range(self.config.folds.n)
        self.vertebra = [
            load_model(root / "models" / VERTEBRA / f"fold_{k}").to(device) for k in folds
        ]
        self.members = {
            name: [load_model(root / "models" / name / f"fold_{k}").to(device) for k in folds]
            for name in self.config.members
        }
        self.headers = HeaderFallback.load(root / "stack" / "header")
        self.imputer = Imputer.from_json(read_json(root / "stack" / IMPUTER))
        self.extras = Extras.load(root / "stack")

    @property
    def efforts(self) -> list[Effort]:
        """From full to least, as the config degrades."""
        return ladder(self.config, self.imputer.order)

    def levels(self, volume: Volume, fold: int, stride: int = 1) -> pd.DataFrame:
        """The seven ordered levels of a study by one fold's vertebra model."""
        batch = self.config.kernel.batch_size
        rows = predict_vertebra(self.vertebra[fold], volume, batch, stride=stride)
        return decode_study(rows, volume)

    def header_levels(self, volume: Volume, folder: Path) -> pd.DataFrame:
        """The seven levels from headers alone, in the middle of the cached field."""
        logits = self.headers.vertebra_logits(read_geometry(folder, volume.study_uid))
        middle = (np.array([volume.voxels.shape[1:]], dtype=np.float64) - 1) / 2
        y, x = volume.to_native_px(middle)[0]
        rows = pd.DataFrame(logits, columns=list(VERTEBRA_COLUMNS))
        rows[list(SPINE_BOX_COLUMNS)] = (y, x, y, x)
        rows.insert(0, "slice_idx", np.arange(len(rows)))
        return decode_study(rows, volume)

    def _fold_rows(
        self, volume: Volume, levels: pd.DataFrame, *, fold: int, effort: Effort, trace: Trace
    ) -> list[pd.DataFrame]:
        """Slice rows of every member of one fold, those that did not run imputed.

        Empty where no member gave anything: the other folds may.
        """
        kernel = self.config.kernel
        found: dict[str, pd.DataFrame] = {}
        for name in effort.members:
            try:
                with trace.stage(name):
                    found[name] = predict_fracture(
                        self.members[name][fold],
                        volume,
                        levels,
                        kernel.batch_size,
                        views=effort.views,
                        stride=effort.stride,
                    )
            except Exception as error:  # noqa: BLE001 - the other members must still speak
                trace.faults[f"{name} fold {fold}"] = cause_of(error)
        if not found:
            return []
        missing = [name for name in self.members if name not in found]
        rows = {**found, **{name: self.imputer.rows(name, found) for name in missing}}
        return [rows[name].assign(member=name) for name in self.members]

    def tables(
        self,
        volume: Volume,
        folder: Path,
        effort: Effort | None = None,
        trace: Trace | None = None,
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Slice rows of all members, and the crops, of one study (fold -1).

        Args:
            volume: the study.
            folder: its files, whose headers give levels where a vertebra model gives none.
            effort: folds, members, views and stride; full by default.
            trace: gets seconds and faults.

        Raises:
            StudyError: no fold chain gave anything.
        """
        effort, trace = effort or self.efforts[0], trace or Trace()
        slices: list[pd.DataFrame] = []
        crops: list[pd.DataFrame] = []
        for fold in range(effort.folds):
            try:
                with trace.stage(VERTEBRA):
                    levels = self.levels(volume, fold, effort.stride)
            except Exception as error:  # noqa: BLE001 - headers tell about where levels are
                trace.faults[f"{VERTEBRA} fold {fold}"] = cause_of(error)
                levels = self.header_levels(volume, folder)
            rows = self._fold_rows(volume, levels, fold=fold, effort=effort, trace=trace)
            if rows:
                own = {"study_uid": volume.study_uid, "model_fold": fold}
                crops.append(levels.assign(**own))
                slices.extend(part.assign(**own, fold=-1) for part in rows)
        if not slices:
            raise StudyError(volume.study_uid, "; ".join(dict.fromkeys(trace.faults.values())))
        return pd.concat(slices, ignore_index=True), pd.concat(crops, ignore_index=True)

    def predict(self, volume: Volume, folder: Path, effort: Effort | None = None) -> Prediction:
        """Predictions of the stack and of every named baseline for one study.

        Raises:
            StudyError: nothing but headers can speak for this study.
        """
        trace = Trace()
        slices, crops = self.tables(volume, folder, effort, trace)
        with trace.stage("stack"):
            features = self.extras.add(aggregate(slices, crops))
            table = self.stack.predict_all(features)
        if not table["prob"].between(0, 1, inclusive="neither").all():
            raise StudyError(volume.study_uid, "a probability outside (0, 1)")
        seconds = trace.seconds
        costs = Costs(
            vertebra_s=seconds[VERTEBRA],
            members_s={name: seconds[name] for name in self.members if name in seconds},
            stack_s=seconds["stack"],
        )
        lost = sum(stage.startswith(f"{VERTEBRA} ") for stage in trace.faults)
        source = "header_levels" if lost == crops["model_fold"].nunique() else "image"
        return Prediction(table, features, costs, trace.faults, source)

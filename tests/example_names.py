"""The names that examples in docstrings may use; `docs/examples.md` lists them for readers.

In: the current folder, a clone's in which the demo ran. Out: objects made from its files on demand.
Example: `Names()["volume"]`.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


class Names(Mapping[str, Any]):
    """The documented names, made from the files of the current folder when first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = READY[name](self)
        return self._made[name]

    def __getattr__(self, name: str) -> Any:
        if name not in READY:
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(READY)

    def __len__(self) -> int:
        return len(READY)


READY: dict[str, Callable[[Names], Any]] = {}


def ready(make: Callable[[Names], Any]) -> Callable[[Names], Any]:
    """Add a name; its docstring is what docs/examples.md says of it."""
    READY[make.__name__] = make
    return make


READY |= {"np": lambda _: np, "pd": lambda _: pd, "Path": lambda _: Path}


@ready
def rng(_: Names) -> Any:
    """a seeded `np.random.Generator`"""
    return np.random.default_rng(7)


# ---- a run ---------------------------------------------------------------------------------------


@ready
def config(_: Names) -> Any:
    """the `Config` of `configs/demo.yaml`"""
    from cspine_kit.core.config import load_config

    return load_config(Path("configs/demo.yaml"))


@ready
def paths(_: Names) -> Any:
    """`RunPaths` of its finished run"""
    from cspine_kit.core.paths import RunPaths

    return RunPaths(Path("oof/demo"))


@ready
def competition(names: Names) -> Any:
    """its `Competition`, with a truth of the test set"""
    from cspine_kit.core.paths import Competition

    return Competition(names.config.competition.dir)


@ready
def bundle(names: Names) -> Any:
    """`paths.bundle`, the folder of its bundle"""
    return names.paths.bundle


@ready
def submission(_: Names) -> Any:
    """path of its submission, with the kernel's files beside it"""
    return Path("submissions/demo/submission.csv")


@ready
def events(names: Names) -> Any:
    """`KernelEvents` of its kernel's log"""
    from cspine_kit.infer.log import read_kernel_log

    return read_kernel_log(names.submission.with_name("kernel_log.jsonl"))


# ---- one study -----------------------------------------------------------------------------------


@ready
def uid(names: Names) -> Any:
    """a training study that has a mask"""
    masked = names.studies[names.studies["has_mask"]]
    return str(masked["study_uid"].iloc[0])


@ready
def folder(names: Names) -> Any:
    """its DICOM files, `competition.images("train", uid)`: 1.dcm, 2.dcm, ..."""
    return names.competition.images("train", names.uid)


@ready
def path(names: Names) -> Any:
    """one of them, `folder / "17.dcm"`"""
    return names.folder / "17.dcm"


@ready
def header(names: Names) -> Any:
    """the `Header` of `path`"""
    from cspine_kit.data.reader.headers.files import read_header

    return read_header(names.folder, names.path.name)


@ready
def compressed(names: Names) -> Any:
    """path of the same slice as a JPEG Lossless file"""
    import pydicom

    from cspine_kit.phantom.scanner.files import compress

    file = pydicom.dcmread(names.path)
    compress(file, "jpeg_lossless")
    target = Path("compressed") / names.path.name
    target.parent.mkdir()
    file.save_as(target, enforce_file_format=True)
    return target


@ready
def study(names: Names) -> Any:
    """the `Study` that the reader makes of `folder`; a `Geometry` too"""
    from cspine_kit.data.reader.dicom import read_study

    return read_study(names.folder)


@ready
def volumes(names: Names) -> Any:
    """its `Volumes`, as the kernel reads them"""
    from cspine_kit.data.volumes.read import read_both

    return read_both(names.folder, names.config.volumes)[0]


@ready
def volume(names: Names) -> Any:
    """its coarse `Volume`"""
    return names.volumes.coarse


@ready
def fine(names: Names) -> Any:
    """its fine `Volume`"""
    return names.volumes.fine


@ready
def own_levels(names: Names) -> Any:
    """its seven rows of table `levels`, by the vertebra model that did not see it"""
    own = names.levels[names.levels["study_uid"] == names.uid]
    return own[own["model_fold"] == names.fold_of[names.uid]].reset_index(drop=True)


# ---- tables --------------------------------------------------------------------------------------


def _table(name: str, told: str) -> Callable[[Names], Any]:
    def make(names: Names) -> Any:
        from cspine_kit.core.tables import read_table

        return read_table(names.paths.table(name), name)

    make.__doc__ = f"table `{name}`: {told}"
    return make


READY |= {
    "slices": _table("slices", "the geometry of every slice"),
    "levels": _table("levels", "seven levels of each study and fold model"),
    "oof_slices": _table("oof_slices", "out-of-fold logits of every member and slice"),
    "features": _table("features", "out-of-fold statistics of every level"),
    "predictions": _table("predictions", "out-of-fold probabilities of every model"),
}


@ready
def studies(names: Names) -> Any:
    """the training rows of table `studies`"""
    from cspine_kit.core.tables import read_table

    table = read_table(names.paths.table("studies"), "studies")
    return table[table["split"] == "train"].reset_index(drop=True)


@ready
def test_features(names: Names) -> Any:
    """the statistics of the test studies, as the kernel left them"""
    return pd.read_parquet(names.submission.with_name("features.parquet"))


@ready
def labels(names: Names) -> Any:
    """study_uid, the eight targets and fold of the training studies"""
    from cspine_kit.core.anatomy import TARGETS

    own = names.studies[["study_uid", *TARGETS]]
    return own.assign(fold=own["study_uid"].map(names.fold_of))


@ready
def fold_of(names: Names) -> Any:
    """fold by study_uid, a Series"""
    return pd.read_csv(names.paths.folds, dtype={"study_uid": str}).set_index("study_uid")["fold"]


@ready
def scores(names: Names) -> Any:
    """the score table of the stack"""
    return pd.read_csv(names.paths.stack / "scores.csv")


@ready
def slice_headers(names: Names) -> Any:
    """path of a parquet table of slice headers, as the header baselines want it"""
    from cspine_kit.data.reader.dicom import read_headers

    rows = [
        (uid, h.number, h.rows, h.cols, h.thickness_mm, *(h.position_mm or ()))
        for uid in names.studies["study_uid"]
        for h in read_headers(names.competition.images("train", uid))[0]
    ]
    position = [f"ImagePositionPatient_{axis}" for axis in "xyz"]
    fixed = ["StudyInstanceUID", "slice_number", "ImageHeight", "ImageWidth", "SliceThickness"]
    table = pd.DataFrame(rows, columns=[*fixed, *position])
    table.to_parquet("slice_headers.parquet")
    return Path("slice_headers.parquet")


@ready
def presence(names: Names) -> Any:
    """path of a CSV that says which of C1..C7 each slice of the masked studies shows"""
    from cspine_kit.core.anatomy import LEVELS
    from cspine_kit.core.tables import MASK_COLUMNS

    shown = names.slices.dropna(subset=list(MASK_COLUMNS))
    table = (shown[list(MASK_COLUMNS)] > 0).astype(int).set_axis(list(LEVELS), axis=1)
    table.insert(0, "StudyInstanceUID", shown["study_uid"])
    table.insert(1, "slice_number", shown["slice_number"].astype(int))
    table.to_csv("presence.csv", index=False)
    return Path("presence.csv")


# ---- models --------------------------------------------------------------------------------------


@ready
def stack(names: Names) -> Any:
    """the fitted `Stack`"""
    from cspine_kit.stack.model.stack import Stack

    return Stack.load(names.paths.stack / "models")


@ready
def fallback(names: Names) -> Any:
    """the fitted `HeaderFallback`"""
    from cspine_kit.stack.fallback.headers import HeaderFallback

    return HeaderFallback.load(names.paths.stack / "header")


@ready
def ensemble(names: Names) -> Any:
    """the `Ensemble` of the bundle"""
    from cspine_kit.infer.chains.ensemble import Ensemble
    from cspine_kit.infer.manifest import open_bundle

    return Ensemble(open_bundle(names.bundle, Path("ensemble")))


@ready
def dataset(names: Names) -> Any:
    """a `StackDataset` of `fine` with the fracture stage's targets"""
    from cspine_kit.vision.inputs.dataset import StackDataset
    from cspine_kit.vision.tasks.kinds import task_of

    model = next(iter(names.config.members.values()))
    view = task_of(model).view(names.fine, names.own_levels)
    ones = np.ones((len(view), 7), np.float32)
    view.targets = {"visible": ones, "fracture": np.zeros_like(ones)}
    return StackDataset([view], model)


# ---- phantoms and Kaggle -------------------------------------------------------------------------


@ready
def neck(_: Names) -> Any:
    """a phantom's `Neck`"""
    from cspine_kit.phantom.anatomy.spine import draw_neck

    return draw_neck(np.random.default_rng(7))


@ready
def scan(names: Names) -> Any:
    """a `Scan` of it, coarse: 48 x 48 pixels"""
    from cspine_kit.phantom.scanner.scan import draw_scan

    rng = np.random.default_rng(7)
    return draw_scan(rng, names.neck, size_px=48, difficulty="easy", place=0.5)


@ready
def grid(names: Names) -> Any:
    """`scan.grid`, the `Grid` of its voxels"""
    return names.scan.grid


@ready
def push(names: Names) -> Any:
    """a `Push` of the bundle whose datasets are ready"""
    from cspine_kit.ship.kaggle.client import KaggleClient
    from cspine_kit.ship.kaggle.parcels import write_parcels
    from cspine_kit.ship.kaggle.process import ClientProcess
    from cspine_kit.ship.kaggle.state import DatasetStage, Push, PushState

    parcels = write_parcels(names.config, names.bundle, Path("upload"))
    weights, code = (
        DatasetStage(ref=parcel.ref, digest=parcel.digest, stage="ready", version=1)
        for parcel in parcels
    )
    return Push(
        names.config,
        names.paths,
        Path("kernels/submit"),
        KaggleClient(ClientProcess(Path("oof/demo/push"))),
        PushState(weights=weights, code=code),
        parcels,
    )

"""Backbones beside each other as a member of the fracture stage: loss, F1, AUC, and what they cost.

In: a config, its run folder, a member, names. Out: `oof/<name>/fracture_backbones/<member>.csv`.
Example::

    member, *_ = config.members
    own = config.members[member].model_copy(update={"epochs": 1, "slices_per_study": 2})
    brief = config.model_copy(update={"members": {**config.members, member: own}})
    rows = compare(brief, paths, member, ("tiny_cnn",), best=0)
    rows[["backbone", "loss", "f1", "auc"]]

Source document C's comparison. Each network is trained as the member is, with another backbone, on
the levels that the run's own vertebra stage found; it is judged on the studies of the fold, by the
fixed formula of source documents A and B: the mean of what slices say of a level, weighted by how
far they show it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cspine_kit.core.anatomy import LEVELS, N_LEVELS
from cspine_kit.core.config import Config
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.metric import auc
from cspine_kit.core.numbers import FloatArray, log_losses, sigmoid
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import publish, read_json
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.stages import run_fine
from cspine_kit.vision.check import check_config
from cspine_kit.vision.compare.backbones import cross_validated, milliseconds
from cspine_kit.vision.inputs.tables import open_inputs
from cspine_kit.vision.nets.backbone import OWN
from cspine_kit.vision.nets.store import load_model
from cspine_kit.vision.oof.borrow import borrow_models
from cspine_kit.vision.oof.chain import FoldChain
from cspine_kit.vision.oof.run import make_levels
from cspine_kit.vision.oof.steps import make_fracture

FOUR = ("basic_cnn", "inception_v3", "resnet50", "tf_efficientnet_b5")
"""What source document C compared, by the names of the kit, timm and torchvision."""

FOLDER = "fracture_backbones"
CALLED = 0.5
"""A level is called fractured from this probability on."""


def _with(config: Config, member: str, backbone: str) -> Config:
    """The config with that member alone, and another backbone in it."""
    own = config.members[member]
    pretrained = own.pretrained and backbone not in OWN
    changes = {"backbone": backbone, "weights": None, "pretrained": pretrained}
    return config.model_copy(update={"members": {member: own.model_copy(update=changes)}})


def judge(config: Config, paths: RunPaths, member: str, backbone: str, fold: int) -> dict[str, Any]:
    """One row: a backbone in one fold, trained where it is not there yet."""
    changed, own = _with(config, member, backbone), RunPaths(paths.root / FOLDER / backbone)
    inputs = open_inputs(paths)
    borrow_models(changed, own, paths, inputs)
    chain = FoldChain(changed, own, inputs, fold)
    make_fracture(chain, member)
    folder = own.model(member, fold)
    model = load_model(folder)
    truth, said = _judged(chain, member)
    called, hurt = said.ravel() >= CALLED, truth.ravel() > 0.5
    hits = int((called & hurt).sum())
    return {
        "backbone": backbone,
        "fold": fold,
        "studies": len(truth),
        "loss": float(log_losses(truth, said).mean()),
        "f1": 2.0 * hits / max(1, int(called.sum() + hurt.sum())),
        "auc": auc(hurt, said.ravel()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_per_epoch": float(read_json(folder / "run.json")["seconds"]) / model.config.epochs,
        "ms_per_slice": milliseconds(model, config.kernel.batch_size),
    }


def _judged(chain: FoldChain, member: str) -> tuple[FloatArray, FloatArray]:
    """Labels and probabilities of the levels of the fold's studies, (n, 7) each."""
    rows = chain.fracture_rows(member).frame()
    labels = chain.inputs.studies
    truth, said = [], []
    for uid, own in rows.groupby("study_uid", sort=True):
        shown, broken = (
            sigmoid(own[list(columns)].to_numpy(np.float64))
            for columns in (VERTEBRA_COLUMNS, FRACTURE_COLUMNS)
        )
        said.append((shown * broken).sum(axis=0) / shown.sum(axis=0))
        truth.append(labels.loc[str(uid), list(LEVELS)].to_numpy(np.float64))
    return np.array(truth).reshape(-1, N_LEVELS), np.array(said).reshape(-1, N_LEVELS)


def compare(
    config: Config, paths: RunPaths, member: str, names: Sequence[str], *, best: int = 5
) -> pd.DataFrame:
    """All backbones on fold 0, and the best few by AUC in the other folds too.

    Args:
        config: its vertebra stage is made where it is missing; the member says how to train.
        paths: its run folder, with tables and coarse volumes.
        member: a member's name.
        names: of timm or torchvision, or the kit's own.
        best: how many are cross-validated.

    Returns:
        A row for each backbone and fold, as in the CSV.

    Raises:
        ConfigError: there is no such member or backbone, or it cannot take the input.
    """
    if member not in config.members:
        raise ConfigError(
            f"member {member!r} is not in the config; there are {list(config.members)}"
        )
    for name in names:
        check_config(_with(config, member, name))
    make_levels(config, paths)
    run_fine(config, paths)

    def judged(name: str, fold: int) -> dict[str, Any]:
        return judge(config, paths, member, name, fold)

    table = cross_validated(judged, names, best=best, folds=config.folds.n, by="auc")
    with publish(paths.root / FOLDER / f"{member}.csv") as temporary:
        table.to_csv(temporary, index=False)
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each backbone, the best first: means over its folds."""
    grouped = table.groupby("backbone", sort=True)
    columns = ["loss", "f1", "auc", "parameters", "seconds_per_epoch", "ms_per_slice"]
    means = grouped[columns].mean()
    means.insert(1, "spread", grouped["auc"].std())
    means.insert(0, "folds", grouped.size())
    return means.sort_values("auc", ascending=False)

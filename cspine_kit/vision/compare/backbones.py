"""Backbones beside each other as vertebra networks: accuracy on slices, and what it costs.

In: a config, its run folder, names. Out: `oof/<name>/backbones/backbones.csv` and a picture.
Example::

    brief = config.vertebra.model_copy(update={"epochs": 1})
    once = config.model_copy(update={"vertebra": brief})
    rows = compare(once, paths, ("basic_cnn",), best=0)
    rows[["backbone", "accuracy", "seconds_per_epoch"]]

Source document B's protocol: all on one split, then the best few by grouped cross-validation. Each
network is trained as the config's vertebra stage is, with another backbone, and judged on the
masked studies of the fold that it has not learned from. `vision.fracture_backbones` does the same
with a member of the fracture stage.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.config import Config
from cspine_kit.core.errors import DataError
from cspine_kit.core.numbers import BoolArray, FloatArray
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import publish, read_json
from cspine_kit.core.tables import MASK_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.levels import decode_visible
from cspine_kit.data.volumes.store import in_memory
from cspine_kit.data.volumes.volume import nearest_slices
from cspine_kit.vision.inputs.tables import open_inputs
from cspine_kit.vision.inputs.views import FACT_NAMES
from cspine_kit.vision.names import VERTEBRA
from cspine_kit.vision.nets.backbone import check_backbone
from cspine_kit.vision.nets.heads import Network, asks_headers
from cspine_kit.vision.nets.store import load_model
from cspine_kit.vision.oof.chain import FoldChain
from cspine_kit.vision.oof.steps import train_vertebra
from cspine_kit.vision.passes import forward
from cspine_kit.vision.predict import predict

FOURTEEN = (
    *("alexnet", "vgg16_bn", "resnet50", "resnext50_32x4d", "googlenet", "inception_v3"),
    *("densenet121", "tf_efficientnetv2_s", "mobilenetv3_large_100", "convnext_small"),
    *("mnasnet1_3", "shufflenet_v2_x2_0", "swin_s", "regnety_080"),
)
"""What source document B compared, by the names of timm, or of torchvision where timm has none."""

PUBLISHED = {
    "InceptionV3, grouped 5-fold (source document B)": 0.9493,
    "EfficientNetV2, mean of C1..C7 (source document D)": 0.9513,
    "random forest on headers, mean of C1..C7 (source document D)": 0.8841,
}
"""Their own figures, on real slices of 87 masked studies: beside ours, not against them."""

BACKBONES = Path("backbones") / "backbones.csv"
"""Of a run folder."""

LOOKS = 5
"""Batches that are timed; the median counts."""


def _chain(config: Config, paths: RunPaths, backbone: str, fold: int) -> FoldChain:
    """The fold's vertebra stage with another backbone, in a folder of its own."""
    vertebra = config.vertebra.model_copy(update={"backbone": backbone, "weights": None})
    own = RunPaths(paths.root / BACKBONES.parent / backbone)
    inputs = open_inputs(paths)
    return FoldChain(config.model_copy(update={"vertebra": vertebra}), own, inputs, fold)


def milliseconds(model: Network, batch: int) -> float:
    """Time of one slice in a batch, on the device where the model is."""
    device = next(model.parameters()).device
    shape = (batch, 1, model.config.channels, model.config.size_px, model.config.size_px)
    stack = torch.zeros(shape, dtype=torch.uint8, device=device)
    asked = asks_headers(model.config)
    facts = [torch.zeros(batch, len(FACT_NAMES), device=device)] if asked else []
    times = []
    with torch.inference_mode():
        for _ in range(LOOKS):
            start = time.perf_counter()
            next(iter(forward(model, stack, *facts).values())).cpu()
            times.append(time.perf_counter() - start)
    return 1000.0 * float(np.median(times)) / batch


def _said(chain: FoldChain, model: Network) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Of all slices of the fold's masked studies: the network's probabilities (n, 7), those of the
    decode, and what the masks show."""
    batch, parts = chain.config.kernel.batch_size, []
    for uid in chain.masked_here:
        volume = in_memory(chain.inputs.volume(uid, "coarse"))
        rows = predict({0: model}, volume, None, batch)[0].require()
        at_mm, logits = rows["at_mm"].to_numpy(), rows[list(VERTEBRA_COLUMNS)].to_numpy()
        slices = chain.inputs.slices[uid]
        near = slices.iloc[nearest_slices(slices["z_mm"].to_numpy(np.float64), at_mm)]
        decoded = decode_visible(at_mm, logits)
        parts.append((logits, decoded, near[list(MASK_COLUMNS)].to_numpy() > 0))
    logits, decoded, shown = (np.concatenate(part) for part in zip(*parts, strict=True))
    return logits, decoded, shown


def judge(config: Config, paths: RunPaths, backbone: str, fold: int) -> dict[str, Any]:
    """One row: a backbone in one fold, trained where it is not there yet.

    Raises:
        DataError: the fold or its training studies have no mask.
        ConfigError: there is no such backbone, or it cannot take the input.
    """
    chain = _chain(config, paths, backbone, fold)
    check_backbone(chain.config.vertebra, "backbones")
    if not chain.masked_here:
        raise DataError(f"fold {fold} has no masked study to judge a network on")
    train_vertebra(chain)
    folder = chain.paths.model(VERTEBRA, fold)
    seconds = float(read_json(folder / "run.json")["seconds"])
    model = load_model(folder)
    speed = milliseconds(model, config.kernel.batch_size)
    logits, decoded, shown = _said(chain, model)
    right, after = ((logits > 0) == shown).mean(axis=0), ((decoded > 0.5) == shown).mean(axis=0)
    return {
        "backbone": backbone,
        "fold": fold,
        "slices": len(shown),
        "accuracy": float(right.mean()),
        **{f"accuracy_{level}": float(v) for level, v in zip(LEVELS, right, strict=True)},
        "accuracy_decoded": float(after.mean()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "size_px": model.config.size_px,
        "seconds_per_epoch": seconds / model.config.epochs,
        "ms_per_slice": speed,
        "device": str(next(model.parameters()).device),
    }


def compare(
    config: Config, paths: RunPaths, names: Sequence[str], *, best: int = 5
) -> pd.DataFrame:
    """All backbones on fold 0, and the best few in the other folds too.

    Args:
        config: its vertebra stage says how a network is trained.
        paths: its run folder, with tables and coarse volumes.
        names: of timm or torchvision, or the kit's basic CNN.
        best: how many are cross-validated.

    Returns:
        A row for each backbone and fold, as in the CSV.
    """
    for name in names:
        check_backbone(config.vertebra.model_copy(update={"backbone": name}), "backbones")

    def judged(name: str, fold: int) -> dict[str, Any]:
        return judge(config, paths, name, fold)

    table = cross_validated(judged, names, best=best, folds=config.folds.n, by="accuracy")
    path = paths.root / BACKBONES
    with publish(path) as temporary:
        table.to_csv(temporary, index=False)
    draw(table, path.with_suffix(".png"))
    return table


def cross_validated(
    judged: Callable[[str, int], dict[str, Any]],
    names: Sequence[str],
    *,
    best: int,
    folds: int,
    by: str,
) -> pd.DataFrame:
    """Rows of all backbones on fold 0, and of the best few in the other folds.

    Args:
        judged: the row of a backbone and a fold.
        names: of the backbones.
        best: how many are cross-validated.
        folds: of the run.
        by: column that tells the best, the higher the better.
    """
    first = [judged(name, 0) for name in tqdm(names, "backbones on fold 0")]
    ranked = sorted(first, key=lambda row: -float(row[by]))
    chosen = [str(row["backbone"]) for row in ranked[:best]]
    tasks = [(name, fold) for name in chosen for fold in range(1, folds)]
    others = [judged(*task) for task in tqdm(tasks, "best in other folds")]
    return pd.DataFrame(first + others).sort_values(["backbone", "fold"], ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each backbone, the best first: means and spread over its folds."""
    grouped = table.groupby("backbone", sort=True)
    columns = ["accuracy", "accuracy_decoded", "parameters", "seconds_per_epoch", "ms_per_slice"]
    means = grouped[columns].mean()
    means.insert(1, "spread", grouped["accuracy"].std())
    means.insert(0, "folds", grouped.size())
    return means.sort_values("accuracy", ascending=False)


@dataclass(frozen=True)
class Compared:
    """What a picture of backbones shows: a column of their summary, its name, other people's."""

    column: str
    told: str
    published: Mapping[str, float] = field(default_factory=dict)


FIGURES = {
    "vertebra": Compared("accuracy", "accuracy on slices, mean of C1..C7", PUBLISHED),
    "fracture": Compared("auc", "AUC of fractured levels"),
}
"""By stage."""


def points(axes: Any, table: pd.DataFrame, what: Compared) -> None:
    """A figure of merit against training time, a point for each backbone.

    Args:
        axes: of matplotlib.
        table: a summary by backbone, with `seconds_per_epoch`, the column and its `spread`.
        what: is shown.
    """
    for row in table.reset_index().to_dict("records"):
        at = row["seconds_per_epoch"], row[what.column]
        axes.errorbar(*at, yerr=np.nan_to_num(row["spread"]), fmt="o", capsize=3)
        axes.annotate(row["backbone"], at, xytext=(5, 4), textcoords="offset points", fontsize=8)
    for (name, value), style in zip(what.published.items(), ("-", "--", ":"), strict=False):
        axes.axhline(value, color="grey", lw=0.8, ls=style, label=f"{name}: {value:.4f}")
    axes.set(xscale="log", xlabel="seconds of training per epoch", ylabel=what.told)
    axes.margins(x=0.15)  # names stand beside their points
    if what.published:
        axes.legend(fontsize=7, title="published, on other data", title_fontsize=7)


def draw(table: pd.DataFrame, path: Path) -> None:
    """The picture of `points` as a PNG; published figures as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    points(figure.subplots(), summary(table), FIGURES["vertebra"])
    FigureCanvasAgg(figure)
    with publish(path) as temporary:
        figure.savefig(temporary, format="png")

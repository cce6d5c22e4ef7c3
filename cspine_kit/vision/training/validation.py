"""What each epoch's averaged weights are worth on the studies of the fold, as figures and a curve.

In: the fold's studies, a network. Out: rows of `history.csv` and its picture. Example::

    held = Validation(dataset, dataset.config, budget=32)
    draw_history([{"epoch": 1, "loss": 0.7}, {"epoch": 2, "loss": 0.6}], Path("."))

It chooses nothing: the last average is what is kept. The labels of the fold's studies go into
these two files and nowhere else. Its slices are the same in every epoch, few enough to cost under a
tenth of the training.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset

from cspine_kit.core.config import ModelConfig
from cspine_kit.core.runs import publish
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.nets.heads import inputs_of
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.training.losses import batch_weights

SHARE = 0.1
"""Units looked at for each one trained on."""

Row = dict[str, float]


class Validation:
    """Units of the studies of a fold, and how a network does on them.

    Attributes:
        items: of the dataset, evenly over its studies; at most `budget` of them where there are as
            many as studies.
    """

    def __init__(self, dataset: StackDataset, config: ModelConfig, *, budget: int) -> None:
        self.task = task_of(config)
        self.dataset = dataset
        rng = np.random.default_rng(0)
        views = rng.permutation(len(dataset.views))[: max(1, budget)]
        each = max(1, budget // max(1, len(views)))
        starts = np.cumsum([0, *(len(view) for view in dataset.views)])
        self.items = [
            int(starts[v] + row)
            for v in sorted(views)
            for row in np.sort(rng.permutation(len(dataset.views[v]))[:each])
        ]

    def figures(self, model: torch.nn.Module, accelerator: Accelerator, size: int) -> Row:
        """Losses and the task's figures.

        Args:
            model: in evaluation mode, on the accelerator's device.
            accelerator: names device and precision.
            size: stacks at once.
        """
        outputs: dict[str, list[torch.Tensor]] = {}
        targets: dict[str, list[torch.Tensor]] = {}
        loader = DataLoader(
            Subset(self.dataset, self.items), batch_size=size, generator=torch.Generator()
        )
        with torch.inference_mode():
            for batch in loader:
                inputs = [value.to(accelerator.device) for value in inputs_of(batch)]
                with accelerator.autocast():
                    found = model(*inputs)
                for name, value in self._kept(found).items():
                    outputs.setdefault(name, []).append(value.float().cpu())
                for name, value in self._kept(batch).items():
                    targets.setdefault(name, []).append(value)
        said = {name: torch.cat(parts) for name, parts in outputs.items()}
        truth = {name: torch.cat(parts) for name, parts in targets.items()}
        if not all(bool(value.isfinite().all()) for value in said.values()):
            return {"valid_loss": math.nan}  # half precision overflowed: a training goes on
        weights = batch_weights(self.task, truth)
        losses = {
            f"valid_{name}": float(sum_ / weights[name].clamp_min(1.0))
            for name, (sum_, _) in self.task.losses(said, truth).items()
        }
        study = np.array([self.dataset.rows[item][0] for item in self.items])
        own = self.task.figures(_double(said), _double(truth), study)
        return {"valid_loss": sum(losses.values()), **losses, **own}

    def _kept(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All but maps of pixels: those of all units together would not fit the memory."""
        side = self.task.config.size_px
        return {
            n: value for n, value in tensors.items() if value.ndim < 3 or value.shape[-1] < side
        }


def _double(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.double().numpy() for name, value in tensors.items()}


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def write_history(rows: Sequence[Row], folder: Path) -> None:
    """Write `history.csv`, an epoch a row."""
    with publish(folder / "history.csv") as temporary, temporary.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, _columns(rows))
        writer.writeheader()
        writer.writerows(rows)


def draw_history(rows: Sequence[Row], folder: Path) -> None:
    """Write `history.png`: losses on the left, AUCs and metric A on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3))
    # Set by hand: a layout engine draws everything twice, as long again for each picture.
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.15, top=0.96, wspace=0.26)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for name in (n for n in _columns(rows) if n != "epoch"):
        axes = right if name.startswith(("auc", "metric")) else left
        thick = name in ("loss", "valid_loss", "metric_A", "auc_patient_overall")
        axes.plot(
            epochs,
            [row.get(name, math.nan) for row in rows],
            label=name,
            lw=2 if thick else 0.8,
            marker=".",
        )
    for axes in (left, right):
        axes.set_xlabel("epoch")
        if axes.lines:
            axes.legend(fontsize=6, ncols=2)
    FigureCanvasAgg(figure)
    with publish(folder / "history.png") as temporary:
        figure.savefig(temporary, format="png")

"""Train one fold model: OneCycle, accelerate, and a checkpoint after each epoch to go on from.

In: a dataset of training stacks. Out: `<folder>/weights.safetensors`, `model.json`, `history.csv`,
`run.json`. Example::

    heads = {"visible": 7, "fracture": 7}
    brief = dataset.config.model_copy(update={"epochs": 1})
    train_model(
        dataset, brief, heads, Path("model"),
        key="what it is made from", training=config.training, seed=1, title="resnet fold 0",
    )

Every random draw of an epoch comes from (seed, epoch), so that a killed training, which goes on
from its last finished epoch, ends with the same weights on a CPU (tested). On a GPU some sums are
not deterministic, and with `precision: fp16` the loss scaler starts anew.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from cspine_kit.core.config import ModelConfig, TrainingConfig
from cspine_kit.core.errors import DataError
from cspine_kit.core.runs import derive_seed, publish, run_record
from cspine_kit.core.tasks import is_worker, report
from cspine_kit.vision.augment import augment_batch
from cspine_kit.vision.dataset import StackDataset
from cspine_kit.vision.model import SliceModel, save_model

BOX_LOSS = 2.0
"""Weight of the smooth-L1 box loss beside the visibility loss in the vertebra stage."""


LOOK_EVERY = 50
"""Batches after which the losses are looked at: each look waits for the GPU."""


def loss_of(
    outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], config: ModelConfig
) -> torch.Tensor:
    """Training loss of a batch.

    Visibility: binary cross-entropy over the seven levels (targets may be soft). Fracture: binary
    cross-entropy masked by visibility, sum(v * bce) / sum(v), so that a slice is judged only on the
    vertebrae it shows (source document A). Box: smooth L1 where a box is known.
    """
    visible = F.binary_cross_entropy_with_logits(outputs["visible"], batch["visible"])
    if "box" in outputs:
        gap = F.smooth_l1_loss(outputs["box"], batch["box"], reduction="none", beta=0.05)
        weight = batch["box_weight"][:, None]
        box = (gap * weight).sum() / (4 * weight.sum()).clamp_min(1.0)
        return visible + BOX_LOSS * box
    fracture = F.binary_cross_entropy_with_logits(
        outputs["fracture"],
        batch["fracture"],
        pos_weight=torch.tensor(config.positive_weight, device=batch["fracture"].device),
        reduction="none",
    )
    masked = (fracture * batch["visible"]).sum() / batch["visible"].sum().clamp_min(1.0)
    return masked + config.visible_loss * visible


def _loader(
    dataset: StackDataset, config: ModelConfig, workers: int, items: list[int]
) -> DataLoader[dict[str, torch.Tensor]]:
    """Batches of one epoch, in the order of `items`."""
    subset = torch.utils.data.Subset(dataset, items)
    # A last batch of one stack has no batch statistics; short epochs keep their only batch.
    return DataLoader(
        subset,
        batch_size=config.batch_size,
        num_workers=workers,
        drop_last=len(items) > config.batch_size,
    )


def _require_finite(
    losses: list[torch.Tensor], dataset: StackDataset, items: list[int], title: str
) -> None:
    """Stop a training that has gone astray, before a checkpoint keeps it.

    Raises:
        DataError: a loss is no number; names the studies of the first such batch.
    """
    values = torch.stack(losses)
    if bool(values.isfinite().all()):
        return
    batch = int((~values.isfinite()).nonzero()[0])
    size = dataset.config.batch_size
    views = {dataset.rows[item][0] for item in items[batch * size : (batch + 1) * size]}
    names = ", ".join(sorted(dataset.views[view].volume.study_uid for view in views))
    raise DataError(
        f"{title}: the loss of batch {batch + 1} is {float(values[batch])}; its studies: {names}. "
        "Look at their labels and volumes (leave one out with exclude:); where they are sound, "
        "lower lr"
    )


def _steps_per_epoch(dataset: StackDataset, config: ModelConfig) -> int:
    items = sum(min(config.slices_per_study, len(view)) for view in dataset.views)
    return max(1, items // config.batch_size)


def train_model(
    dataset: StackDataset,
    config: ModelConfig,
    heads: dict[str, int],
    folder: Path,
    *,
    key: str,
    training: TrainingConfig,
    seed: int,
    title: str,
) -> None:
    """Train to the end, from the last finished epoch where a checkpoint with this key exists.

    Raises:
        DataError: the loss is no number any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(derive_seed(seed, "init"))
    accelerator = Accelerator(mixed_precision=training.precision, cpu=not torch.cuda.is_available())
    model: Any = SliceModel(config, heads, pretrained=config.pretrained)
    model = model.to(memory_format=torch.channels_last)
    optimizer: Any = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    steps = config.epochs * _steps_per_epoch(dataset, config)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.lr, total_steps=steps + 1, pct_start=config.warmup
    )
    first, history = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["key"] == key:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            first, history = state["epoch"], state["history"]
    model, optimizer = accelerator.prepare(model, optimizer)
    with run_record(folder, title, inputs={"key": key}, device=str(accelerator.device)) as results:
        bar = tqdm(
            range(first, config.epochs),
            initial=first,
            total=config.epochs,
            desc=title,
            disable=is_worker(),
        )
        for epoch in bar:
            epoch_seed = derive_seed(seed, "epoch", epoch)
            generator = torch.Generator().manual_seed(epoch_seed)
            torch.manual_seed(epoch_seed)  # dropout draws from the global generator
            model.train()
            losses: list[torch.Tensor] = []
            items = dataset.draw(np.random.default_rng(epoch_seed))
            for batch in _loader(dataset, config, training.workers, items):
                moved = {name: value.to(accelerator.device) for name, value in batch.items()}
                changed = augment_batch(moved, config, generator)
                losses.append(_step(accelerator, model, optimizer, changed, config))
                schedule.step()
                if len(losses) % LOOK_EVERY == 0:
                    _require_finite(losses, dataset, items, title)
            _require_finite(losses, dataset, items, title)
            loss = float(torch.stack(losses).mean())
            history.append(loss)
            bar.set_postfix(loss=f"{loss:.3f}")
            report(f"{title}, epoch {epoch + 1} of {config.epochs}, loss {loss:.3f}")
            with publish(checkpoint) as temporary:
                torch.save(
                    {
                        "key": key,
                        "epoch": epoch + 1,
                        "history": history,
                        "model": accelerator.unwrap_model(model).state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                    },
                    temporary,
                )
        results["loss"] = history[-1]
    with publish(folder / "history.csv") as temporary, temporary.open("w", newline="") as handle:
        csv.writer(handle).writerows([("epoch", "loss"), *enumerate(history, start=1)])
    save_model(accelerator.unwrap_model(model), folder, key)
    checkpoint.unlink(missing_ok=True)


def _step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    config: ModelConfig,
) -> torch.Tensor:
    """One optimizer step; returns the loss, still on the device."""
    with accelerator.autocast():
        outputs = model(batch["stack"])
        loss = loss_of({n: o.float() for n, o in outputs.items()}, batch, config)
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()

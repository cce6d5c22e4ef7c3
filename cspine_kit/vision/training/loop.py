"""Train one fold model: OneCycle, an average of the weights, checkpoints to go on from at any step.

In: a dataset of training stacks. Out: `<folder>/weights.safetensors`, `model.json`, `history.csv`,
`history.png`, `run.json`. Example::

    brief = dataset.config.model_copy(update={"epochs": 1})
    train_model(
        dataset, brief, Path("model"),
        key="what it is made from", training=config.training, seed=1, title="resnet fold 0",
    )

Every random draw of a step comes from (seed, step), so that a killed training ends with the same
weights on a CPU (tested), and on a GPU with `deterministic`. Under `accelerate launch` all
processes call this together and share each batch; the main one writes.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from timm.utils.model_ema import ModelEmaV3
from tqdm import tqdm

from cspine_kit.core.config import MemberConfig, ModelConfig, TrainingConfig
from cspine_kit.core.deadline import time_is_up
from cspine_kit.core.errors import DataError, Unfinished
from cspine_kit.core.runs import derive_seed, run_record
from cspine_kit.core.tasks import is_worker, report
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.nets.heads import Network
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.nets.store import save_model, start_from, take_weights
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.training.batches import Steps
from cspine_kit.vision.training.optimizer import average_of, optimizer_of
from cspine_kit.vision.training.settings import determinism, precision
from cspine_kit.vision.training.state import Checkpoint, Progress, Stateful, restore
from cspine_kit.vision.training.step import Stepper
from cspine_kit.vision.training.validation import SHARE, Validation, draw_history, write_history

LOOK_EVERY = 50
"""Steps after which the losses are looked at: each look waits for the GPU."""


def train_model(
    dataset: StackDataset,
    config: ModelConfig,
    folder: Path,
    *,
    key: str,
    training: TrainingConfig,
    seed: int,
    title: str,
    held: StackDataset | None = None,
    start: tuple[Path, ...] = (),
) -> None:
    """Train to the end, from the last checkpoint where one with this key exists.

    Args:
        dataset: what is learned from.
        config: the network; its kind decides heads and loss.
        folder: where the model goes.
        key: what it is made from.
        training: how this machine trains.
        seed: of every random draw.
        title: of progress and errors.
        held: the fold's own studies; they are looked at each epoch and decide nothing.
        start: folders of networks whose weights are taken where they fit.

    Raises:
        DataError: the loss is no number any more.
        Unfinished: its time is up; a checkpoint is there.
        ArtifactError: weights to start from cannot be read or do not fit.
    """
    with determinism(on=training.deterministic):
        run = _Run(dataset, config, folder, key=key, training=training, seed=seed, title=title)
        run.begin(start)
        main = run.accelerator.is_main_process
        inputs, device = {"key": key}, str(run.accelerator.device)
        recorded = run_record(folder, title, inputs=inputs, device=device) if main else None
        with recorded or nullcontext({}) as results:
            results["started_from"] = run.progress.started_from
            run.train(held)
            if main:
                results.update(run.progress.history[-1])
        if main:
            save_model(run.average.module, folder, key)
            run.checkpoint.remove()
        run.accelerator.wait_for_everyone()
        for tracker in run.accelerator.trackers:
            tracker.finish()


class _Run:
    """One training: what it is made of, and how far it is."""

    def __init__(
        self,
        dataset: StackDataset,
        config: ModelConfig,
        folder: Path,
        *,
        key: str,
        training: TrainingConfig,
        seed: int,
        title: str,
    ) -> None:
        self.config, self.training, self.seed, self.title = config, training, seed, title
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.accelerator = Accelerator(
            mixed_precision=precision(training),
            cpu=not torch.cuda.is_available(),
            log_with=training.log_with,
            project_dir=folder,
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
        )
        self.steps = Steps(dataset, config, seed=seed, processes=self.accelerator.num_processes)
        self.checkpoint = Checkpoint(folder, key, training.checkpoint_minutes)
        self.progress = Progress()

    def begin(self, start: tuple[Path, ...]) -> None:
        """Build everything, as it was where a checkpoint knows it."""
        config, total = self.config, self.steps.total
        state = self.checkpoint.read()
        torch.manual_seed(derive_seed(self.seed, "init"))
        fresh = state is None and config.weights is None
        heads = task_of(config).outputs
        model: Any = build_net(config, heads, pretrained=config.pretrained and fresh)
        if state is None:
            given = config.weights_file
            taken = [take_weights(model, given)] if given else []
            self.progress.started_from = taken + start_from(model, start)
            for told in self.progress.started_from:
                tqdm.write(f"{self.title}: starts from {told}")
        self.model: Network = model.to(self.accelerator.device, memory_format=model.layout)
        self.average: ModelEmaV3 = average_of(self.model, config, total)
        done = 0 if state is None else int(state["progress"]["step"])
        self._equip(heads_alone=done > self.steps.heads_from)
        if state is not None:
            self.progress = restore(state, self.parts)

    def _equip(self, *, heads_alone: bool) -> None:
        """What moves the weights: all of them, or for the last epochs those of the heads, which
        then learn what counts in the end from features that stay as they are."""
        steps, config, model = self.steps, self.config, self.model
        part = steps.total - steps.heads_from if heads_alone else steps.heads_from
        first = not heads_alone and part < steps.total
        learned = config.plain if isinstance(config, MemberConfig) and first else config
        model.train()
        if heads_alone:
            model.backbone.requires_grad_(False).eval()
        optimizer, self.schedule = optimizer_of(model, config, part)
        optimizer = self.accelerator.prepare(optimizer)
        self.stepper = Stepper(
            self.accelerator, model, optimizer, task_of(learned), config, self.training.accumulate
        )
        self.parts: dict[str, Stateful] = {
            "model": model,
            "average": self.average.module,
            "optimizer": optimizer,
            "schedule": self.schedule,
        }
        if self.accelerator.scaler is not None:
            self.parts["scaler"] = self.accelerator.scaler

    def _leave_backbone(self) -> None:
        """Begin the epochs of the heads, from the averaged weights: what rests is what is kept."""
        self.model.load_state_dict(self.average.module.state_dict())
        self._equip(heads_alone=True)

    def train(self, held: StackDataset | None) -> None:
        """All steps that are left."""
        steps, progress, here = self.steps, self.progress, self.accelerator
        budget = int(SHARE * steps.per_epoch * steps.batch_size)
        validation = Validation(held, self.config, budget=budget) if held else None
        here.init_trackers(self.title.replace(" ", "_"))
        steps.first = progress.step
        loader = here.prepare(steps.loader(self.training.workers, pin=here.device.type == "cuda"))
        losses = [torch.tensor(loss, device=here.device) for loss in progress.losses]
        bar = tqdm(
            loader,
            desc=self.title,
            initial=progress.step,
            total=steps.total,
            unit="step",
            disable=is_worker() or not here.is_main_process,
        )
        for batch in bar:
            if progress.step == steps.heads_from:
                self._leave_backbone()
            losses.append(self.stepper(batch, derive_seed(self.seed, "step", progress.step)))
            self.schedule.step()
            progress.step += 1
            self.average.update(self.model, step=progress.step)
            stops = time_is_up() and progress.step < steps.total
            whole, due = progress.step % steps.per_epoch == 0, stops or self.checkpoint.due()
            if whole or due or len(losses) % LOOK_EVERY == 0:
                progress.losses = self._looked(losses)
            if whole:
                bar.set_postfix(
                    self._end_epoch(validation, draw=due or progress.step == steps.total)
                )
                losses = []
            if (whole or due) and here.is_main_process:
                self.checkpoint.write(self.parts, progress)
            if stops:
                raise Unfinished(f"{self.title}: stopped at step {progress.step} of {steps.total}")

    def _looked(self, losses: Sequence[torch.Tensor]) -> list[float]:
        """Losses of the epoch so far, looked at before a checkpoint keeps what they led to.

        Raises:
            DataError: one is no number; names the studies of the first such batch.
        """
        values = torch.stack(list(losses))
        if bool(values.isfinite().all()):
            found: list[float] = values.tolist()
            self.accelerator.log({"loss": found[-1]}, step=self.progress.step)
            return found
        batch = int((~values.isfinite()).nonzero()[0])
        names = ", ".join(self.steps.studies(self.progress.step - len(losses) + batch))
        raise DataError(
            f"{self.title}: the loss of batch {batch + 1} is {float(values[batch])}; its studies: "
            f"{names}. Look at their labels and volumes (leave one out with exclude:); where they "
            "are sound, lower lr"
        )

    def _end_epoch(self, validation: Validation | None, *, draw: bool) -> dict[str, str]:
        """Note how the epoch went; what the progress bar shows of it."""
        progress = self.progress
        epoch = progress.step // self.steps.per_epoch
        row = {"epoch": epoch, "loss": sum(progress.losses) / len(progress.losses)}
        progress.losses = []
        if self.accelerator.is_main_process:
            if validation is not None:
                size = -(-self.steps.batch_size // self.stepper.parts)
                row |= validation.figures(self.average.module, self.accelerator, size)
            progress.history.append(row)
            write_history(progress.history, self.folder)
            if draw:
                draw_history(progress.history, self.folder)
            self.accelerator.log(row, step=progress.step)
        self.accelerator.wait_for_everyone()
        names: list[str] = [name for name in ("loss", "valid_loss", "metric_A") if name in row]
        shown: dict[str, str] = {name: f"{row[name]:.3f}" for name in names}
        told = ", ".join(f"{name} {value}" for name, value in shown.items())
        report(f"{self.title}, epoch {epoch} of {self.config.epochs}, {told}")
        return shown

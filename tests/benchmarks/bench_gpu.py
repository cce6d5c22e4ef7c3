"""What a GPU says: training, precision, memory, and the whole kernel against its own networks.

Run: python tests/benchmarks/bench_gpu.py --out DIR [--size 512] [--studies 16] [--test-studies 8]
         [--backbones tf_efficientnetv2_s convnext_tiny] [--px 256] [--epochs 1]

Writes a phantom competition, runs the product's own chain on it (networks from scratch: their speed
counts, their scores do not) and prints one JSON object, also in DIR/gpu.json. Without a GPU it runs
the same on the CPU: choose --size 96 --backbones test_resnet then. Training: stacks/s of the whole
loop, from the difference of a long and a short training, beside the same step on a batch that lies
on the device. Precision: largest difference of logits, relative to their spread. A T4's figures are
estimates from counted operations (65 TFLOP/s in half precision, at the share of its peak that this
GPU reached), and are called so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from bench_kernel import Load, count_loads, say, throughput
from goals import record
from torch.utils.flop_counter import FlopCounterMode

from cspine_kit.core.config import load_config
from cspine_kit.core.execution import measure_gflops, tune_process, usable_cores
from cspine_kit.core.paths import Competition, RunPaths
from cspine_kit.infer.chains.ensemble import Ensemble
from cspine_kit.infer.manifest import open_bundle
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.inputs.tables import open_inputs
from cspine_kit.vision.oof.chain import FoldChain
from cspine_kit.vision.predict import devices
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.task import Lesson
from cspine_kit.vision.training.loop import _Run, train_model

ROOT = Path(__file__).resolve().parents[2]
T4_HALF_TFLOPS, T4_GB = 65.0, 15.0
EPOCHS = (1, 3)
STEPS = 12


def machine() -> dict[str, Any]:
    """Where figures come from."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    found = {"device": name, "cores": usable_cores(), "torch": torch.__version__}
    return {**found, "cpu_gflops": round(measure_gflops(), 1)}


def cspine(verb: str, config: Path, *arguments: str) -> float:
    """Run a verb of the product beside its config, in a process of its own; returns its seconds."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    start = time.monotonic()
    command = [sys.executable, "-m", "cspine_kit", verb, "--config", str(config), *arguments]
    subprocess.run(command, cwd=config.parents[1], env=env, check=True)
    return time.monotonic() - start


def write_config(folder: Path, args: argparse.Namespace) -> Path:
    """A folder as a clone's, with `configs/gpu.yaml`: the real grids, networks from scratch."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "kernels" / "submit").mkdir(parents=True, exist_ok=True)
    for name in ("configs/base.yaml", "kernels/submit/submit.py"):
        (folder / name).write_text((ROOT / name).read_text())
    phantom = {"studies": args.studies, "test_studies": args.test_studies, "size_px": args.size}
    phantom |= {"difficulty": "easy", "masked": 1.0, "boxed": 0.0, "seed": 3}
    training = {"epochs": args.epochs, "batch_size": args.batch, "slices_per_study": args.slices}
    config = {
        "base": "base.yaml",
        "name": "gpu",
        "competition": {"dir": "competition", "phantom": phantom},
        "folds": {"n": 2},
        "model": {"pretrained": False, "size_px": args.px, **training},
        "vertebra": {"backbone": args.backbones[0]},
        "members": {f"m{k}": {"backbone": name} for k, name in enumerate(args.backbones)},
        "training": {"workers": min(8, usable_cores() - 1)},
        "stack": {"seeds": 1, "rounds": 10},
        "bundle": {"wheels": []},
    }
    path = folder / "configs" / "gpu.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def synchronize() -> None:
    """Wait for the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def training_speed(chain: FoldChain, member: str, scratch: Path) -> dict[str, float]:
    """Stacks/s of the whole training loop and of its step on a resident batch, and peak memory."""
    config, inputs = chain.config.members[member], chain.inputs
    task = task_of(config)
    rows, levels = (
        {str(uid): own for uid, own in table.groupby("study_uid")}
        for table in (chain.stage_rows().frame(), chain.levels.frame())
    )
    views = []
    for uid in inputs.studies_of(chain.fold, training=True):
        view = task.view(inputs.volume(uid, task.grid), levels[uid])
        view.targets = task.targets(
            view, Lesson(inputs.slices[uid], inputs.studies.loc[uid], rows[uid])
        )
        views.append(view)
    training = chain.config.training
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for epochs in EPOCHS:
        longer = config.model_copy(update={"epochs": epochs, "slices_per_study": 10**6})
        dataset = StackDataset(views, longer)
        start = time.monotonic()
        train_model(
            dataset, longer, scratch / f"{member}_{epochs}",
            key="k", training=training, seed=1, title=f"{member}, {epochs} epochs",
        )  # fmt: skip
        synchronize()
        seconds.append(time.monotonic() - start)
    run = _Run(
        dataset, longer, scratch / f"{member}_pure",
        key="k", training=training, seed=1, title="pure",
    )  # fmt: skip
    run.begin(())
    loader = run.accelerator.prepare(run.steps.loader(0, pin=False))
    batch = next(iter(loader))
    run.stepper.model.train()
    size = len(batch["stack"])
    for k in range(3):
        run.stepper(batch, k)
    synchronize()
    start = time.monotonic()
    for k in range(STEPS):
        run.stepper(batch, k)
    synchronize()
    pure = STEPS * size / (time.monotonic() - start)
    stacks = (EPOCHS[1] - EPOCHS[0]) * run.steps.per_epoch * size
    whole = stacks / (seconds[1] - seconds[0])
    found = {"stacks_per_s": whole, "pure_stacks_per_s": pure, "share_of_pure": whole / pure}
    if torch.cuda.is_available():
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return {**found, "precision": run.accelerator.mixed_precision}


@torch.inference_mode()
def precision(loads: Mapping[int, Load]) -> dict[str, dict[str, float]]:
    """Difference of logits in half precision from float32, relative to their spread."""
    found: dict[str, dict[str, float]] = {}
    torch.manual_seed(0)
    for load in loads.values():
        model, noise = load.model, load.noise(16)
        exact = torch.cat([v.flatten(1) for v in model(*noise).values()], 1)
        for kind, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            with torch.autocast(noise[0].device.type, dtype):
                half = torch.cat([v.float().flatten(1) for v in model(*noise).values()], 1)
            gap = float(((half - exact).abs().max() / exact.std()).cpu())
            row = found.setdefault(f"{model.config.kind} {model.config.backbone}", {})
            row[kind] = max(row.get(kind, 0.0), gap)
    return found


def kernel(folder: Path, args: argparse.Namespace) -> dict[str, object]:
    """The bundle's kernel on the test studies, on one device and with two workers on it."""
    device, readers = devices()[0], max(1, usable_cores() - 1)
    competition = Competition(folder / "competition")
    folders = {path.name: path for path in sorted(competition.test_images.iterdir())}
    # Studies are few: each is asked several times under other names.
    many = {f"{uid}.{k}": path for k in range(args.repeat) for uid, path in folders.items()}
    with tempfile.TemporaryDirectory() as scratch:
        root = open_bundle(folder / "oof" / "gpu" / "bundle", Path(scratch))
        ensembles = [Ensemble(root, device) for _ in range(2)]
        loads = count_loads(ensembles[0], folders)
        found: dict[str, object] = {"precision": precision(loads)}
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        for n in (1, 2):
            say(f"kernel, {n} workers on {device}, {readers} readers")
            found[f"workers_{n}"] = throughput(ensembles[:n], many, 3, readers)
        if torch.cuda.is_available():
            found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        flops = 0.0
        for load in loads.values():
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                load.model(*load.noise(1))
            flops += load.units * counter.get_total_flops()
        per_study = flops / len(folders)
        pure = found["workers_1"]["pure"]  # type: ignore[index]
        total = sum(load.stacks for load in loads.values())
        reached = pure / total * flops / 1e12
        found |= {"gflop_per_study": per_study / 1e9, "tflops_reached": reached}
    return found


def record_goals(found: dict[str, Any]) -> None:
    """What a GPU should reach, beside the share of pure passes that `throughput` records."""
    measured = found["kernel"]
    for kind in ("fp16", "bf16"):
        worst = max(row[kind] for row in measured["precision"].values())
        record(f"logits in {kind}, share of their spread", worst, 1e-2, most=True)
    peaks = [measured["peak_gb"], *(row["peak_gb"] for row in found["training"].values())]
    record("peak memory, GB", max(peaks), T4_GB, most=True)


def main() -> None:
    """Run everything and print one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--studies", type=int, default=16)
    parser.add_argument("--test-studies", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--backbones", nargs="+", default=["tf_efficientnetv2_s", "convnext_tiny"])
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    tune_process()
    folder = args.out.resolve() / "run"
    path = write_config(folder, args)
    found = machine()
    found["seconds"] = {verb: round(cspine(verb, path), 1) for verb in ("oof", "stack", "bundle")}
    os.chdir(folder)
    config = load_config(path)
    paths = RunPaths(Path("oof") / config.name)
    chain = FoldChain(config, paths, open_inputs(paths), 0)
    with tempfile.TemporaryDirectory() as scratch:
        found["training"] = {
            model.backbone: training_speed(chain, member, Path(scratch))
            for member, model in config.members.items()
        }
    found["kernel"] = measured = kernel(folder, args)
    if torch.cuda.is_available():
        peak = torch.ones((8192, 8192), dtype=torch.float16, device="cuda")
        synchronize()
        start = time.monotonic()
        for _ in range(10):
            peak @ peak
        synchronize()
        found["matrix_tflops"] = best = 10 * 2 * 8192**3 / (time.monotonic() - start) / 1e12
        share = float(measured["tflops_reached"]) / best  # type: ignore[arg-type]
        gflop = float(measured["gflop_per_study"])  # type: ignore[arg-type]
        found["t4_seconds_per_study_estimated"] = gflop / 1e3 / (T4_HALF_TFLOPS * share)
        record_goals(found)
    text = json.dumps(found, indent=1, default=lambda v: round(float(np.asarray(v)), 4))
    (args.out / "gpu.json").write_text(text)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()

"""Drawing patches from stored fine volumes against a training step, on one core in one run.

Run: `python tests/benchmarks/bench_vision_patches.py [STUDIES]`. A phantom of real difficulty at
512 px stands for the real scans, with the real CT beside it where `CSPINE_REAL_DATA` names it. For
the demo and the real config: bytes of a stored voxel, stacks per second of `draw` at random places
of random studies, from files and from memory; for the demo also the training step of its network.
Both ways run in turns; printed are medians, of processor time where it is the cost that counts.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from goals import record

from cspine_kit.core.config import Config, PhantomConfig, load_config
from cspine_kit.data.volumes.cut import Cut, fine_lattice, wide_cut
from cspine_kit.data.volumes.patch import Patch, draw, parallel
from cspine_kit.data.volumes.read import read_coarse, read_fine
from cspine_kit.data.volumes.store import in_memory, open_volume, write_volume
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.phantom.competition.write import write_competition
from cspine_kit.vision.nets.heads import SliceModel
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.training.optimizer import optimizer_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STACKS, TURNS = 200, 5
STEP_GOAL, T4_GOAL = 5.0, 300.0
"""Stacks drawn for each that the tiny network learns from; stacks per second and core for twice the
assumed speed of a T4."""


def say(text: str) -> None:
    """Write one line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def stored(folders: Sequence[Path], config: Config, out: Path) -> list[Volume]:
    """Fine volumes of studies as a run stores them: the field around the coarse one's middle."""
    volumes, fine = [], config.volumes.fine
    for folder in folders:
        coarse, geometry = read_coarse(folder, config.volumes)
        lattice = fine_lattice(coarse, fine)
        box = lattice.square(coarse.middle_mm, fine.field_mm)
        wide = wide_cut(coarse, lattice, len(geometry.z_mm))
        cut = Cut(box.overlap(wide.box), wide.first, wide.last)
        volume, _ = read_fine(folder, config.volumes, cut)
        path = out / f"{config.name}_{folder.name}.arrow"
        write_volume(volume, path, {})
        volumes.append(open_volume(path)[0])
        size = path.stat().st_size / np.prod(volume.voxels.shape)
        say(f"  {folder.name[-24:]:24s} {volume.voxels.shape} {size:.3f} bytes per voxel")
    return volumes


def patches_of(volumes: Sequence[Volume], config: Config) -> list[tuple[Volume, Patch]]:
    """Random slices of random studies as the first member sees them."""
    rng, member = np.random.default_rng(0), next(iter(config.members.values()))
    offsets = parallel(member.in_chans, member.stack_step_mm)
    found = []
    for _ in range(STACKS):
        volume = volumes[rng.integers(len(volumes))]
        y, x = np.array(volume.middle_mm) + rng.uniform(-3, 3, 2)
        field_mm, size_px = (member.field_mm,) * 2, (member.size_px,) * 2
        place = float(rng.choice(volume.z_mm)), float(y), float(x)
        found.append((volume, Patch("axial", place, field_mm, size_px, offsets)))
    return found


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def train_step(config: Config) -> Callable[[], object]:
    """A step of the first member's network on one batch: forward, loss, backward, update."""
    member = next(iter(config.members.values()))
    task = task_of(member)
    model = SliceModel(member, task.heads, pretrained=False)
    optimizer, _ = optimizer_of(model, member, steps=STACKS)
    size = (member.batch_size, 1, member.channels, member.size_px, member.size_px)
    stack = torch.randint(0, 256, size, dtype=torch.uint8)
    levels = torch.randint(0, 2, (member.batch_size, 7)).float()
    batch = {"visible": levels, "fracture": levels.flip(0)}

    def step() -> None:
        terms = task.losses(model(stack), batch).values()
        sum(total / weight.clamp_min(1.0) for total, weight in terms).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(config: Config, folders: Sequence[Path], out: Path) -> None:
    """Print one config's figures."""
    member = next(iter(config.members.values()))
    say(
        f"{config.name}: {member.channels} x {member.size_px} px of {member.field_mm} mm from "
        f"{config.volumes.fine.spacing_mm} mm"
    )
    volumes = stored(folders, config, out)
    held = {volume.study_uid: in_memory(volume) for volume in volumes}
    drawn = patches_of(volumes, config)

    def from_files() -> None:
        for volume, patch in drawn:
            draw(volume, patch, member.windows)

    def from_memory() -> None:
        for volume, patch in drawn:
            draw(held[volume.study_uid], patch, member.windows)

    ways = {"files": from_files, "memory": from_memory}
    small = member.size_px <= 64
    if small:
        ways["step"] = train_step(config)
    for work in ways.values():
        work()
    took = {name: [seconds(work) for _ in range(TURNS)] for name, work in ways.items()}
    rate = {name: STACKS / float(np.median(took[name])) for name in ("files", "memory")}
    if not small:
        record(f"{config.name}: stacks/s a core from files", rate["files"], T4_GOAL)
    goal = "" if small or rate["files"] >= T4_GOAL else "  below the goal"
    told = f", goal {T4_GOAL:.0f}{goal}" if not small else ""
    say(f"  {rate['files']:6.0f} stacks/s from files, {rate['memory']:6.0f} from memory{told}")
    if small:
        steps = member.batch_size / float(np.median(took["step"]))
        ratio = rate["memory"] / steps  # a training holds so few volumes in memory
        mark = "" if ratio >= STEP_GOAL else "  below the goal"
        record(f"{config.name}: stacks drawn for each one trained on", ratio, STEP_GOAL)
        say(
            f"  {steps:6.0f} stacks/s of a training step: ratio {ratio:.1f} from memory, as it "
            f"draws them, goal {STEP_GOAL}{mark}; {rate['files'] / steps:.1f} from files"
        )


def main(studies: int) -> None:
    """Print all of it."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    demo, real = (load_config(CONFIGS / f"{name}.yaml") for name in ("demo", "rsna2022"))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        for config, size_px, difficulty in ((demo, 160, "easy"), (real, 512, "real")):
            spec = PhantomConfig(
                studies=1, test_studies=studies, size_px=size_px, difficulty=difficulty, seed=1
            )
            images = write_competition(out / config.name, spec, jobs=1).test_images
            folders = sorted(images.iterdir())
            ct = Path(os.environ.get("CSPINE_REAL_DATA", "nowhere")) / "head_neck_ct"
            if config is real and ct.is_dir():
                folders.append(ct)
            compare(config, folders, out)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) == 2 else 4)

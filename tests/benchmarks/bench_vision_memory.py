"""Memory of a training process at the real size: every table, every view, and the batches it draws.

Run: python tests/benchmarks/bench_vision_memory.py [--config FILE] [--studies 2019]

Tables of so many studies of 350 slices, all of whose volumes are one phantom's of 512 px; then each
member's views of four fifths of them, its held-out views, and batches as its training draws them.
Networks, their optimizer and a GPU's context are not in the figure: they lie on the GPU, but for
what its driver keeps here. Each member in a process of its own; printed are its peak (VmHWM) and
that of the imports alone, in GB. The goal is 3 GB.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from goals import record

from cspine_kit.core.anatomy import LEVELS, TARGETS
from cspine_kit.core.config import Config, PhantomConfig, load_config
from cspine_kit.core.tables import (
    BOX_COLUMNS,
    MASK_COLUMNS,
    SPINE_BOX_COLUMNS,
    VERTEBRA_COLUMNS,
)
from cspine_kit.data.volumes.read import read_both
from cspine_kit.data.volumes.store import open_volume, write_volume
from cspine_kit.data.volumes.volume import Volume
from cspine_kit.infer.chains.noise import levels_everywhere
from cspine_kit.phantom.competition.write import write_competition
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.task import Lesson
from cspine_kit.vision.training.batches import Steps

ROOT = Path(__file__).resolve().parents[2]
GOAL_GB, FOLDS, BATCHES = 3.0, 5, 3


def peak_gb() -> float:
    """Most memory that this process ever held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024**2


def slices_of(uid: str, volume: Volume) -> pd.DataFrame:
    """A study's rows of table `slices`, without a mask."""
    n = len(volume.z_mm)
    rows = pd.DataFrame({"study_uid": uid, "slice_idx": np.arange(n), "z_mm": volume.z_mm})
    rows["file"] = [f"{k + 1}.dcm" for k in range(n)]
    names = ("slice_number", "instance_number", "gap_mm", *MASK_COLUMNS, *SPINE_BOX_COLUMNS)
    rows[[*names, *BOX_COLUMNS]] = np.nan
    return rows


def tables(count: int, volume: Volume) -> tuple[dict[str, pd.DataFrame], ...]:
    """Slices, vertebra rows and levels of every study, as a training process holds them."""
    uids = [f"1.2.826.0.1.3680043.{k}" for k in range(count)]
    slices = pd.concat([slices_of(uid, volume) for uid in uids], ignore_index=True)
    every = volume.z_mm[:: max(1, len(volume.z_mm) // 125)]
    rows = pd.DataFrame({"at_mm": np.tile(every, count)})
    rows[[*VERTEBRA_COLUMNS, *SPINE_BOX_COLUMNS]] = 0.0
    rows["study_uid"] = np.repeat(uids, len(every))
    seven = levels_everywhere(volume)
    edges = np.linspace(volume.z_mm[0], volume.z_mm[-1], len(LEVELS) + 1)
    seven["center_z_mm"] = (edges[1:] + edges[:-1]) / 2
    levels = pd.concat([seven.assign(study_uid=uid) for uid in uids], ignore_index=True)
    return tuple(
        {str(uid): own for uid, own in table.groupby("study_uid", sort=False)}
        for table in (slices, rows, levels)
    )


def hold(config: Config, member: str, file: Path, studies: int) -> None:
    """Be the training process of one member; prints two peaks."""
    imports, network = peak_gb(), config.members[member]
    task, volume = task_of(network), open_volume(file)[0]
    slices, rows, levels = tables(studies, volume)
    label = pd.Series(0.0, index=list(TARGETS))
    label["C5"] = label["patient_overall"] = 1.0
    views = []
    for uid in slices:
        view = task.view(open_volume(file)[0], levels[uid])
        view.targets = task.targets(view, Lesson(slices[uid], label, rows[uid]))
        views.append(view)
    held = len(views) // FOLDS
    learned, others = StackDataset(views[held:], network), StackDataset(views[:held], network)
    steps = Steps(learned, network, seed=1)
    loader = iter(steps.loader(0, pin=False))
    drawn = sum(len(next(loader)["stack"]) for _ in range(BATCHES))
    sys.stdout.write(f"{imports} {peak_gb()} {len(learned)} {len(others)} {drawn}\n")


def main() -> None:
    """Print a line for each member."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "rsna2022.yaml")
    parser.add_argument("--studies", type=int, default=2019)
    parser.add_argument("--hold", nargs=2, metavar=("MEMBER", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = load_config(args.config)
    if args.hold:
        hold(config, args.hold[0], Path(args.hold[1]), args.studies)
        return
    with tempfile.TemporaryDirectory() as scratch:
        spec = PhantomConfig(
            studies=1, test_studies=1, size_px=512, difficulty="real", masked=0, boxed=0, seed=1
        )
        [folder] = write_competition(Path(scratch) / "one", spec, jobs=1).test_images.iterdir()
        file = Path(scratch) / "fine.arrow"
        write_volume(read_both(folder, config.volumes)[0].fine, file, {})
        sys.stdout.write(f"{'member':20s} {'imports':>8s} {'peak':>8s} {'units':>9s}\n")
        for member in config.members:
            command = [sys.executable, __file__, "--config", str(args.config)]
            command += ["--studies", str(args.studies), "--hold", member, str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            imports, peak, units, *_ = map(float, done.stdout.split())
            sys.stdout.write(f"{member:20s} {imports:8.2f} {peak:8.2f} {units:9.0f}\n")
            sys.stdout.flush()
            record(f"memory of a training, {member}, GB", peak, GOAL_GB, most=True)


if __name__ == "__main__":
    main()

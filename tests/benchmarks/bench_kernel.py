"""The kernel's speed against its own networks, and what each step of degradation costs and saves.

    python tests/benchmarks/bench_kernel.py [--bundle oof/demo/bundle] [--competition DIR]

Throughput: slices per second of a whole kernel run (files on disk to probabilities, after loading)
against pure forward passes of the same networks on resident random input, in turn. Degradation:
metric A on the hidden truth and seconds per study for every step of the governor's ladder.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from goals import record

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.execution import tune_process
from cspine_kit.core.metric import evaluate
from cspine_kit.core.paths import Competition
from cspine_kit.data.labels import read_labels
from cspine_kit.data.reader.dicom import list_files
from cspine_kit.infer.chains.ensemble import Ensemble
from cspine_kit.infer.chains.governor import Governor
from cspine_kit.infer.manifest import open_bundle
from cspine_kit.infer.studies.devices import Devices
from cspine_kit.infer.studies.reading import ReadAhead
from cspine_kit.infer.studies.worker import Worker
from cspine_kit.vision.nets.heads import Network
from cspine_kit.vision.passes import PLAIN, forward, run_model

PURE_BATCHES = 6


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass
class Load:
    """What a network was given: how many units, and the largest batch of them."""

    model: Network
    units: int = 0
    batch: tuple[torch.Tensor, ...] = ()

    @property
    def stacks(self) -> int:
        """Patches of all units."""
        return self.units * self.batch[0].shape[1]

    def noise(self, units: int) -> tuple[torch.Tensor, ...]:
        """A batch of that many units of random pixels, with the facts of real ones."""
        stack, *facts = (part[:1].expand(units, *part.shape[1:]) for part in self.batch)
        return torch.randint_like(stack.contiguous(), 0, 256), *facts


class Counted:
    """`run_model` that notes what went through which network, and in what batches."""

    def __init__(self) -> None:
        self.loads: dict[int, Load] = {}

    def __call__(self, model, batches, *, views=PLAIN):
        load = self.loads.setdefault(id(model), Load(model))
        load.units += len(views) * batches.count
        first = next(iter(batches))
        if not load.batch or len(first[0]) > len(load.batch[0]):
            load.batch = first
        return run_model(model, batches, views=views)


def kernel_seconds(
    ensembles: Sequence[Ensemble], folders: dict[str, Path], readers: int = 1
) -> float:
    """Steady-state wall time of the kernel's own loop over these studies.

    Args:
        ensembles: one for each device, or several on one.
        folders: of the studies.
        readers: processes that read ahead.
    """
    ensemble = ensembles[0]
    files = {uid: len(list_files(folder)) for uid, folder in folders.items()}
    governor = Governor(
        ensemble.efforts, deadline_s=1e12, files=sum(files.values()), studies=len(files)
    )
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        ReadAhead(folders, ensemble.config.volumes, Path(scratch), readers=readers) as readings,
    ):
        studies = SimpleNamespace(folders=folders, files=files)
        workers = {str(k): Worker(each, governor, studies) for k, each in enumerate(ensembles)}
        at_once = ensemble.config.kernel.studies_at_once if torch.cuda.is_available() else 1
        names = list(workers), workers.__getitem__
        pool = Devices(*names, readings, governor, studies, at_once=at_once)
        stream = pool.answers(list(folders))
        for _ in range(at_once):
            next(stream)  # the readers have started
        start = time.perf_counter()
        rest = list(stream)
        seconds = time.perf_counter() - start
    assert all(answer.source == "image" for answer in rest)
    return seconds * len(folders) / len(rest)


@torch.inference_mode()
def pure_seconds(loads: Mapping[int, Load]) -> float:
    """Wall time of the same units through the same networks in the same batches, nothing else."""
    total = 0.0
    for load in loads.values():
        units, half = len(load.batch[0]), load.batch[0].device.type == "cuda"
        noise = load.noise(units)
        wait = torch.cuda.synchronize if half else time.monotonic
        for _ in range(2):
            forward(load.model, *noise, half=half)
        wait()
        start = time.perf_counter()
        for _ in range(PURE_BATCHES):
            forward(load.model, *noise, half=half)
        wait()
        total += (time.perf_counter() - start) / PURE_BATCHES / units * load.units
    return total


def count_loads(ensemble: Ensemble, folders: dict[str, Path]) -> dict[int, Load]:
    """Networks, and what each is given by these studies."""
    from cspine_kit.vision import predict

    counted = Counted()
    predict.run_model, original = counted, predict.run_model
    try:
        kernel_seconds([ensemble], folders)
    finally:
        predict.run_model = original
    return counted.loads


def throughput(
    ensembles: Sequence[Ensemble], folders: dict[str, Path], rounds: int, readers: int = 1
) -> dict[str, float]:
    """The ratio, kernel and pure passes in turn; printed, and the median round returned."""
    loads = count_loads(ensembles[0], folders)
    n = sum(load.stacks for load in loads.values())
    found = []
    for _ in range(rounds):
        whole = kernel_seconds(ensembles, folders, readers)
        pure = pure_seconds(loads)
        found.append({"ratio": pure / whole, "kernel": n / whole, "pure": n / pure})
        say(
            "  kernel {kernel:7.1f} stacks/s, pure {pure:7.1f}, ratio {ratio:.3f}".format(
                **found[-1]
            )
        )
    median = sorted(found, key=lambda row: row["ratio"])[rounds // 2]
    say(f"throughput: {median['ratio']:.1%} of pure forward passes (median of {rounds})")
    record("share of pure forward passes", median["ratio"], 0.85)
    return median


def degradation(ensemble: Ensemble, folders: dict[str, Path], truth: pd.DataFrame) -> None:
    """Print loss and cost of every effort, and of the priors and headers below them."""
    from cspine_kit.data.reader.dicom import read_geometry
    from cspine_kit.data.volumes.read import read_both

    volumes = {u: read_both(f, ensemble.config.volumes, u)[0] for u, f in folders.items()}
    labels = truth.set_index("study_uid").loc[list(folders), list(TARGETS)].to_numpy()

    def score(name: str, probs: np.ndarray, seconds: float) -> None:
        found = evaluate(labels, probs)
        say(f"  {name:46s} A {found.per_exam:.4f}  B {found.whole:.4f}  {seconds:.3f} s/study")

    for effort in ensemble.efforts:
        start = time.perf_counter()
        rows = []
        for uid, folder in folders.items():
            table = ensemble.predict(volumes[uid], folder, effort).table
            shipped = table[table["model"] == ensemble.stack.ships].set_index("target")["prob"]
            rows.append(shipped.reindex(list(TARGETS)).to_numpy())
        score(str(effort), np.array(rows), (time.perf_counter() - start) / len(folders))
    start = time.perf_counter()
    geometry = [read_geometry(folder, uid) for uid, folder in folders.items()]
    heads = [[ensemble.headers.predict(g)[t] for t in TARGETS] for g in geometry]
    score("headers alone", np.array(heads), (time.perf_counter() - start) / len(folders))


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, default=Path("oof/demo/bundle"))
    parser.add_argument("--competition", type=Path, default=Path("oof/demo/competition"))
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    tune_process()
    competition = Competition(args.competition)
    truth = read_labels(competition.solution_csv)
    uids = truth["study_uid"].head(args.studies)
    folders = {uid: competition.images("test", uid) for uid in uids}
    with tempfile.TemporaryDirectory() as scratch:
        ensemble = Ensemble(open_bundle(args.bundle, Path(scratch)))
        say(f"{args.bundle}: {len(folders)} studies, {torch.get_num_threads()} threads")
        throughput([ensemble], folders, args.rounds)
        say("degradation:")
        degradation(ensemble, folders, truth)


if __name__ == "__main__":
    main()

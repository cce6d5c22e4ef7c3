"""Faults tried on the kernel, counted: valid submissions, studies that lost more than themselves.

Run: `python tests/benchmarks/bench_kernel_faults.py [--bundle DIR --images DIR]`. Without a bundle
it trains the tiny chain of `tests/tiny.yaml` first (a minute). Exit code 1 where a fault won.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "ship"), str(ROOT / "tests"), str(ROOT)]

import faults  # noqa: E402
from chain import run_chain  # noqa: E402

from cspine_kit.core.execution import tune_process  # noqa: E402
from cspine_kit.phantom.competition.hostile import write_hostile  # noqa: E402

CORRUPTED, SPARED = 200, 20


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def campaign(ground: faults.Ground, hostile: Path) -> list[Callable[[], faults.Count]]:
    """Every fault at full size."""
    return [
        lambda: faults.hostile(ground, hostile),
        lambda: faults.corrupted(ground, CORRUPTED, spared=SPARED),
        lambda: faults.vanishing(ground, 40),
        lambda: faults.killed_workers(ground, 40, kills=8),
        lambda: faults.memory_runs_out(ground, 8, "test_resnet"),
        lambda: faults.memory_never_there(ground, 4, "test_efficientnet"),
        lambda: faults.poisoned(ground, 4, "efficientnet"),
        lambda: faults.damaged_bundle(ground),
        lambda: faults.full_disk(ground, 20, 16, rows_fit=False),
        lambda: faults.full_disk(ground, 20, 40, rows_fit=True),
        lambda: faults.disk_full_for_a_while(ground, 40),
        lambda: faults.clock_jumps(ground, 10),
        lambda: faults.terminated(ground, 20, after=5),
        lambda: faults.terminated(ground, 20, after=15),
    ]


def main() -> int:
    """Try every fault; print a row as each is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="of a config with test_* backbones")
    parser.add_argument("--images", type=Path, help="folder of sound studies")
    args = parser.parse_args()
    tune_process()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if args.bundle and args.images:
            bundle, images = args.bundle.absolute(), args.images.absolute()
        else:
            folder = run_chain(work / "chain")
            bundle, images = folder / "oof/tiny/bundle", folder / "competition/test_images"
        hostile = write_hostile(work / "hostile", seed=1).root
        # On one disk with the work, so that competitions are hard links.
        studies = tuple(
            Path(shutil.copytree(source, work / "studies" / source.name))
            for source in sorted(images.iterdir())[:4]
        )
        ground = faults.Ground(bundle, studies, work)
        say(f"{'fault':42s} {'tried':>5s} {'valid submissions':>18s} {'lost more':>9s} {'s':>6s}")
        counts = []
        for attempt in campaign(ground, hostile):
            start = time.monotonic()
            count = attempt()
            counts.append(count)
            valid = f"{count.valid} of {count.runs}"
            seconds = time.monotonic() - start
            mark = "" if count.ok else "  <- WRONG"
            say(
                f"{count.fault:42s} {count.tried:5d} {valid:>18s} {count.lost:9d} {seconds:6.1f}"
                f"{mark}  {count.remark}"
            )
        runs, valid = sum(c.runs for c in counts), sum(c.valid for c in counts)
        tried, lost = sum(c.tried for c in counts), sum(c.lost for c in counts)
        say(f"{'all':42s} {tried:5d} {f'{valid} of {runs}':>18s} {lost:9d}")
    return 0 if all(count.ok for count in counts) else 1


if __name__ == "__main__":
    sys.exit(main())

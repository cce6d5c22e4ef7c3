"""Kinds of faults x stages of the kernel: valid submissions, and studies that lost their rows.

Run: `python tests/benchmarks/bench_kernel_faults.py [--bundle DIR --images DIR] [--only TEXT]`.
Without a bundle it trains the tiny chain of `tests/tiny.yaml` first (a minute). Exit code 1 where a
fault won, or was not tried.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "infer"), str(ROOT / "tests"), str(ROOT)]

import cells_machine  # noqa: E402
import faults  # noqa: E402
from cells_studies import corrupted  # noqa: E402
from chain import run_chain  # noqa: E402
from goals import record  # noqa: E402
from matrix import KINDS, MATRIX, STAGES  # noqa: E402

from cspine_kit.core.execution import tune_process  # noqa: E402
from cspine_kit.phantom.competition.hostile import write_hostile  # noqa: E402

CORRUPTED, SPARED = 200, 20

Attempt = Callable[[], faults.Count]


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def campaign(ground: faults.Ground, hostile: Path) -> dict[str, Attempt]:
    """Every cell of the matrix, then what has no place in it, by name."""
    cells: dict[str, Attempt] = {
        f"{stage}, {kind}": lambda cell=MATRIX[stage, kind]: cell(ground)
        for stage in STAGES
        for kind in KINDS
    }
    return cells | {
        "many": lambda: corrupted(ground, CORRUPTED, spared=SPARED),
        "defects": lambda: cells_machine.hostile(ground, hostile),
        "readers": lambda: cells_machine.killed_workers(ground, 40, kills=8),
        "clock": lambda: cells_machine.clock_jumps(ground, 10),
        "disk at the end": lambda: cells_machine.full_disk(ground, 20, 40, rows_fit=True),
    }


def grid(counts: dict[str, faults.Count]) -> list[str]:
    """The matrix: tried and lost of every cell."""
    lines = ["", f"{'tried/lost':12s}" + "".join(f"{kind:>12s}" for kind in KINDS)]
    for stage in STAGES:
        cells = [counts.get(f"{stage}, {kind}") for kind in KINDS]
        shown = [f"{c.tried}/{c.lost}{'' if c.ok else ' !'}" if c else "-" for c in cells]
        lines.append(f"{stage:12s}" + "".join(f"{text:>12s}" for text in shown))
    return [*lines, ""]


def main() -> int:
    """Try every fault; print a row as each is done, and the matrix at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="of a config with test_* backbones")
    parser.add_argument("--images", type=Path, help="folder of sound studies")
    parser.add_argument("--only", default="", help="faults whose stage or kind holds this text")
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
        say(f"{'where':22s} {'fault':34s} {'tried':>5s} {'valid':>10s} {'lost':>5s} {'s':>6s}")
        counts = {}
        for name, attempt in campaign(ground, hostile).items():
            if args.only not in name:
                continue
            start = time.monotonic()
            count = counts[name] = attempt()
            valid, mark = f"{count.valid} of {count.runs}", "" if count.ok else "  <- WRONG"
            say(
                f"{name:22s} {count.fault:34s} {count.tried:5d} {valid:>10s} {count.lost:5d} "
                f"{time.monotonic() - start:6.1f}{mark}  {count.remark}"
            )
        say("\n".join(grid(counts)))
        every = counts.values()
        runs, valid = sum(c.runs for c in every), sum(c.valid for c in every)
        tried, lost = sum(c.tried for c in every), sum(c.lost for c in every)
        say(f"{len(every)} kinds, {tried} tried: {valid} of {runs} valid submissions, {lost} lost")
        record("runs without a valid submission", runs - valid, 0, most=True)
        record("studies lost beyond those hit", lost, 0, most=True)
    return 0 if all(count.ok for count in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

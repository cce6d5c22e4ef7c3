"""Every benchmark, one after the other, and one table of what they found beside their goals.

Run: python tests/benchmarks/bench_all.py [--only TEXT ...] [--run oof/demo]

Sizes are chosen for two cores and an hour. What needs a finished run (`make demo`) or the real data
(CSPINE_REAL_DATA) is left out where there is none, and the table says so. A time is worth what the
machine is: the table begins with the GFLOP/s of a 2048 x 2048 float32 product before and after.
Exit code 1 where a benchmark itself failed; a goal that is missed is a result.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from goals import FILE

from cspine_kit.core.execution import measure_gflops, usable_cores

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REAL = os.environ.get("CSPINE_REAL_DATA", "")


@dataclass(frozen=True)
class Benchmark:
    """A script, its arguments, and what must be there for it ("run", "real")."""

    script: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def benchmarks(run: Path, scratch: Path) -> list[Benchmark]:
    """All of them, quick ones first."""
    tiny = ("--size", "96", "--px", "64", "--backbones", "test_resnet")
    few = ("--studies", "6", "--test-studies", "3")
    small = ("--studies", "12", "--size", "96", "--px", "48", "--epochs", "1")
    return [
        Benchmark("bench_data_reader.py"),
        Benchmark("bench_vision_patches.py"),
        Benchmark("bench_vision_memory.py"),
        Benchmark("bench_stack_statistics.py"),
        Benchmark("bench_vertebra_levels.py", ("--run", str(run)), ("run",)),
        Benchmark("bench_vertebra_crops.py", ("--run", str(run)), ("run",)),
        Benchmark("bench_vertebra_transfer.py", ("--run", str(run)), ("run", "real")),
        Benchmark(
            "bench_kernel.py",
            ("--bundle", str(run / "bundle"), "--competition", str(run / "competition")),
            ("run",),
        ),
        Benchmark(
            "bench_show_viewer.py",
            ("--bundle", str(run / "bundle"), "--studies", str(run / "competition/test_images")),
            ("run",),
        ),
        Benchmark("bench_phantom_calibration.py", ("--rendered", "40"), ("real",)),
        Benchmark("bench_stack_quality.py", ("--studies", "600")),
        Benchmark(
            "bench_stack_coverage.py", ("--out", str(scratch / "worlds.csv"), "--every", "20")
        ),
        Benchmark("bench_gpu.py", ("--out", str(scratch / "gpu"), *tiny, *few)),
        Benchmark("bench_gpu_hard.py", ("--out", str(scratch / "hard"), *small)),
        Benchmark("bench_kernel_faults.py"),
    ]


def missing(benchmark: Benchmark, run: Path) -> str:
    """Why a benchmark cannot run here; empty where it can."""
    if "run" in benchmark.needs and not (run / "bundle" / "manifest.json").exists():
        return f"no finished run in {run} (make demo)"
    if "real" in benchmark.needs and not Path(REAL or "nowhere").is_dir():
        return "no real data (CSPINE_REAL_DATA)"
    return ""


def rows_of(path: Path) -> list[dict[str, object]]:
    """What a benchmark wrote down."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def table(found: dict[str, list[dict[str, object]]], remarks: dict[str, str]) -> list[str]:
    """One line for each figure, and one for each benchmark that has none."""
    lines = [f"{'benchmark':26s} {'what':44s} {'found':>10s} {'goal':>11s}"]
    for name, rows in found.items():
        for row in rows:
            value, goal = float(str(row["found"])), float(str(row["goal"]))
            met = value <= goal if row["most"] else value >= goal
            asked = f"{'<=' if row['most'] else '>='} {goal:g}"
            mark = "" if met else "  MISSED"
            lines.append(f"{name:26s} {row['what']!s:44s} {value:10.4g} {asked:>11s}{mark}")
        if name in remarks or not rows:
            lines.append(f"{name:26s} {remarks.get(name, 'ran; it has no goal')}")
    return lines


def main() -> int:
    """Run them, each in a process of its own; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="scripts whose name holds one")
    parser.add_argument("--run", type=Path, default=ROOT / "oof" / "demo")
    args = parser.parse_args()
    run = args.run.absolute()
    before, found, remarks, failed = measure_gflops(), {}, {}, False
    with tempfile.TemporaryDirectory() as scratch:
        for benchmark in benchmarks(run, Path(scratch)):
            if not any(text in benchmark.script for text in args.only):
                continue
            name = benchmark.script.removeprefix("bench_").removesuffix(".py")
            found[name], why = [], missing(benchmark, run)
            if why:
                remarks[name] = f"left out: {why}"
                continue
            file, start = Path(scratch) / f"{name}.jsonl", time.monotonic()
            sys.stdout.write(f"== {benchmark.script} {' '.join(benchmark.arguments)}\n")
            sys.stdout.flush()
            command = [sys.executable, str(HERE / benchmark.script), *benchmark.arguments]
            code = subprocess.run(command, env={**os.environ, FILE: str(file)}, check=False)
            found[name] = rows_of(file)
            sys.stdout.write(f"   {time.monotonic() - start:.0f} s\n")
            if code.returncode:
                failed, remarks[name] = True, f"FAILED with {code.returncode}"
    after, load = measure_gflops(), os.getloadavg()[0]
    lines = [f"\n{usable_cores()} cores, {before:.0f} and {after:.0f} GFLOP/s, load {load:.1f}"]
    sys.stdout.write("\n".join([*lines, *table(found, remarks)]) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

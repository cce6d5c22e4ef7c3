"""The demo's chain on phantom worlds that nothing was chosen on: this checkout beside others.

Run: python tests/benchmarks/bench_worlds.py --out DIR [--seeds 31 77] [--hidden 100] [--jobs 2]
         [--against CHECKOUT ...] [--python PYTHON]

Each world (`configs/demo.yaml`'s phantom with another seed and more hidden studies) is written once
and read by every checkout with its own `configs/demo.yaml`. One row per world and checkout: metric
A and B of what ships, out-of-fold and on the hidden truth, wall seconds and processor seconds of
its verbs. What is finished is skipped, so that the run may be stopped and repeated.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("oof", "stack", "bundle", "kernel", "score")


def run(command: list[str], folder: Path, checkout: Path, log: Path) -> float:
    """Run a verb of a checkout; returns the processor seconds of it and its children."""
    env = {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with log.open("a") as handle:
        child = subprocess.Popen(command, cwd=folder, env=env, stdout=handle, stderr=handle)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{command} failed, see {log}")
    return usage.ru_utime + usage.ru_stime


def write_world(out: Path, seed: int, hidden: int, jobs: int, python: str) -> Path:
    """The competition folder of one world."""
    folder = out / f"world_{seed}"
    if not (folder / "solution.csv").exists():
        demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())["competition"][
            "phantom"
        ]
        command = [python, "-m", "cspine_kit", "phantom", "--out", str(folder)]
        given = {
            "--studies": demo["studies"],
            "--test-studies": hidden,
            "--size": demo["size_px"],
            "--difficulty": demo["difficulty"],
            "--masked": demo["masked"],
            "--boxed": demo["boxed"],
            "--seed": seed,
            "--jobs": jobs,
        }
        run([*command, *(str(v) for pair in given.items() for v in pair)], out, ROOT, out / "log")
    return folder


def chain(out: Path, world: Path, checkout: Path, jobs: int, python: str) -> dict[str, object]:
    """Every verb of one checkout on one world, and what came out."""
    folder = out / f"{world.name}_{checkout.name}"
    done = folder / "submissions" / "demo" / "results.csv"
    times = folder / "times.csv"
    if not times.exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(checkout / "configs", folder / "configs")
        shutil.copytree(checkout / "kernels", folder / "kernels")
        config = folder / "configs" / "demo.yaml"
        raw = yaml.safe_load(config.read_text())
        raw["competition"] = {"dir": str(world), "phantom": None}
        raw["execution"] = {"jobs": jobs, "threads": 1}
        raw["bundle"]["wheels"] = []
        config.write_text(yaml.safe_dump(raw))
        start, spent = time.monotonic(), 0.0
        for verb in VERBS:
            command = [python, "-m", "cspine_kit", verb, "--config", "configs/demo.yaml"]
            spent += run(command, folder, checkout, folder / "log")
        row = {"wall_s": time.monotonic() - start, "processor_s": spent}
        pd.DataFrame([row]).to_csv(times, index=False)
    table = pd.read_csv(done)
    ships = table[table["ships"]].iloc[0]
    return {
        "world": world.name,
        "code": checkout.name,
        "ships": ships["model"],
        "oof A": ships["per_exam"],
        "oof B": ships["global"],
        "hidden A": ships["test_per_exam"],
        "hidden B": ships["test_global"],
        **pd.read_csv(times).iloc[0].to_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 77])
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one chain")
    parser.add_argument("--at-once", type=int, default=1, help="chains side by side")
    parser.add_argument("--against", type=Path, nargs="*", default=[])
    parser.add_argument("--python", default=sys.executable)
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    checkouts = [ROOT, *(path.resolve() for path in args.against)]
    jobs = args.jobs * args.at_once
    worlds = [write_world(out, seed, args.hidden, jobs, args.python) for seed in args.seeds]
    with ThreadPoolExecutor(args.at_once) as pool:
        waiting = [
            pool.submit(chain, out, world, checkout, args.jobs, args.python)
            for world in worlds
            for checkout in checkouts
        ]
        rows = [each.result() for each in waiting]
    table = pd.DataFrame(rows)
    table.to_csv(out / "worlds.csv", index=False)
    sys.stdout.write(table.round(4).to_string(index=False) + "\n")


if __name__ == "__main__":
    main()

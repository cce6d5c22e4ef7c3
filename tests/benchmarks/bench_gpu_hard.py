"""What networks learn on a phantom as hard as the real data: one fold of three members, scored.

Run: python tests/benchmarks/bench_gpu_hard.py --out DIR [--studies 64] [--size 512] [--epochs N]
         [--members axial each seven] [--px N]

`configs/hard-gpu.yaml` with fewer studies, meant for nine minutes of one GPU with 16 cores beside
it (nobody has timed it there). Each member of fold 0 is trained by `cspine train`; what it says of
the fold's own studies after its last epoch, and its seconds, are printed as one JSON object, also
in DIR/hard.json. Without a GPU: --studies 12 --size 96 --px 48 --epochs 1. What is finished is
skipped, so that a run that was cut goes on.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import yaml
from bench_gpu import cspine, machine

from cspine_kit.core.config import Config, load_config
from cspine_kit.core.paths import RunPaths

ROOT = Path(__file__).resolve().parents[2]
NAME = "hard-gpu"
FOLD = 0


def write_config(folder: Path, args: argparse.Namespace) -> Path:
    """A folder as a clone's with the hard config, its phantom and members as asked."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    source = ROOT / "configs"
    (folder / "configs" / "base.yaml").write_text((source / "base.yaml").read_text())
    raw = yaml.safe_load((source / f"{NAME}.yaml").read_text())
    given = {"studies": args.studies, "test_studies": 1, "size_px": args.size}
    raw["competition"]["phantom"] |= given
    raw["members"] = {name: raw["members"][name] for name in args.members}
    asked = {"epochs": args.epochs, "size_px": args.px}
    asked = {key: value for key, value in asked.items() if value is not None}
    for part in (raw["model"], *raw["members"].values()):
        part.update(asked)
    path = folder / "configs" / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def scores(config: Config, paths: RunPaths, member: str) -> dict[str, float | None]:
    """What the last epoch found on the fold's own studies (None: no number), and the seconds."""
    folder = paths.model(member, FOLD)
    with (folder / "history.csv").open() as handle:
        *_, last = csv.DictReader(handle)
    seconds = json.loads((folder / "run.json").read_text())["seconds"]
    kept = {name: None if value in ("", "nan") else float(value) for name, value in last.items()}
    return {"px": config.members[member].size_px, "seconds": seconds, **kept}


def main() -> None:
    """Train, read, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=64)
    parser.add_argument("--size", type=int, default=512)
    known = list(load_config(ROOT / "configs" / f"{NAME}.yaml").members)
    three = ["axial", "each", "seven"]
    parser.add_argument("--members", nargs="+", default=three, choices=known)
    parser.add_argument("--px", type=int, help="of every network; the config's by default")
    parser.add_argument("--epochs", type=int, help="of every network; the config's by default")
    args = parser.parse_args()
    folder = args.out.resolve() / "run"
    path = write_config(folder, args)
    found = {**machine(), "studies": args.studies, "fold": FOLD}
    config, paths = load_config(path), RunPaths(folder / "oof" / NAME)
    for member in config.members:
        cspine("train", path, "--member", member, "--fold", str(FOLD))
        found[member] = scores(config, paths, member)
    text = json.dumps(found, indent=1)
    (args.out / "hard.json").write_text(text)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()

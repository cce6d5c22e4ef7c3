"""Options of the vertebra stage beside each other: presence on slices, centers, Dice, rounds.

Run: python tests/benchmarks/bench_vertebra_networks.py [--config configs/sources/small.yaml]

On the config's own phantom: presence targets, area targets, the header branch and the segmentation
U-Net, each alone, the U-Net beside each other one, and all together; then two rounds of
pseudo-labels. Networks that the config's own run has are taken from there. Runs go to
`oof/<name>/stage`.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from cspine_kit.core.config import Config, parse_config, read_config
from cspine_kit.core.config.changes import apply_changes
from cspine_kit.core.paths import RunPaths
from cspine_kit.show.ablation.run import begin_run
from cspine_kit.show.networks import networks_table
from cspine_kit.show.presence import write_presence
from cspine_kit.vision.names import VERTEBRA
from cspine_kit.vision.oof.run import make_levels

SECOND = "unet"
MEMBERS = {"area": {"target": "area"}, "header": {"header": True}, SECOND: {"kind": "segment"}}
BESIDE = [[name, SECOND] for name in (VERTEBRA, "area", "header")]
RUNS = {"networks": {"vertebra_members": MEMBERS}, "rounds": {"vertebra.rounds": 2}}


def told(config: Config, paths: RunPaths, start: RunPaths) -> None:
    """Make the vertebra stage, and print what its networks are worth."""
    config = begin_run(config, paths, start)
    make_levels(config, paths)
    write_presence(config, paths)
    also = BESIDE if SECOND in config.stage else ()
    names = ("presence.csv", "dice.csv")
    files = [paths.root / VERTEBRA / name for name in names]
    presence, *dice = (pd.read_csv(file) for file in files if file.exists())
    tables = [networks_table(config, paths, also), presence[presence["level"] == "mean"], *dice]
    for table in tables:
        sys.stdout.write(table.to_string(index=False, float_format="{:.3f}".format) + "\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/sources/small.yaml"))
    path = parser.parse_args().config
    raw = read_config(path)
    start = RunPaths(Path("oof") / str(raw["name"]))
    make_levels(begin_run(parse_config(raw, path), start), start)
    for name, changes in RUNS.items():
        config = parse_config(apply_changes(read_config(path), changes), path)
        told(config, RunPaths(start.root / "stage" / name), start)


if __name__ == "__main__":
    main()

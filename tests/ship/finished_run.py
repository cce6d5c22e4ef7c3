"""A run as `make oof` and `make stack` leave it, made of what the tiny chain learned."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from cspine_kit.core.config import Config, merge, parse_config
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.resolved import finish
from cspine_kit.stack.pipeline import stack_key

ROOT = Path(__file__).resolve().parents[2]


def make_config(**bundle: object) -> Config:
    """The tiny config for a competition of its own, with changes to its section `bundle`."""
    base, tiny = (yaml.safe_load(p.read_text()) for p in (ROOT / "configs/base.yaml", TINY))
    tiny.pop("base")
    tiny["bundle"] |= {"owner": "me", **bundle}
    tiny["competition"] = {"dir": "nowhere", "slug": "rsna", "phantom": None}
    return parse_config(merge(base, tiny), TINY)


TINY = ROOT / "tests" / "tiny.yaml"


@dataclass(frozen=True)
class Run:
    """A config, its run folder and its kernel folder."""

    config: Config
    paths: RunPaths
    kernel: Path
    proof: Path
    """The phantom study that travels."""

    def with_bundle(self, **changes: object) -> "Run":
        """The same run folder under another section `bundle`."""
        return Run(make_config(**changes), self.paths, self.kernel, self.proof)


def make_run(folder: Path, chain: Path) -> Run:
    """Write a finished run below `folder`; models, stack and tables are those of the tiny chain."""
    config, paths, learned = (
        make_config(),
        RunPaths(folder / "oof" / "tiny"),
        chain / "oof" / "tiny",
    )
    shutil.copytree(learned / "models", paths.root / "models")
    shutil.copytree(learned / "stack", paths.stack)
    shutil.copytree(learned / "tables", paths.root / "tables")
    shutil.copy(learned / "folds.csv", paths.folds)
    write_scores(paths, config)
    finish(config, paths, "oof")
    kernel = folder / "kernels" / "submit"
    kernel.mkdir(parents=True)
    (kernel / "submit.py").write_text((ROOT / "kernels/submit/submit.py").read_text())
    [proof] = (learned / "proof" / "test_images").iterdir()
    return Run(config, paths, kernel, proof)


def write_scores(paths: RunPaths, config: Config, **changes: object) -> None:
    """Write scores.csv, fresh for this config, with changes to the row that ships."""
    row = {"model": "stack", "per_exam": 0.3, "global": 0.31, "ships": True} | changes
    rows = [{"model": "best_constant", "per_exam": 0.6, "global": 0.6, "ships": False}, row]
    scores = paths.stack / "scores.csv"
    pd.DataFrame(rows).to_csv(scores, index=False)
    scores.with_name("scores.csv.key").write_text(stack_key(config, paths) + "\n")

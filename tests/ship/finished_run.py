"""A run as `make oof` and `make stack` leave it, with a few bytes in place of what was learned."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.config import Config, merge, parse_config
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.resolved import finish
from cspine_kit.core.runs import write_json
from cspine_kit.core.tables import write_table
from cspine_kit.stack.pipeline import stack_key
from cspine_kit.vision.names import MODEL_FILE, VERTEBRA, WEIGHTS_FILE

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

    def with_bundle(self, **changes: object) -> "Run":
        """The same run folder under another section `bundle`."""
        return Run(make_config(**changes), self.paths, self.kernel)


def make_run(folder: Path) -> Run:
    """Write a finished run below `folder`."""
    config, paths = make_config(), RunPaths(folder / "oof" / "tiny")
    for member in (VERTEBRA, *config.members):
        for fold in range(config.folds.n):
            model = paths.model(member, fold)
            write_json(model / MODEL_FILE, {"heads": {}})
            (model / WEIGHTS_FILE).write_bytes(f"{member} {fold}".encode() * 50)
    labels = pd.DataFrame({"study_uid": ["1.1", "1.2"]} | {t: [0.0, 1.0] for t in TARGETS})
    filled = {"split": "train", "transfer_syntax": "", "problems": ""}
    filled |= dict.fromkeys(("n_slices", "rows", "cols"), 1)
    filled |= dict.fromkeys(("spacing_z", "spacing_y", "spacing_x"), 1.0)
    filled |= dict.fromkeys(("reversed", "irregular", "has_mask", "has_boxes"), False)
    write_table(labels.assign(**filled), paths.table("studies"), "studies", "key")
    (paths.stack / "models").mkdir(parents=True)
    write_json(paths.stack / "models" / "stack.json", {"ships": "stack"})
    (paths.stack / "models" / "fold_0_level_0.txt").write_text("tree\n")
    write_scores(paths, config)
    finish(config, paths, "oof")
    kernel = folder / "kernels" / "submit"
    kernel.mkdir(parents=True)
    (kernel / "submit.py").write_text((ROOT / "kernels/submit/submit.py").read_text())
    return Run(config, paths, kernel)


def write_scores(paths: RunPaths, config: Config, **changes: object) -> None:
    """Write scores.csv, fresh for this config, with changes to the row that ships."""
    row = {"model": "stack", "per_exam": 0.3, "global": 0.31, "ships": True} | changes
    rows = [{"model": "best_constant", "per_exam": 0.6, "global": 0.6, "ships": False}, row]
    scores = paths.stack / "scores.csv"
    pd.DataFrame(rows).to_csv(scores, index=False)
    scores.with_name("scores.csv.key").write_text(stack_key(config, paths) + "\n")

"""Fold models that another run folder has made from the same are taken over, not trained again.

In: a config and its run folder with the data room's tables, another run folder. Out: models and
their rows, as links. Example: `borrow_models(config, paths, RunPaths(Path("oof/demo")))`.

The keys decide: a model is taken where its key is the one that this run would give it. The kit
replaces files and never writes into them, so a link is as good as a copy.
"""

import os
import shutil
from pathlib import Path

from cspine_kit.core.config import Config
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import publish
from cspine_kit.vision.chain import FoldChain
from cspine_kit.vision.inputs import open_inputs


def link(source: Path | str, target: Path | str) -> None:
    """A second name of a file, a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def borrow_models(config: Config, paths: RunPaths, other: RunPaths) -> list[str]:
    """Take over what fits of every network and fold.

    Args:
        config: of this run.
        paths: its folder; tables `studies`, `slices` and `coarse` and the folds are there.
        other: the run folder that may have what is missing.

    Returns:
        What was taken, as "<network> fold <k>".
    """
    inputs, taken = open_inputs(paths), []
    for fold in range(config.folds.n):
        own, theirs = (FoldChain(config, place, inputs, fold) for place in (paths, other))
        for name in config.trained:
            if not own.has_model(name) and theirs.has_model(name):
                with publish(paths.model(name, fold)) as temporary:
                    shutil.copytree(other.model(name, fold), temporary, copy_function=link)
                taken.append(f"{name} fold {fold}")
    return taken

"""Fold models that another run folder has made from the same are taken over, not trained again.

In: a config, its run folder, another run folder, and what the run starts from. Out: models and
their rows, as links. Example::

    from cspine_kit.vision.inputs.tables import open_inputs

    borrow_models(config, RunPaths(Path("oof/other")), paths, open_inputs(paths))

The keys decide: a model is taken where its key is the one that this run would give it. The kit
replaces files and never writes into them, so a link is as good as a copy.
"""

import os
import shutil
from pathlib import Path

from cspine_kit.core.config import Config
from cspine_kit.core.paths import RunPaths
from cspine_kit.core.runs import publish
from cspine_kit.vision.inputs.tables import Inputs
from cspine_kit.vision.oof.chain import FoldChain


def link(source: Path | str, target: Path | str) -> None:
    """A second name of a file, a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def borrow_models(config: Config, paths: RunPaths, other: RunPaths, inputs: Inputs) -> list[str]:
    """Take over what fits of every network and fold.

    Args:
        config: of this run.
        paths: its folder.
        other: the run folder that may have what is missing.
        inputs: what this run starts from.

    Returns:
        What was taken, as "<network> fold <k>".
    """
    taken = []
    for fold in range(config.folds.n):
        own, theirs = (FoldChain(config, place, inputs, fold) for place in (paths, other))
        for name in config.trained:
            if not own.has_model(name) and theirs.has_model(name):
                with publish(paths.model(name, fold)) as temporary:
                    shutil.copytree(other.model(name, fold), temporary, copy_function=link)
                taken.append(f"{name} fold {fold}")
    return taken

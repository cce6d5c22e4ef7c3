"""The finder that ships, made from a run of the vertebra stage on phantoms: weights and card.

In: fold 0's chain of `configs/finder.yaml`. Out: a folder that `shipped_finder` opens. Example::

    from cspine_kit.vision.inputs.tables import open_inputs

    chain = FoldChain(config, paths, open_inputs(paths), fold=0)
    made = make_finder(chain, Path("finder"), {"test": competition})
    made["figures"]["test"]["all"]["present_right"]

The studies of fold 0 calibrate the confidence, others learned nothing from (test studies of
phantom competitions) give the card its figures.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cspine_kit import __version__
from cspine_kit.core.config import Config, PhantomConfig
from cspine_kit.core.paths import Competition
from cspine_kit.core.runs import file_hash, package_versions, read_json, write_json
from cspine_kit.data.confidence import PLAIN, fit_calibration
from cspine_kit.data.volumes.read import read_coarse
from cspine_kit.vision.finder.finder import CARD_FILE, LevelFinder, shipped_finder
from cspine_kit.vision.finder.score import by_variety, judge, read_truth
from cspine_kit.vision.names import MODEL_FILE, VERTEBRA, WEIGHTS_FILE
from cspine_kit.vision.nets.store import SYNTHETIC, load_model
from cspine_kit.vision.oof.calibration import judged_beliefs
from cspine_kit.vision.oof.chain import FoldChain

CHECK_PHANTOM = PhantomConfig(
    studies=1, test_studies=4, size_px=96, masked=0, boxed=0, variety=0.5, files="nifti", seed=81
)
"""Small phantoms on which a test repeats the card's figures."""

ABOUT = (
    "Finds C1 to C7 in CT scans: which of them the scan shows, where, and how sure that is. "
    "Trained on synthetic scans only: it has never seen a patient, nor a mask drawn by a person."
)
LIMITS = (
    "Research use only; not a medical device, not for diagnosis.",
    "It counts seven: fused, missing or further vertebrae and cervical ribs are not among its "
    "phantoms.",
    "Children's bones are not among its phantoms: its small ones are adults drawn smaller.",
    "CT in Hounsfield units only; other modalities give nonsense.",
    "A level that the scan cuts in two may be told absent or present.",
)


def recipe(config: Config) -> dict[str, Any]:
    """The parts of a config that decide the finder."""
    whole = config.model_dump(mode="json")
    parts = {name: whole[name] for name in ("name", "seed", "folds", "vertebra")}
    return {**parts, "phantom": whole["competition"]["phantom"]}


def levels_of(finder: LevelFinder, competition: Competition) -> pd.DataFrame:
    """Levels of the test studies of a competition."""
    found = []
    for folder in sorted(competition.test_images.iterdir()):
        coarse, _ = read_coarse(folder, finder.volumes)
        found.append(finder.levels(coarse).assign(study_uid=folder.name))
    return pd.concat(found, ignore_index=True)


def score(finder: LevelFinder, competition: Competition) -> dict[str, dict[str, Any]]:
    """Figures on the test studies of a phantom competition, by variety and of all."""
    return by_variety(judge(levels_of(finder, competition), read_truth(competition, "test")))


def make_finder(
    chain: FoldChain, into: Path, judged_on: Mapping[str, Competition], commit: str = ""
) -> dict[str, Any]:
    """Write a finder from vertebra model k, which is trained.

    Args:
        chain: of fold k; its own studies calibrate the confidence.
        into: the folder to write.
        judged_on: phantom competitions by name; their test studies give the card its figures.
        commit: of the code.

    Returns:
        The card.
    """
    config, trained = chain.config, chain.paths.model(VERTEBRA, chain.fold)
    raw = LevelFinder([load_model(trained)], PLAIN, config.volumes)
    told = [
        raw.levels(chain.inputs.volume(uid, "coarse")).assign(study_uid=uid)
        for uid in chain.masked_here
    ]
    line = fit_calibration(*judged_beliefs(pd.concat(told), chain.inputs.slices))
    into.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(trained / WEIGHTS_FILE, into / WEIGHTS_FILE)
    write_json(into / MODEL_FILE, {**read_json(trained / MODEL_FILE), SYNTHETIC: True})
    line.save(into)
    weights, run = into / WEIGHTS_FILE, read_json(trained / "run.json")
    card = {
        "about": ABOUT,
        "limits": LIMITS,
        "kit": __version__,
        "commit": commit,
        "recipe": recipe(config),
        "learned_from": len(chain.masked),
        "calibrated_on": len(chain.masked_here),
        "training": {"seconds": run["seconds"], "device": run["device"]},
        "versions": package_versions(),
        "volumes": config.volumes.model_dump(mode="json"),
        "weights_sha256": file_hash(weights),
        "megabytes": round(weights.stat().st_size / 1e6, 2),
    }
    write_json(into / CARD_FILE, card)
    finder = shipped_finder(into)
    card["figures"] = {name: score(finder, given) for name, given in judged_on.items()}
    write_json(into / CARD_FILE, card)
    return card

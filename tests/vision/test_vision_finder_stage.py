"""A competition without masks: the finder that ships is the vertebra model of every fold.

Networks are fakes, and the finder is one that knows the run's own coarse volumes.
"""

import shutil

import numpy as np
import pytest
from fake_networks import fake_networks
from run_folder import tiny_config, write_run

from cspine_kit.core.errors import ConfigError, DataError
from cspine_kit.core.paths import FINDER
from cspine_kit.core.runs import fingerprint, read_json, write_json
from cspine_kit.core.tables import read_table, write_table
from cspine_kit.data.confidence import Calibration
from cspine_kit.vision.finder import lend
from cspine_kit.vision.finder.finder import CARD_FILE
from cspine_kit.vision.nets.store import load_model
from cspine_kit.vision.oof import calibration
from cspine_kit.vision.oof.lineage import read_lineage
from cspine_kit.vision.oof.run import run_oof


def from_finder(**changes):
    config = tiny_config()
    stage = config.vertebra.model_copy(update={"weights": "finder", **changes})
    return config.model_copy(update={"vertebra": stage})


def unmask(paths, uids=None):
    """Take the masks of all studies, or of these."""
    studies, slices = (read_table(paths.table(name), name) for name in ("studies", "slices"))
    bare = studies["study_uid"].isin(studies["study_uid"] if uids is None else uids)
    studies.loc[bare, "has_mask"] = False
    masks = [c for c in slices if c.startswith(("mask_", "spine_"))]
    slices.loc[slices["study_uid"].isin(studies.loc[bare, "study_uid"]), masks] = np.nan
    write_table(studies, paths.table("studies"), "studies", "bare")
    write_table(slices, paths.table("slices"), "slices", "bare")


@pytest.fixture(name="made")
def _made(monkeypatch):
    return fake_networks(monkeypatch)


@pytest.fixture(name="paths")
def _paths(tmp_path):
    return write_run(tmp_path / "run", 8)


@pytest.fixture(name="finder")
def _finder(tmp_path, monkeypatch):
    """The finder that ships, as if it had learned from the run's coarse volumes."""
    folder = shutil.copytree(FINDER, tmp_path / "finder")
    card = read_json(folder / CARD_FILE)
    volumes = tiny_config().volumes.model_dump(mode="json")
    write_json(folder / CARD_FILE, {**card, "volumes": volumes})
    for module in (lend, calibration):
        monkeypatch.setattr(module, "FINDER", folder)
    return folder


def test_without_masks_the_finder_speaks_in_every_fold(made, paths, finder):
    unmask(paths)
    run_oof(from_finder(), paths)
    assert made.count_of("train", "vertebra") == 0 and made.count_of("train", "a", "b") == 4
    for fold in (0, 1):
        folder = paths.model("vertebra", fold)
        assert read_lineage(folder) == []
        assert read_json(folder / "model.json")["learned_from"] == fingerprint([])
        assert load_model(folder).synthetic
        assert Calibration.load(folder) == Calibration.load(finder)
    levels = read_table(paths.table("levels"), "levels")
    assert set(levels["source"]) == {"finder"} and levels["present"].all()
    made.clear()
    run_oof(from_finder(), paths)
    assert not made


def test_one_mask_in_a_fold_and_its_model_is_trained(made, paths, finder):
    unmask(paths, [f"1.2.{k}" for k in range(2, 9)])
    run_oof(from_finder(), paths)
    # Study 1 lies in fold 0: model 1 learns from it, model 0 may not.
    assert [entry for entry in made if entry[:2] == ("train", "vertebra")] == [
        ("train", "vertebra", 1)
    ]
    levels = read_table(paths.table("levels"), "levels")
    told = levels.groupby("model_fold")["source"].unique().map(list).to_dict()
    assert told == {0: ["finder"], 1: ["model"]}


def test_without_masks_a_run_that_does_not_ask_for_the_finder_says_how(made, paths, finder):
    unmask(paths)
    with pytest.raises(DataError, match=r"set vertebra\.weights: finder"):
        run_oof(tiny_config(), paths)
    with pytest.raises(DataError, match="vertebra_round_1 cannot learn"):
        run_oof(from_finder(rounds=1), paths)


def test_volumes_that_the_finder_does_not_know_are_refused(made, paths):
    unmask(paths)
    with pytest.raises(ConfigError, match=r"volumes\.coarse is .*spacing_mm=4.* knows .*2\.0"):
        run_oof(from_finder(), paths)

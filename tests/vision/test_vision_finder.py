"""The level finder that ships: it loads, and finds what its card says; others are told apart."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.errors import ArtifactError
from cspine_kit.core.paths import FINDER, FINDER_WEIGHTS
from cspine_kit.data.levels import ABSENT, FINDER_INTERPOLATED, by_finder
from cspine_kit.phantom.competition.write import write_competition
from cspine_kit.vision.finder.finder import CARD_FILE, shipped_finder
from cspine_kit.vision.finder.make import CHECK_PHANTOM, score
from cspine_kit.vision.finder.score import figures, judge

SLACK_MM, SLACK_LEVELS = 0.5, 1.5 / 28
"""Another machine rounds otherwise: so much, and one of the four studies' levels, may differ."""


def test_the_finder_that_ships_scores_as_its_card_says(tmp_path):
    finder = shipped_finder()
    told = finder.card["figures"]["check"]["all"]
    found = score(finder, write_competition(tmp_path / "check", CHECK_PHANTOM, jobs=1))["all"]
    assert found["studies"] == told["studies"] == 4
    for name in ("present_right", "near"):
        assert found[name] >= told[name] - SLACK_LEVELS, name
    assert found["error_mean_mm"] <= told["error_mean_mm"] + SLACK_MM


def test_it_is_small_and_says_what_it_is():
    card = json.loads((FINDER / CARD_FILE).read_text())
    assert FINDER_WEIGHTS.stat().st_size < 10e6
    assert "synthetic scans only" in card["about"] and card["limits"] and card["commit"]
    assert {"seed", "phantom", "vertebra"} <= set(card["recipe"])
    assert card["figures"]["test"]["all"]["studies"] >= 40


def test_other_weights_than_the_cards_are_refused(tmp_path):
    shutil.copytree(FINDER, tmp_path / "finder")
    with (tmp_path / "finder" / FINDER_WEIGHTS.name).open("ab") as weights:
        weights.write(b"x")
    with pytest.raises(ArtifactError, match=r"is not what card\.json describes"):
        shipped_finder(tmp_path / "finder")
    (tmp_path / "finder" / CARD_FILE).unlink()
    with pytest.raises(ArtifactError, match="holds no level finder"):
        shipped_finder(tmp_path / "finder")


def test_levels_of_a_finder_are_told_apart():
    levels = pd.DataFrame({"source": ["model", "interpolated", ABSENT]})
    assert by_finder(levels)["source"].tolist() == ["finder", FINDER_INTERPOLATED, ABSENT]


def test_figures_count_a_level_that_is_not_there_as_far():
    levels = pd.DataFrame(
        {
            "study_uid": "1",
            "level": ["C1", "C2", "C3", "C4"],
            "present": [True, True, False, True],
            "center_z_mm": [0.0, -20.0, -40.0, -70.0],
            "confidence": [0.95, 0.5, 0.0, 0.95],
        }
    )
    truth = levels[["study_uid", "level"]].assign(
        variety="plain", present=[False, True, False, True], center_z_mm=[0.0, -22.0, -40.0, -60.0]
    )
    found = figures(judge(levels, truth))
    assert found["studies"] == 1 and found["present_right"] == 0.75
    assert found["near"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["error_mean_mm"] == np.mean([2.0, 10.0])
    assert (found["sure"], found["sure_near"]) == (pytest.approx(2 / 3, abs=1e-3), 0.0)

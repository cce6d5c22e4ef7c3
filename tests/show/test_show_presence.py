"""Presence by headers, networks and decode: the same slices for all, and numbers that add up."""

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.tables import MASK_COLUMNS, SPINE_BOX_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.centers import LEVEL_EXTENT_MM, LEVEL_PITCH_MM
from cspine_kit.show import presence
from cspine_kit.show.presence import (
    DECODED,
    Judged,
    confusions,
    describe_presence,
    dice_table,
    judge_presence,
    presence_table,
)
from cspine_kit.show.report import vertebra
from cspine_kit.stack.headers.presence import FOREST, HEADERS

STUDIES, STEP_MM = 12, 2.0


@pytest.fixture(name="world", scope="module")
def _world():
    """Slices, studies, and rows of a network that is right and of one that swaps C3 and C4; necks
    begin 20 to 50 mm below the top of scans that are the longer the lower they begin."""
    slices, rows, studies = [], [], []
    for k in range(STUDIES):
        uid, start = f"1.2.{k}", 20.0 + 30.0 * k / STUDIES
        z = 500.0 - STEP_MM * np.arange(80 + 2 * k)
        below = z[0] - z
        middle = start + np.append(0.0, LEVEL_PITCH_MM.cumsum())
        shown = np.abs(below[:, None] - middle) <= LEVEL_EXTENT_MM / 2
        areas = np.maximum(0.0, LEVEL_EXTENT_MM / 2 - np.abs(below[:, None] - middle)) + shown
        own = pd.DataFrame(areas, columns=list(MASK_COLUMNS)).assign(study_uid=uid, z_mm=z)
        slices.append(own.assign(slice_number=np.arange(len(z)) + 1.0))
        studies.append({"study_uid": uid, "rows": 128, "cols": 128})
        said = pd.DataFrame(
            np.where(shown, 2.0 + 0.1 * areas, -5.0), columns=list(VERTEBRA_COLUMNS)
        )
        said = said.assign(study_uid=uid, at_mm=z, fold=k % 3, model_fold=k % 3)
        said = said.assign(**dict.fromkeys(SPINE_BOX_COLUMNS, 50.0))[::2]
        rows.append(said.assign(member="vertebra"))
        swapped = {"vertebra_C3": said["vertebra_C4"], "vertebra_C4": said["vertebra_C3"]}
        rows.append(said.assign(member="seg", **swapped)[::2])
    studies = pd.DataFrame(studies).assign(spacing_z=STEP_MM, spacing_y=1.0, spacing_x=1.0)
    return pd.concat(slices), studies, pd.concat(rows)


@pytest.fixture(name="judged", scope="module")
def _judged(world):
    return judge_presence(*world, ["vertebra", "seg"], seed=0)


def accuracy(table, system, level="mean"):
    own = table[(table["system"] == system) & (table["level"] == level)]
    return float(own["accuracy"].iloc[0])


def test_all_systems_are_judged_on_the_slices_of_the_first_network(judged):
    assert len(judged) == STUDIES and len(judged[0].truth) == 40
    for own in judged:
        assert list(own.said) == [FOREST, HEADERS, "vertebra", "seg", DECODED]
        assert all(said.shape == own.truth.shape for said in own.said.values())


def test_accuracies_are_in_the_order_that_they_must_be(judged):
    table = presence_table(judged)
    majority = np.mean([(own.truth == 0).mean() for own in judged])
    assert accuracy(table, "vertebra") == 1.0
    assert accuracy(table, "seg", "C1") > 0.95 > accuracy(table, "seg", "C3")
    assert majority < accuracy(table, HEADERS) < 1.0 and accuracy(table, FOREST) > majority
    assert accuracy(table, DECODED) > 0.9
    right = table[(table["system"] == "vertebra")]
    assert (right[["precision", "recall", "f1"]] == 1.0).all(axis=None)
    told = describe_presence(table).splitlines()
    assert told[1].split() == [*LEVELS, "mean"] and "1.0000" in told[4]


def test_a_study_of_which_a_network_said_nothing_is_left_out(world):
    slices, studies, rows = world
    less = rows[(rows["study_uid"] != "1.2.4") | (rows["member"] != "seg")]
    assert len(judge_presence(slices, studies, less, ["vertebra", "seg"], seed=0)) == STUDIES - 1
    bare = slices.assign(**dict.fromkeys(MASK_COLUMNS, np.nan))
    assert judge_presence(bare, studies, rows, ["vertebra"], seed=0) == []
    assert "no masked study" in describe_presence(presence_table([]))


def test_numbers_of_a_handful_of_slices():
    truth = np.zeros((4, 7))
    truth[:2, 0] = 9.0
    said = np.zeros((4, 7))
    said[1:3, 0] = 0.9
    said[3, 6] = 0.8
    judged = [Judged(truth, {"x": said})]
    first = presence_table(judged).set_index("level")
    assert first.loc["C1", ["accuracy", "precision", "recall", "f1"]].tolist() == [0.5] * 4
    assert first.loc["C7", "accuracy"] == 0.75 and np.isnan(first.loc["C7", "recall"])
    table = confusions(judged)
    found = table[table["slices"] > 0].set_index(["truth", "said"])["slices"].to_dict()
    assert found == {("C1", "none"): 1, ("C1", "C1"): 1, ("none", "C1"): 1, ("none", "C7"): 1}


def test_dice_is_over_all_voxels_and_over_studies():
    counts = pd.DataFrame(
        {
            "member": "seg",
            "study_uid": ["1", "2", "3", "1"],
            "level": ["C1", "C1", "C1", "C2"],
            "said_px": [10, 30, 50, 0],
            "true_px": [10, 10, 0, 20],
            "both_px": [10, 10, 0, 0],
        }
    )
    table = dice_table(counts).set_index("level")
    assert table.loc["C1", "dice"] == pytest.approx(40 / 60)
    assert table.loc["C1", "mean_dice"] == pytest.approx((1.0 + 0.5) / 2)
    assert table.loc["C2", ["studies", "dice", "mean_dice"]].tolist() == [1, 0.0, 0.0]


def test_the_figures_say_what_the_tables_hold(judged):
    figure = vertebra.presence(judged)
    assert "12 masked studies" in figure.caption and "vertebra 1.000" in figure.caption
    figure = vertebra.confusion(judged)
    assert "vertebra 100%" in figure.caption and "seg 100%" not in figure.caption
    assert set(presence.PUBLISHED) == {"D, random forest", "D, EfficientNetV2"}

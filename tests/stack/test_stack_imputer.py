"""A member that did not run is imputed from one that did."""

import json

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.errors import TableError
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.spine import SEEN, UNSEEN
from cspine_kit.stack.fallback.imputer import Imputer, fit_imputer
from cspine_kit.stack.fallback.lying import Lying

COLUMNS = [*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS]


def lying(study_uid="1.0", model_fold=0):
    """Sixteen slices of 1 mm from 15.5 mm down; C1 from 14 to 12 mm, ..., C7 from 2 to 0 mm."""
    levels = pd.DataFrame({"level": LEVELS, "present": True, "z_top_mm": np.arange(14, 0, -2.0)})
    levels = levels.assign(
        z_bottom_mm=levels["z_top_mm"] - 2, center_z_mm=levels["z_top_mm"] - 1, confidence=1.0
    )
    return Lying(np.arange(16), 15.5 - np.arange(16), levels)


def standing(rows, n):
    """The first n rows of a study as sagittal planes, the first of which shows nothing."""
    made = rows.head(n).assign(plane="sagittal", position=range(n), slice_idx=pd.NA, at_mm=0.0)
    made.loc[made.index[0], list(VERTEBRA_COLUMNS)] = -np.inf
    return made


@pytest.fixture(name="slices")
def _slices():
    """Member b = 2 a + 1 with a little noise; c is unrelated."""
    rng = np.random.default_rng(0)
    key = pd.DataFrame(
        [(f"1.{s}", i, s % 2) for s in range(10) for i in range(20)],
        columns=["study_uid", "position", "model_fold"],
    )
    a = rng.normal(size=(len(key), len(COLUMNS)))
    values = {"a": a, "b": 2 * a + 1 + rng.normal(0, 0.01, a.shape), "c": rng.normal(size=a.shape)}
    parts = [
        pd.concat(
            [
                key.assign(member=m, fold=key["model_fold"], plane="axial", at_mm=0.0),
                pd.DataFrame(v, columns=COLUMNS),
            ],
            axis=1,
        )
        for m, v in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_the_best_correlated_member_speaks_on_the_missing_ones_scale(slices):
    imputer = fit_imputer(slices)
    present = {m: slices[slices["member"] == m] for m in ("a", "c")}
    rows = imputer.rows("b", present)
    truth = slices[slices["member"] == "b"]
    assert set(rows["member"]) == {"b"}
    assert np.allclose(rows[COLUMNS].to_numpy(), truth[COLUMNS].to_numpy(), atol=0.1)
    assert rows["position"].tolist() == truth["position"].tolist()


def test_an_axial_member_that_only_standing_planes_can_replace_gets_axial_rows(slices):
    seen = standing(slices[slices["member"] == "a"], 3)
    rows = Imputer({}).rows("b", {"a": seen}, lying())
    assert set(rows["member"]) == {"b"} and set(rows["plane"]) == {"axial"}
    assert rows["position"].tolist() == rows["slice_idx"].tolist() == list(range(2, 16))
    assert rows["at_mm"].tolist() == [13.5 - i for i in range(14)]
    shown = np.where(np.repeat(np.eye(7, dtype=bool), 2, axis=0), SEEN, UNSEEN)
    assert np.array_equal(rows[list(VERTEBRA_COLUMNS)], shown)
    weight = 1 / (1 + np.exp(-seen[list(VERTEBRA_COLUMNS)].to_numpy()))
    mean = np.average(seen[list(FRACTURE_COLUMNS)], axis=0, weights=weight)
    assert np.allclose(rows[list(FRACTURE_COLUMNS)], mean)
    assert np.allclose(weight[0], 0)


def test_levels_between_two_slices_still_give_an_axial_row(slices):
    where = lying()
    thin = where.levels.assign(z_top_mm=7.2, z_bottom_mm=7.1, center_z_mm=7.15)
    seen = standing(slices[slices["member"] == "a"], 3)
    rows = Imputer({}).rows("b", {"a": seen}, Lying(where.slice_idx, where.z_mm, thin))
    assert rows["at_mm"].tolist() == [7.5]


def test_an_axial_member_is_replaced_by_an_axial_one_before_better_correlated_others(slices):
    present = {m: slices[slices["member"] == m] for m in ("a", "c")}
    present["a"] = standing(present["a"], 3)
    imputer = fit_imputer(slices)
    assert len(imputer.rows("b", present, lying())) == len(present["c"])
    assert len(imputer.rows("b", present)) == 3


def test_a_training_study_without_axial_rows_keeps_the_plane_of_the_others(slices):
    others = slices[slices["member"] != "c"]
    alone = others["study_uid"] == "1.3"
    a = others[(others["member"] == "a") & alone]
    table, counts = fit_imputer(others).complete(
        pd.concat([others[~alone], standing(a, 3).assign(member="a")]), lying
    )
    assert counts == {"b": 1}
    made = table[(table["member"] == "b") & (table["study_uid"] == "1.3")]
    assert set(made["plane"]) == {"axial"} and len(made) == 14


def test_an_unknown_member_is_copied_as_it_is(slices):
    rows = Imputer({}).rows("x", {"a": slices[slices["member"] == "a"]})
    assert np.array_equal(rows[COLUMNS], slices.loc[slices["member"] == "a", COLUMNS])
    with pytest.raises(TableError, match="'x'"):
        Imputer({}).rows("x", {})


def test_a_study_that_a_member_lacks_is_completed_and_counted(slices):
    lost = (slices["member"] == "b") & slices["study_uid"].isin(["1.3", "1.4"])
    table, counts = fit_imputer(slices).complete(slices[~lost], lying)
    assert counts == {"b": 2}
    assert table.groupby("member").size().to_dict() == {"a": 200, "b": 200, "c": 200}
    assert not table.duplicated(["member", "study_uid", "position", "model_fold"]).any()
    key = ["study_uid", "position"]
    made = table[(table["member"] == "b") & table["study_uid"].isin(["1.3", "1.4"])]
    truth = slices[lost].set_index(key)[COLUMNS]
    found = made.set_index(key)[COLUMNS].loc[truth.index]
    assert np.allclose(found, truth, atol=0.1)
    same, none = fit_imputer(slices).complete(slices, lying)
    assert same is slices and none == {}


def test_lines_and_order_survive_json(slices):
    imputer = fit_imputer(slices, order=("c", "b", "a"))
    assert Imputer.from_json(json.loads(json.dumps(vars(imputer)))) == imputer


def test_one_member_alone_has_nobody_to_speak_for_it(slices):
    alone = fit_imputer(slices[slices["member"] == "a"])
    assert alone.lines == {"a": {}}

"""A member that did not run is imputed from one that did."""

import json

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.errors import TableError
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.stack.fallback.imputer import Imputer, fit_imputer

COLUMNS = [*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS]


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


def test_an_unknown_member_is_copied_as_it_is(slices):
    rows = Imputer({}).rows("x", {"a": slices[slices["member"] == "a"]})
    assert np.array_equal(rows[COLUMNS], slices.loc[slices["member"] == "a", COLUMNS])
    with pytest.raises(TableError, match="'x'"):
        Imputer({}).rows("x", {})


def test_a_study_that_a_member_lacks_is_completed_and_counted(slices):
    lost = (slices["member"] == "b") & slices["study_uid"].isin(["1.3", "1.4"])
    table, counts = fit_imputer(slices).complete(slices[~lost])
    assert counts == {"b": 2}
    assert table.groupby("member").size().to_dict() == {"a": 200, "b": 200, "c": 200}
    assert not table.duplicated(["member", "study_uid", "position", "model_fold"]).any()
    key = ["study_uid", "position"]
    made = table[(table["member"] == "b") & table["study_uid"].isin(["1.3", "1.4"])]
    truth = slices[lost].set_index(key)[COLUMNS]
    found = made.set_index(key)[COLUMNS].loc[truth.index]
    assert np.allclose(found, truth, atol=0.1)
    same, none = fit_imputer(slices).complete(slices)
    assert same is slices and none == {}


def test_lines_and_order_survive_json(slices):
    imputer = fit_imputer(slices, order=("c", "b", "a"))
    assert Imputer.from_json(json.loads(json.dumps(vars(imputer)))) == imputer


def test_one_member_alone_has_nobody_to_speak_for_it(slices):
    alone = fit_imputer(slices[slices["member"] == "a"])
    assert alone.lines == {"a": {}}

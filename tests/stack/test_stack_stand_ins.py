"""Stand-ins: a member that did not run is spoken for, and the ranking knows who is missed."""

import numpy as np
import pandas as pd
import pytest

from cspine_kit.core.errors import TableError
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.stack.fallback.stand_ins import StandIns, fit_stand_ins, rank_members, without

COLUMNS = [*VERTEBRA_COLUMNS, *FRACTURE_COLUMNS]


@pytest.fixture(name="slices")
def _slices():
    """Member b = 2 a + 1 with a little noise; c is unrelated."""
    rng = np.random.default_rng(0)
    key = pd.DataFrame(
        [(f"1.{s}", i, s % 2) for s in range(10) for i in range(20)],
        columns=["study_uid", "slice_idx", "model_fold"],
    )
    a = rng.normal(size=(len(key), len(COLUMNS)))
    values = {"a": a, "b": 2 * a + 1 + rng.normal(0, 0.01, a.shape), "c": rng.normal(size=a.shape)}
    parts = [
        pd.concat(
            [
                key.assign(member=m, fold=key["model_fold"], z_mm=0.0),
                pd.DataFrame(v, columns=COLUMNS),
            ],
            axis=1,
        )
        for m, v in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_the_best_correlated_member_stands_in_on_its_own_scale(slices):
    stand_ins = fit_stand_ins(slices)
    present = {m: slices[slices["member"] == m] for m in ("a", "c")}
    rows = stand_ins.rows("b", present)
    truth = slices[slices["member"] == "b"]
    assert set(rows["member"]) == {"b"}
    assert np.allclose(rows[COLUMNS].to_numpy(), truth[COLUMNS].to_numpy(), atol=0.1)
    assert rows["slice_idx"].tolist() == truth["slice_idx"].tolist()


def test_an_unknown_member_is_copied_as_it_is(slices):
    rows = StandIns({}).rows("x", {"a": slices[slices["member"] == "a"]})
    assert np.array_equal(rows[COLUMNS], slices.loc[slices["member"] == "a", COLUMNS])
    with pytest.raises(TableError, match="'x'"):
        StandIns({}).rows("x", {})


def test_the_table_without_a_member_keeps_its_rows(slices):
    table = without(fit_stand_ins(slices), slices, ("b",))
    assert table.groupby("member").size().to_dict() == {"a": 200, "b": 200, "c": 200}
    assert not table.duplicated(["member", "study_uid", "slice_idx", "model_fold"]).any()


def test_members_are_ranked_by_what_is_lost_without_them(slices):
    c = slices.loc[slices["member"] == "c", COLUMNS].to_numpy()

    def loss(table):
        """Only c's own logits help; b can be had from a."""
        found = table.loc[table["member"] == "c", COLUMNS].to_numpy()
        return float(np.abs(found - c).mean())

    ranked = rank_members(fit_stand_ins(slices), slices, loss)
    assert ranked.order[-1] == "c"
    assert ranked.worth["a"] == ranked.worth["b"] == 0.0 and ranked.worth["c"] > 0.3
    again = StandIns.from_json(ranked.to_json())
    assert again == ranked


def test_one_member_alone_is_never_dropped(slices):
    alone = slices[slices["member"] == "a"]
    ranked = rank_members(fit_stand_ins(alone), alone, lambda table: 0.0)
    assert ranked.order == ("a",) and not ranked.worth

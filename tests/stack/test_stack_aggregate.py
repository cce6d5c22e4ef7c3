"""Statistics of levels: right, finite, and the same for one study as for all."""

import numpy as np
import pandas as pd
import pytest
from slice_tables import World

from cspine_kit.core.anatomy import LEVELS
from cspine_kit.core.errors import TableError
from cspine_kit.core.tables import FRACTURE_COLUMNS, VERTEBRA_COLUMNS, check_table
from cspine_kit.stack.features.aggregate import aggregate
from cspine_kit.stack.features.names import feature_columns
from cspine_kit.stack.features.segments import Segments


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def test_features_fulfill_the_contract(world: World) -> None:
    features = aggregate(world.slices, world.levels)
    assert len(features) == 7 * len(world.labels)
    checked = check_table(features.assign(label=0.0), "features")
    assert (checked["fold"] == checked["model_fold"]).all()
    values = features[feature_columns(features.columns)]
    assert np.isfinite(values.to_numpy()).all()
    assert set(values.dtypes) == {np.dtype("float32")}


def test_weighted_mean_is_the_published_formula(world: World) -> None:
    features = aggregate(world.slices, world.levels).set_index(["study_uid", "level"])
    uid = world.labels["study_uid"].iloc[7]
    rows = world.slices[(world.slices["study_uid"] == uid) & (world.slices["member"] == "b")]
    for level in ("C1", "C6"):
        f, v = sigmoid(rows[f"fracture_{level}"]), sigmoid(rows[f"vertebra_{level}"])
        expected = (f * v).sum() / v.sum()
        assert features.loc[(uid, level), "b__fracture__weighted"] == pytest.approx(expected, 1e-5)


def test_statistics_inside_a_level_match_pandas(world: World) -> None:
    features = aggregate(world.slices, world.levels).set_index(["study_uid", "level"])
    levels = world.levels.set_index(["study_uid", "level"])
    own = world.slices[world.slices["member"] == "a"]
    for uid in world.labels["study_uid"].iloc[:5]:
        for level in LEVELS:
            top, bottom = levels.loc[(uid, level), ["z_top_mm", "z_bottom_mm"]]
            rows = own[(own["study_uid"] == uid) & own["at_mm"].between(bottom, top)]
            p = sigmoid(rows[f"fracture_{level}"].to_numpy())
            got = features.loc[(uid, level)]
            expected = {
                "mean": p.mean(),
                "max": p.max(),
                "min": p.min(),
                "std": p.std(),
                "q25": np.quantile(p, 0.25),
                "q90": np.quantile(p, 0.9),
                "top3": np.sort(p)[-3:].mean(),
                "top5": np.sort(p)[-5:].mean(),
            }
            for name, value in expected.items():
                assert got[f"a__fracture__{name}"] == pytest.approx(value, abs=1e-5), name


def test_one_study_gives_the_bytes_it_gives_among_all(world: World) -> None:
    together = aggregate(world.slices, world.levels)
    uid = world.labels["study_uid"].iloc[3]
    alone = aggregate(world.slices[world.slices["study_uid"] == uid], world.levels)
    among = together[together["study_uid"] == uid].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, among, check_exact=True)


def test_row_order_does_not_matter(world: World) -> None:
    shuffled = world.slices.sample(frac=1.0, random_state=1)
    again = aggregate(shuffled, world.levels.sample(frac=1.0, random_state=2))
    pd.testing.assert_frame_equal(again, aggregate(world.slices, world.levels), check_exact=True)


def test_test_rows_of_all_fold_models(world: World) -> None:
    uid = world.labels["study_uid"].iloc[0]
    slices = world.slices[world.slices["study_uid"] == uid]
    levels = world.levels[world.levels["study_uid"] == uid]
    slices = pd.concat([slices.assign(fold=-1, model_fold=k) for k in range(3)])
    levels = pd.concat([levels.assign(model_fold=k) for k in range(3)])
    features = aggregate(slices, levels)
    assert features["model_fold"].tolist() == [0, 1, 2] * 7
    assert (features["fold"] == -1).all()


@pytest.mark.parametrize("n_slices", [1, 2, 3])
def test_short_studies_and_empty_levels_are_finite(world: World, n_slices: int) -> None:
    uid = world.labels["study_uid"].iloc[0]
    slices = world.slices[(world.slices["study_uid"] == uid)]
    slices = slices[slices["position"] < n_slices]
    features = aggregate(slices, world.levels)
    assert len(features) == 7
    assert np.isfinite(features[feature_columns(features.columns)].to_numpy()).all()


def test_infinite_logits_are_cut(world: World) -> None:
    uid = world.labels["study_uid"].iloc[0]
    slices = world.slices[world.slices["study_uid"] == uid].copy()
    slices[list(FRACTURE_COLUMNS)] = np.inf
    slices[list(VERTEBRA_COLUMNS)] = -np.inf
    features = aggregate(slices, world.levels)
    assert np.isfinite(features[feature_columns(features.columns)].to_numpy()).all()


def test_faults_are_named(world: World) -> None:
    slices, levels = world.slices, world.levels
    uid = world.labels["study_uid"].iloc[4]
    with pytest.raises(TableError, match=r"fracture_C3"):
        aggregate(slices.drop(columns="fracture_C3"), levels)
    holed = slices.copy()
    holed.loc[holed["study_uid"] == uid, "fracture_C2"] = np.nan
    with pytest.raises(TableError, match=rf"fracture_C2.*{uid}"):
        aggregate(holed, levels)
    lost = slices[~((slices["study_uid"] == uid) & (slices["member"] == "b"))]
    with pytest.raises(TableError, match=rf"member 'b'.*{uid}"):
        aggregate(lost, levels)
    bare = levels[~((levels["study_uid"] == uid) & (levels["level"] == "C5"))]
    with pytest.raises(TableError, match=rf"are missing.*{uid}.*C5"):
        aggregate(slices, bare)
    with pytest.raises(TableError, match="duplicate"):
        aggregate(slices, pd.concat([levels, levels.head(1)]))
    with pytest.raises(TableError, match="duplicate"):
        aggregate(pd.concat([slices, slices.head(1)]), levels)
    torn = slices.copy()
    torn.loc[torn.index[0], "fold"] = 99
    with pytest.raises(TableError, match="more than one fold"):
        aggregate(torn, levels)


def test_segments_by_hand() -> None:
    s = Segments(np.array([0, 3, 4]), 6)
    values = np.array([0.1, 0.9, 0.5, 0.3, 0.7, 0.7])
    assert s.mean(values).tolist() == pytest.approx([0.5, 0.3, 0.7])
    assert s.argmax(values).tolist() == [1, 3, 4]
    assert s.quantile(s.sorted(values), 0.5).tolist() == pytest.approx([0.5, 0.3, 0.7])
    assert s.top_mean(s.sorted(values), 2).tolist() == pytest.approx([0.7, 0.3, 0.7])
    assert s.longest_run(values > 0.4).tolist() == [2, 0, 2]
    assert s.longest_run(values > 0.0).tolist() == [3, 1, 2]
    rolled = s.rolling_mean(values, np.array([1, 1, 1]))
    assert rolled.tolist() == pytest.approx([0.5, 0.5, 0.7, 0.3, 0.7, 0.7])


def test_a_level_that_the_scan_does_not_show_is_described_as_sound_and_unseen(world):
    uid = world.labels.loc[world.labels["C7"] == 1, "study_uid"].iloc[0]
    cut = world.levels.copy()
    row = (cut["study_uid"] == uid) & (cut["level"] == "C7")
    cut.loc[row, "present"] = False
    cut.loc[row, ["z_top_mm", "z_bottom_mm"]] -= 500.0
    before = aggregate(world.slices, world.levels).set_index(["study_uid", "level"]).loc[uid]
    after = aggregate(world.slices, cut).set_index(["study_uid", "level"]).loc[uid]
    members = [c for c in after if "__fracture__" in c or c.endswith("__weighted")]
    seen = [c for c in members if c.split("__")[0] in set(world.slices["member"])]
    assert np.isfinite(after.loc["C7"].drop(["model_fold", "fold"]).astype(float)).all()
    assert after.loc["C7", "all__fracture__odds"] < before["all__fracture__odds"].min()
    assert seen and after.loc["C7", "all__patient__rank"] == 6
    pd.testing.assert_frame_equal(after.loc["C1":"C5", seen], before.loc["C1":"C5", seen])

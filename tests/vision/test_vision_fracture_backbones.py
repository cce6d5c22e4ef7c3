"""Backbones side by side as a member: each judged out-of-fold on the same levels."""

import pandas as pd
import pytest
from run_folder import tiny_config, write_run

from cspine_kit.core.errors import ConfigError
from cspine_kit.vision.compare.fracture_backbones import FOLDER, FOUR, compare, summary
from cspine_kit.vision.nets.backbone import is_backbone


def test_each_backbone_is_trained_once_on_the_runs_own_levels(tmp_path):
    paths, config = write_run(tmp_path, 8), tiny_config()
    table = compare(config, paths, "a", ("test_resnet", "tiny_cnn"), best=1)
    assert table.groupby("backbone").size().sort_values().tolist() == [1, config.folds.n]
    assert table[["f1", "auc"]].apply(lambda c: c.between(0, 1).all()).all()
    assert (table["loss"] > 0).all() and (table["studies"] == 4).all()
    pd.testing.assert_frame_equal(table, pd.read_csv(paths.root / FOLDER / "a.csv"))
    assert summary(table)["auc"].is_monotonic_decreasing
    folder = paths.root / FOLDER / "tiny_cnn" / "models" / "vertebra" / "fold_0"
    own, theirs = (f / "weights.safetensors" for f in (folder, paths.model("vertebra", 0)))
    assert own.samefile(theirs)


def test_unknown_names_are_refused_before_any_training(tmp_path):
    paths, config = write_run(tmp_path, 4), tiny_config()
    with pytest.raises(ConfigError, match=r"there are \['a', 'b'\]"):
        compare(config, paths, "c", ("tiny_cnn",))
    with pytest.raises(ConfigError, match="resnet5000"):
        compare(config, paths, "a", ("resnet5000",))
    assert not paths.model("vertebra", 0).exists()
    assert all(map(is_backbone, FOUR))

"""Backbones side by side: all of them learn a step, and a table says what each is worth."""

import pandas as pd
import pytest
import torch
from run_folder import tiny_config, write_run

from cspine_kit.core.errors import ConfigError
from cspine_kit.vision.compare.backbones import FOURTEEN, compare, summary
from cspine_kit.vision.nets.backbone import check_backbone
from cspine_kit.vision.nets.heads import SliceModel
from cspine_kit.vision.tasks.vertebra import VertebraTask


@pytest.mark.parametrize("name", [*FOURTEEN, "basic_cnn"])
def test_each_backbone_learns_a_step(tiny, name):
    config = tiny.model_copy(update={"backbone": name, "size_px": 96})
    check_backbone(config, "model")
    torch.manual_seed(0)
    model = SliceModel(config, VertebraTask.heads, pretrained=False)
    stack = torch.randint(0, 256, (2, 1, config.channels, 96, 96), dtype=torch.uint8)
    before = model.heads["visible"].weight.detach().clone()
    loss = model(stack)["visible"].square().mean()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert not torch.equal(model.heads["visible"].weight, before)


def test_the_table_holds_every_backbone_once_and_the_best_in_all_folds(tmp_path):
    paths, config = write_run(tmp_path, 8), tiny_config()
    table = compare(config, paths, ("test_resnet", "basic_cnn"), best=1)
    counts = table.groupby("backbone").size().sort_values().tolist()
    assert counts == [1, config.folds.n]
    assert table["accuracy"].between(0, 1).all() and (table["ms_per_slice"] > 0).all()
    pd.testing.assert_frame_equal(table, pd.read_csv(paths.root / "backbones" / "backbones.csv"))
    assert (paths.root / "backbones" / "backbones.png").stat().st_size > 5000
    ranked = summary(table)
    assert ranked["folds"].max() == config.folds.n and ranked["accuracy"].is_monotonic_decreasing
    stamps = {f: f.stat().st_mtime_ns for f in paths.root.rglob("backbones/**/*.safetensors")}
    compare(config, paths, ("test_resnet", "basic_cnn"), best=1)
    assert len(stamps) == 3 and all(f.stat().st_mtime_ns == t for f, t in stamps.items())


def test_an_unknown_backbone_is_refused_before_any_training(tmp_path):
    with pytest.raises(ConfigError, match=r"backbones\.backbone"):
        compare(tiny_config(), write_run(tmp_path, 8), ("basic_cnn", "resnet5000"), best=1)
    assert not (tmp_path / "backbones").exists()

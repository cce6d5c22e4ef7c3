"""The member that reads where a slice lies among the levels beside its image."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cspine_kit.core.config import parse_config, read_config
from cspine_kit.core.config.changes import apply_changes
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.tables import FRACTURE_COLUMNS
from cspine_kit.vision.explain import study_heat
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.nets.store import load_model, save_model
from cspine_kit.vision.predict import predict
from cspine_kit.vision.tasks.kinds import task_of

SMALL = {"backbone": "tiny_cnn", "in_chans": 1, "field_mm": 38.4, "size_px": 32}
SMALL |= {"slice_step_mm": 2.0, "levels_input": True}


@pytest.fixture(name="reads")
def _reads(config):
    return config.model.model_copy(update=SMALL)


def test_levels_say_how_surely_a_slice_shows_each(reads, levels, make_volume):
    gone = levels.assign(present=levels["level"] != "C7")
    view = task_of(reads).view(make_volume(0), gone)
    assert view.facts.shape == (len(view), 7) and view.facts.dtype == np.float32
    at = dict(zip(view.at_mm.round().tolist(), view.facts, strict=True))
    assert at[86.0][:2].tolist() == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(3))])
    assert at[80.0][:2].tolist() == pytest.approx([0.5, 0.5]), "where C1 ends and C2 begins"
    assert view.facts[:, 6].max() < 1e-6, "the scan does not show C7"
    plain = reads.model_copy(update={"levels_input": False})
    assert task_of(plain).view(make_volume(0), gone).facts is None
    assert task_of(plain).sight != task_of(reads).sight


@pytest.mark.parametrize("one_output", [False, True])
def test_training_and_prediction_read_the_same_levels(
    reads, levels, make_volume, tmp_path, one_output
):
    own = reads.model_copy(update={"one_output": one_output})
    task, volume = task_of(own), make_volume(0)
    torch.manual_seed(0)
    net = build_net(own, task.outputs, pretrained=False).eval()
    save_model(net, tmp_path)
    net = load_model(tmp_path)
    columns = list(FRACTURE_COLUMNS)
    rows = predict({0: net}, volume, levels, 7)[0].require()
    view = task.view(volume, levels)
    view.targets = {"visible": np.zeros((len(view), 7), np.float32)}
    data = StackDataset([view], own)
    with torch.inference_mode():
        said = [net(s["stack"][None], s["facts"][None])["fracture"][0].numpy() for s in data]
    assert np.abs(np.array(said) - rows[columns].to_numpy()[:, : len(said[0])]).max() < 1e-5
    # The same pixels among other levels are judged otherwise.
    moved = levels.assign(level=levels["level"].to_numpy()[::-1])
    assert not np.allclose(rows[columns], predict({0: net}, volume, moved, 7)[0].require()[columns])
    plain = reads.model_copy(update={"levels_input": False})
    other = build_net(plain, task_of(plain).outputs, pretrained=False).eval()
    both = predict({"reads": net, "plain": other}, volume, levels, 7)
    assert np.abs(both["reads"].require()[columns] - rows[columns]).to_numpy().max() < 1e-5
    with pytest.raises(ValueError, match="reads facts beside the stack"):
        net(torch.zeros(1, 1, 1, 32, 32, dtype=torch.uint8))


def test_heat_is_drawn_of_it(reads, levels, make_volume):
    task, volume = task_of(reads), make_volume(0)
    net = build_net(reads, task.outputs, pretrained=False).eval()
    heats = study_heat({("a", 0): net}, volume, {0: levels}, {"C2": [11, 12]})
    assert [heat.slice_idx for heat in heats] == [11, 12]
    assert all(np.isfinite(heat.map).all() for heat in heats)


def test_standing_planes_show_every_level():
    path = Path(__file__).resolve().parents[2] / "configs" / "hard-gpu.yaml"
    raw = read_config(path)
    reads = parse_config(apply_changes(raw, {"members.axial.levels_input": True}), path)
    assert reads.members["axial"].levels_input
    standing = {"members.axial.levels_input": True, "members.axial.plane": "sagittal"}
    with pytest.raises(ConfigError, match=r"levels_input: a sagittal slice shows every level"):
        parse_config(apply_changes(raw, standing), path)
    with pytest.raises(ConfigError, match="does nothing for kind 'boxes'"):
        parse_config(apply_changes(raw, {"members.boxed.levels_input": True}), path)

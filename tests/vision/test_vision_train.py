"""Training: learns what is there, resumes to the same weights, masks the loss by visibility."""

import hashlib
import json

import numpy as np
import pytest
import torch
from whole_view import whole_view

from cspine_kit.core.errors import ArtifactError, DataError
from cspine_kit.core.runs import derive_seed
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.names import WEIGHTS_FILE
from cspine_kit.vision.nets.heads import SliceModel
from cspine_kit.vision.nets.store import load_model
from cspine_kit.vision.passes import Drawn, run_model
from cspine_kit.vision.tasks.slices import SlicesTask
from cspine_kit.vision.tasks.vertebra import VertebraTask
from cspine_kit.vision.training import loop
from cspine_kit.vision.training.loop import train_model
from cspine_kit.vision.training.losses import batch_weights, loss_of


@pytest.fixture(name="data")
def _data(tiny, make_volume):
    """Six studies; C4 is visible where the disk is, and fractured in the odd ones."""
    views = []
    for seed in range(6):
        volume = make_volume(seed)
        rows = np.arange(len(volume.z_mm))
        visible = np.zeros((len(rows), 7), np.float32)
        visible[len(rows) // 3 : 2 * len(rows) // 3, 3] = 1
        fracture = np.zeros_like(visible)
        fracture[:, 3] = seed % 2
        targets = {"visible": visible, "fracture": fracture}
        views.append(whole_view(volume, tiny, **targets))
    return StackDataset(views, tiny)


def fit(data, config, folder, training, *, seed=7, key="k"):
    torch.set_num_threads(1)
    train_model(data, config, folder, key=key, training=training, seed=seed, title="t")
    return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()


def test_a_checkpoint_of_other_inputs_is_not_resumed(data, tiny, config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "save_model", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(data, tiny, tmp_path / "a", config.training, seed=1, key="old")
    monkeypatch.undo()
    resumed = fit(data, tiny, tmp_path / "a", config.training, seed=2, key="new")
    assert resumed == fit(data, tiny, tmp_path / "b", config.training, seed=2, key="new")


def test_a_loss_that_is_no_number_stops_with_the_studies_of_its_batch(data, tiny, config, tmp_path):
    """One label that is infinite (NaN means unknown): no checkpoint, no weights, and the batch's
    studies are named."""
    data.views[2].targets["fracture"][:] = np.inf
    data.views[2].targets["visible"][:, 3] = 1
    with pytest.raises(
        DataError, match=r"t: the loss of batch \d+ is (?:nan|-?inf); its studies: "
    ) as told:
        fit(data, tiny, tmp_path, config.training)
    named = str(told.value).split("its studies: ")[1].split(". Look")[0].split(", ")
    assert "1.2" in named and set(named) <= {view.volume.study_uid for view in data.views}
    first = int(str(told.value).split("batch ")[1].split()[0]) - 1
    seed = derive_seed(7, "epoch", 0)
    items = data.draw(np.random.default_rng(seed))
    batches = [items[k : k + tiny.batch_size] for k in range(0, len(items), tiny.batch_size)]
    has_bad = [any(data.rows[item][0] == 2 for item in batch) for batch in batches]
    assert first == has_bad.index(True), "the first batch with the bad study"
    assert not list(tmp_path.glob("weights*")) and not (tmp_path / "checkpoint.pt").exists()
    assert "failed: DataError" in json.loads((tmp_path / "run.json").read_text())["status"]


def test_the_network_learns_where_the_disk_is(data, tiny, config, tmp_path):
    fit(data, tiny.model_copy(update={"epochs": 6}), tmp_path, config.training)
    model = load_model(tmp_path)
    view = data.views[0]
    logit = run_model(model, Drawn([view], tiny.windows, 16, "cpu"))["visible"][:, 3]
    truth = view.targets["visible"][:, 3] > 0
    assert ((logit > 0) == truth).mean() > 0.9


def loss(task, outputs, batch):
    return loss_of(task.losses(outputs, batch), batch_weights(task, batch))


def test_fracture_loss_ignores_what_a_slice_does_not_show(tiny):
    task = SlicesTask(tiny)
    outputs = {"visible": torch.zeros(2, 7), "fracture": torch.zeros(2, 7)}
    batch = {"visible": torch.zeros(2, 7), "fracture": torch.zeros(2, 7)}
    batch["visible"][0, 3] = 1
    before = loss(task, outputs, batch)
    outputs["fracture"][1] = 9.0
    outputs["fracture"][0, 4] = 9.0
    assert loss(task, outputs, batch) == before
    outputs["fracture"][0, 3] = 9.0
    assert loss(task, outputs, batch) > before


def test_box_loss_ignores_slices_without_a_box(config):
    task = VertebraTask(config.vertebra)
    outputs = {"visible": torch.zeros(2, 7), "box": torch.zeros(2, 4)}
    batch = {"visible": torch.zeros(2, 7), "box": torch.ones(2, 4)}
    batch["box_weight"] = torch.tensor([0.0, 0.0])
    nothing = loss(task, outputs, batch)
    batch["box_weight"] = torch.tensor([0.0, 1.0])
    assert loss(task, outputs, batch) > nothing


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "test_efficientnet"])
def test_backbones_of_several_families_fit_the_heads(tiny, name):
    config = tiny.model_copy(update={"backbone": name, "in_chans": 5})
    model = SliceModel(config, SlicesTask.heads, pretrained=False).eval()
    out = model(torch.zeros(2, 1, 5, 32, 32, dtype=torch.uint8))
    assert {n: tuple(v.shape) for n, v in out.items()} == {"visible": (2, 7), "fracture": (2, 7)}


def test_weights_that_do_not_fit_are_an_error(data, tiny, config, tmp_path):
    with pytest.raises(ArtifactError, match="missing"):
        load_model(tmp_path)
    fit(data, tiny.model_copy(update={"epochs": 1}), tmp_path, config.training)
    text = (tmp_path / "model.json").read_text().replace("test_resnet", "test_efficientnet")
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ArtifactError, match="does not fit"):
        load_model(tmp_path)

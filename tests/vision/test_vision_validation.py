"""The fold's studies are looked at each epoch: they end in the curve and nowhere else."""

import csv
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from whole_view import whole_view

from cspine_kit.core.anatomy import TARGETS
from cspine_kit.core.metric import metric
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.names import WEIGHTS_FILE
from cspine_kit.vision.tasks.slices import SlicesTask
from cspine_kit.vision.tasks.vertebra import VertebraTask
from cspine_kit.vision.training.loop import train_model
from cspine_kit.vision.training.validation import Validation, write_history


def studies(make_volume, config, seeds, broken=lambda seed: seed % 2):
    views = []
    for seed in seeds:
        volume = make_volume(seed)
        rows = np.arange(len(volume.z_mm))
        visible = np.zeros((len(rows), 7), np.float32)
        visible[10:30, 3] = 1
        fracture = np.zeros_like(visible)
        fracture[:, 3] = broken(seed)
        targets = {"visible": visible, "fracture": fracture}
        views.append(whole_view(volume, config, **targets))
    return StackDataset(views, config)


def fit(make_volume, tiny, config, folder, **held):
    torch.set_num_threads(1)
    brief = tiny.model_copy(update={"epochs": 2})
    data = studies(make_volume, brief, range(4))
    other = studies(make_volume, brief, range(10, 13), **held)
    training = config.training
    train_model(data, brief, folder, key="k", training=training, seed=1, title="t", held=other)
    with (folder / "history.csv").open() as handle:
        return (folder / WEIGHTS_FILE).read_bytes(), list(csv.DictReader(handle))


def test_labels_of_the_fold_change_the_history_and_no_weight(make_volume, tiny, config, tmp_path):
    one, history = fit(make_volume, tiny, config, tmp_path / "a")
    two, other = fit(make_volume, tiny, config, tmp_path / "b", broken=lambda seed: 1 - seed % 2)
    assert one == two
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert history[0]["loss"] == other[0]["loss"]
    assert history[0]["valid_loss"] != other[0]["valid_loss"]
    assert float(history[0]["auc_C4"]) == pytest.approx(1 - float(other[0]["auc_C4"]))
    assert {f"auc_{t}" for t in TARGETS} | {"metric_A", "valid_fracture"} <= set(history[0])
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"history.csv", "history.png"} <= files
    assert (tmp_path / "a" / "history.png").read_bytes().startswith(b"\x89PNG")


def test_a_tenth_of_the_slices_is_looked_at_evenly_and_always_the_same(make_volume, tiny):
    data = studies(make_volume, tiny, range(6))
    items = Validation(data, tiny, budget=20).items
    assert items == Validation(data, tiny, budget=20).items
    assert [sum(data.rows[i][0] == v for i in items) for v in range(6)] == [3] * 6
    assert len(set(items)) == len(items) <= 20
    few = Validation(data, tiny, budget=2).items
    assert len({data.rows[i][0] for i in few}) == len(few) == 2


def test_a_network_that_gives_no_numbers_costs_its_figures(make_volume, tiny, tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, stack):
            nothing = torch.full((len(stack), 7), math.nan)
            return {"visible": nothing, "fracture": nothing}

    data = studies(make_volume, tiny, range(2))
    row = Validation(data, tiny, budget=4).figures(Broken(), Accelerator(cpu=True), 4)
    assert list(row) == ["valid_loss"] and math.isnan(row["valid_loss"])
    write_history([{"epoch": 1, "loss": 1.0, "valid_loss": 0.5}, {"epoch": 2, **row}], tmp_path)
    assert (tmp_path / "history.csv").read_text().splitlines()[2] == "2,,nan"


def test_metric_and_auc_are_those_of_the_visibility_weighted_mean(tiny):
    """Two studies of two slices each; only the visible slice of each speaks."""
    visible = np.full((4, 7), -30.0)
    visible[[0, 2]] = 30.0
    fracture = np.repeat([[0.0], [9.0], [-2.0], [9.0]], 7, axis=1)
    labels = np.zeros((4, 7))
    labels[:2, 1] = 1
    outputs = {"visible": visible, "fracture": fracture}
    found = SlicesTask(tiny).figures(outputs, {"fracture": labels}, np.array([5, 5, 8, 8]))
    p = np.repeat([[0.5], [1 / (1 + np.exp(2.0))]], 7, axis=1)
    probs = np.column_stack([p, 1 - np.prod(1 - p, axis=1)])
    truth = np.array([[0, 1, 0, 0, 0, 0, 0, 1], [0] * 8])
    assert found["metric_A"] == pytest.approx(metric(truth, probs), rel=1e-4)
    assert found["auc_C2"] == found["auc_patient_overall"] == 1.0
    assert math.isnan(found["auc_C1"])


def test_the_vertebra_stage_is_judged_slice_by_slice(config):
    shown = np.tile([[1.0], [0.0], [1.0]], (1, 7))
    logits = np.tile([[2.0], [1.0], [0.0]], (1, 7))
    task = VertebraTask(config.vertebra)
    found = task.figures({"visible": logits}, {"visible": shown}, np.array([0, 0, 1]))
    assert found == {f"auc_C{k}": pytest.approx(0.5) for k in range(1, 8)}

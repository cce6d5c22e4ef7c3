"""The U-Net of the vertebra stage: labels follow their stack; losses, rows, Dice; it learns."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cspine_kit.core.config import load_config
from cspine_kit.core.errors import ConfigError, StudyError
from cspine_kit.core.tables import MASK_COLUMNS, SPINE_BOX_COLUMNS, VERTEBRA_COLUMNS
from cspine_kit.data.volumes.volume import Held
from cspine_kit.vision.inputs.augment import augment_batch
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.nets.backbone import check_backbone
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.nets.store import load_model
from cspine_kit.vision.nets.unet import LABELS, MAP
from cspine_kit.vision.predict import predict
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.segment import map_terms
from cspine_kit.vision.tasks.task import Lesson
from cspine_kit.vision.tasks.vertebra import combined
from cspine_kit.vision.training.loop import train_model
from cspine_kit.vision.training.losses import batch_weights, loss_of

LEVEL = 4


@pytest.fixture(name="segment", scope="module")
def _segment(config):
    changes = {"backbone": "test_resnet", "in_chans": 3, "size_px": 32, "field_mm": 76.8}
    changes |= {
        "epochs": 5,
        "batch_size": 8,
        "slices_per_study": 20,
        "lr": 0.01,
        "decoder_width": 8,
    }
    return config.segment.model_copy(update=changes | {"slice_step_mm": 2.0})


@pytest.fixture(name="masked", scope="module")
def _masked(make_volume):
    """Volumes whose bright disk is C4, and their rows of table `slices`."""

    def make(seed):
        volume = make_volume(seed)
        labels = np.where(volume.voxels.array > 200, LEVEL, 0).astype(np.uint8)
        slices = pd.DataFrame({"z_mm": volume.z_mm, **dict.fromkeys(MASK_COLUMNS, 0.0)})
        slices[MASK_COLUMNS[LEVEL - 1]] = (labels == LEVEL).sum(axis=(1, 2)) * 1.44
        slices = slices.assign(**dict.fromkeys(SPINE_BOX_COLUMNS, np.nan))
        return replace(volume, mask=Held(labels)), slices

    return make


def dataset_of(segment, masked, seeds):
    task, views = task_of(segment), []
    for seed in seeds:
        volume, slices = masked(seed)
        view = task.view(volume, None)
        view.targets = task.targets(view, Lesson(slices, pd.Series()))
        views.append(view)
    return StackDataset(views, segment)


def test_a_backbone_without_maps_is_told_at_config_time(segment):
    check_backbone(segment, "vertebra_members.seg")
    for name in ("tiny_cnn", "mnasnet0_5"):
        wrong = segment.model_copy(update={"backbone": name})
        with pytest.raises(ConfigError, match=rf"s\.seg\.backbone: '{name}' is no encoder of a U-"):
            check_backbone(wrong, "vertebra_members.seg")


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_maps_have_the_size_of_the_patch(segment, name):
    config = segment.model_copy(update={"backbone": name, "size_px": 64})
    net = build_net(config, {"visible": 7}, pretrained=False)
    stack = torch.randint(0, 256, (2, 1, 3, 64, 64), dtype=torch.uint8)
    assert {n: tuple(v.shape) for n, v in net(stack).items()} == {
        "visible": (2, 7),
        MAP: (2, 9, 64, 64),
    }
    seen = net.eval()(stack)
    assert tuple(seen[LABELS].shape) == (2, 64, 64) and seen[LABELS].max() <= 8


def test_labels_move_with_their_stack(segment, masked):
    data = dataset_of(segment, masked, [0])
    item = data[20]
    batch = {name: value[None] for name, value in item.items()}
    assert item[LABELS].shape == (32, 32) and int(item[LABELS].max()) == LEVEL
    augment = segment.augment.model_copy(update={"flip_x": 0.0, "noise": 0.0, "shift_mm": 12.0})
    config = segment.model_copy(update={"augment": augment})
    moved = augment_batch(batch, config, torch.Generator().manual_seed(3))
    bright = moved["stack"][0, 0, 1] > 130
    inside = moved[LABELS][0] == LEVEL
    overlap = (bright & inside).sum() / (bright | inside).sum()
    assert set(moved[LABELS].unique().tolist()) == {0, LEVEL} and overlap > 0.7
    still = (item[LABELS] == LEVEL) & inside
    assert still.sum() < inside.sum(), "it did move"


def test_a_right_map_costs_nothing_and_pieces_add_up(segment):
    target = torch.zeros(4, 16, 16)
    target[:2, 4:12, 4:12] = 3
    logits = torch.nn.functional.one_hot(target.long(), 9).permute(0, 3, 1, 2) * 20.0
    right, weight = map_terms({MAP: logits}, {LABELS: target})[MAP]
    assert weight == 4 and float(right) < 1e-3
    other = map_terms({MAP: logits.roll(5, dims=1)}, {LABELS: target})[MAP][0]
    assert float(other) > 10
    task, generator = task_of(segment), torch.Generator().manual_seed(0)
    batch = {"visible": torch.rand(4, 7, generator=generator), LABELS: target}
    said = {"visible": torch.randn(4, 7, generator=generator), MAP: torch.randn(4, 9, 16, 16)}
    weights = batch_weights(task, batch)
    parts = [
        loss_of(
            task.losses(
                {n: v[k : k + 2] for n, v in said.items()},
                {n: v[k : k + 2] for n, v in batch.items()},
            ),
            weights,
        )
        for k in (0, 2)
    ]
    assert float(sum(parts)) == pytest.approx(float(loss_of(task.losses(said, batch), weights)))
    assert map_terms({"visible": said["visible"]}, batch) == {}


def test_rows_hold_the_box_of_what_was_drawn_and_dice_counts_pixels(segment, masked):
    task, (volume, slices) = task_of(segment), masked(1)
    view = task.view(volume, None)
    labels = np.zeros((len(view), 32, 32))
    labels[10:20, 8:16, 4:12] = 2
    labels[:, 20, 20] = 8  # the thoracic spine is not in the box
    rows = task.rows(view, {"visible": np.zeros((len(view), 7)), LABELS: labels})
    boxes = rows[list(SPINE_BOX_COLUMNS)].to_numpy()
    assert np.allclose(boxes, boxes[15]), "slices without a level take the nearest box"
    y0, x0, y1, x1 = boxes[0]
    pixel = 76.8 / 32
    assert (y1 - y0, x1 - x0) == pytest.approx((8 * pixel, 8 * pixel), rel=0.05)
    assert y0 - x0 == pytest.approx(4 * pixel, rel=0.05)
    counts = task.scores(view, {LABELS: labels})["vertebra_dice"].set_index("level")
    assert counts.loc["C2"].tolist() == [640, 0, 0]
    assert counts.loc["C4", "true_px"] > 0 and counts.loc["C4", "both_px"] == 0
    bare = task.view(replace(volume, mask=None), None)
    assert task.scores(bare, {LABELS: labels})["vertebra_dice"]["true_px"].sum() == 0
    with pytest.raises(StudyError, match="coarse volume has no mask"):
        task.targets(bare, Lesson(slices, pd.Series()))


def test_it_learns_where_a_level_is(segment, masked, config, tmp_path):
    torch.set_num_threads(1)
    data, held = dataset_of(segment, masked, range(4)), dataset_of(segment, masked, [9])
    options = {"key": "k", "training": config.training, "seed": 3, "title": "t", "held": held}
    train_model(data, segment, tmp_path, **options)
    history = pd.read_csv(tmp_path / "history.csv")
    assert "auc_C4" in history and history["loss"].iloc[-1] < history["loss"].iloc[0]
    model, (volume, _) = load_model(tmp_path), masked(9)
    said = predict({0: model}, volume, None, 16)[0]
    counts = said.scores["vertebra_dice"].set_index("level").loc["C4"]
    assert 2 * counts["both_px"] / (counts["said_px"] + counts["true_px"]) > 0.7
    shown = said.require()["vertebra_C4"].to_numpy()
    assert shown[15:24].min() > shown[:10].max()


def test_networks_are_combined_on_the_slices_of_the_first():
    z = -2.0 * np.arange(10)
    columns = [*VERTEBRA_COLUMNS, *SPINE_BOX_COLUMNS]
    first = pd.DataFrame({"at_mm": z, **dict.fromkeys(columns, 1.0)})
    sparse = pd.DataFrame({"at_mm": z[::3], **dict.fromkeys(columns, z[::3])})
    assert combined([first]) is first
    both = combined([first, sparse])
    assert both["at_mm"].tolist() == z.tolist()
    assert both["vertebra_C7"].to_numpy() == pytest.approx((1.0 + z) / 2)
    alone = combined([sparse], on=first)
    assert alone["spine_x1_mm"].to_numpy() == pytest.approx(z)


CHANGES = {
    "a: {kind: segmnt}": "vertebra_members.a.kind: 'segmnt' is no kind of member, there are .*did "
    "you mean 'segment'",
    "a: {kind: segment, decoder_with: 8}": "'vertebra_members.a.decoder_with'; did you mean",
    "a: {kind: segment, rounds: 1}": "'vertebra_members.a.rounds' does nothing for kind 'segment'",
    "axial: {}": r"vertebra_members: \['axial'\] are names of other networks too",
    "vertebra: {}": r"vertebra_members: \['vertebra'\] are names of the kit",
    "a: {target: area, rounds: 1}": "rounds: pseudo-labels are probabilities of presence",
    "Ab: {}": "vertebra_members: 'Ab' is no name",
}


@pytest.mark.parametrize("text", CHANGES)
def test_wrong_networks_of_the_stage_are_told(tmp_path, text):
    source = (tmp_path / "base.yaml", tmp_path / "x.yaml")
    from pathlib import Path

    configs = Path(__file__).resolve().parents[2] / "configs"
    source[0].write_text((configs / "base.yaml").read_text())
    demo = (configs / "demo.yaml").read_text()
    source[1].write_text(f"{demo}\nvertebra_members:\n  {text}\n")
    with pytest.raises(ConfigError, match=CHANGES[text]):
        load_config(source[1])

"""The member that finds boxes: what it takes for known, where they lie, what they are worth."""

import numpy as np
import pandas as pd
import pytest
import torch

from cspine_kit.core.anatomy import OVERALL, TARGETS
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.tables import BOX_COLUMNS, MASK_COLUMNS, check_table
from cspine_kit.vision.check import check_config
from cspine_kit.vision.compare.detection import detection
from cspine_kit.vision.inputs.augment import mirrored, mirrored_outputs
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.inputs.tables import open_inputs
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.nets.store import load_model, save_model
from cspine_kit.vision.oof.chain import FoldChain
from cspine_kit.vision.oof.run import run_oof
from cspine_kit.vision.predict import predict
from cspine_kit.vision.tasks.boxes import overlaps
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.task import Lesson
from cspine_kit.vision.training.loop import train_model
from cspine_kit.vision.training.losses import batch_weights, loss_of

SMALL = {"backbone": "tiny_cnn", "in_chans": 1, "field_mm": 38.4, "size_px": 32, "epochs": 12}
SMALL |= {"slice_step_mm": 2.0, "slices_per_study": 16, "batch_size": 16, "lr": 0.01}
BOX = (50.0, 60.0, 12.0, 8.0)
"""x, y, width, height in pixels of 0.6 mm of the native frame."""


@pytest.fixture(name="small")
def _small(config):
    still = dict.fromkeys(type(config.model.augment).model_fields, 0.0)
    augment = config.model.augment.model_copy(update=still)
    return config.boxes.model_copy(update=SMALL | {"augment": augment})


def lesson(volume, broken, boxed):
    """Slice 5 to 9 shows C1, 10 to 14 C2, ...; some slices have the box."""
    label = pd.Series({t: float(t in broken or (t == OVERALL and bool(broken))) for t in TARGETS})
    slices = pd.DataFrame({"z_mm": volume.z_mm, "study_uid": volume.study_uid})
    slices["slice_idx"] = at = np.arange(len(slices))
    for k, column in enumerate(MASK_COLUMNS):
        slices[column] = ((at - 5) // 5 == k).astype(float)
    for column, value in zip(BOX_COLUMNS, BOX, strict=True):
        slices[column] = np.where(np.isin(at, boxed), value, np.nan)
    return Lesson(slices, label)


def test_a_slice_without_a_box_is_a_negative_only_where_all_it_shows_is_sound(
    small, levels, make_volume
):
    volume, task = make_volume(0), task_of(small)
    view = task.view(volume, levels)
    known = task.targets(view, lesson(volume, {"C2"}, [11, 12]))
    at = dict(zip(view.slice_idx.tolist(), range(len(view)), strict=True))
    boxed = np.isfinite(known["box"]).all(axis=1)
    assert view.slice_idx[boxed].tolist() == [11, 12]
    assert known["box"][at[11]].tolist() == pytest.approx([35.7, 29.7, 40.5, 36.9])
    # C2 is on slices 10 to 14: of those without a box nothing is known.
    assert [known["sound"][at[k]] for k in (9, 10, 11, 13, 14, 15)] == [1, 0, 0, 0, 0, 1]
    view.targets = known
    [drawn] = task.draw([view], np.random.default_rng(0))
    assert {at[11], at[12]} <= set(drawn.tolist())


def dataset(config, levels, make_volume):
    """Studies with a bright square on two slices, and sound ones."""
    views, lessons = [], []
    for seed in range(6):
        volume = make_volume(seed)
        hurt = seed % 2 == 0
        boxed = range(10, 15) if hurt else ()
        for k in boxed:  # 64 pixels show 128 native ones
            volume.voxels.array[k, 30:34, 25:31] = 255
        volume.voxels.array[:, 36:, :] = 60
        task = task_of(config)
        view = task.view(volume, levels)
        lessons.append(lesson(volume, {"C2"} if hurt else set(), list(boxed)))
        view.targets = task.targets(view, lessons[-1])
        views.append(view)
    return StackDataset(views, config), lessons


def test_pieces_of_a_batch_add_up_to_its_loss(small, levels, make_volume):
    data, _ = dataset(small, levels, make_volume)
    samples = [data[i] for i in (5, 6, 7, 40, 41)]
    batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    task = task_of(small)
    net = build_net(small, task.heads, pretrained=False).eval()
    weights = batch_weights(task, batch)
    assert weights["center"] > 0
    whole = loss_of(task.losses(net(batch["stack"]), batch), weights)
    parts = 0.0
    for piece in (slice(0, 2), slice(2, None)):
        part = {name: value[piece] for name, value in batch.items()}
        parts += float(loss_of(task.losses(net(part["stack"]), part), weights).detach())
    assert torch.isfinite(whole) and parts == pytest.approx(float(whole.detach()), rel=1e-5)
    # A slice of which nothing is known has no part in where boxes are.
    nothing = batch | {name: torch.zeros_like(batch[name]) for name in ("box_weight", "sound")}
    assert float(task.losses(net(batch["stack"]), nothing)["center"][0].detach()) == 0.0


def test_bright_squares_are_found_where_they_are(small, levels, make_volume, config, tmp_path):
    torch.set_num_threads(1)
    data, lessons = dataset(small, levels, make_volume)
    training = config.training
    train_model(data, small, tmp_path, key="k", training=training, seed=0, title="t", held=data)
    net = load_model(tmp_path)
    common = {"member": "a", "model_fold": 0, "fold": 0}
    parts = []
    for view in data.views:
        said = predict({0: net}, view.volume, levels, 16)[0]
        rows = said.scores["oof_boxes"].assign(study_uid=view.volume.study_uid, **common)
        parts.append(check_table(rows, "oof_boxes"))
        assert (rows.groupby("slice_idx")["n"].min() == 0).all()
        again = predict({0: net}, view.volume, levels, 3)[0].scores["oof_boxes"]
        assert len(again) == len(rows)
        assert np.abs(again["score"] - rows["score"]).max() < 1e-5
    studies = pd.DataFrame([one.label for one in lessons])
    studies["study_uid"] = [view.volume.study_uid for view in data.views]
    slices = pd.concat([one.slices for one in lessons])
    [row] = detection(pd.concat(parts), slices, studies).to_dict("records")
    assert row["boxed_slices"] == 15 and row["sound_slices"] == 3 * 35
    assert row["precision_30"] > 0.8 and row["iou"] > 0.4


def test_average_precision_of_known_calls():
    sound, hurt = "1.1", "1.2"
    slices = pd.DataFrame({"study_uid": [hurt, hurt, sound], "slice_idx": [0, 1, 0]})
    for column, value in zip(BOX_COLUMNS, BOX, strict=True):
        slices[column] = [value, np.nan, np.nan]
    studies = pd.DataFrame({"study_uid": [sound, hurt], OVERALL: [0.0, 1.0]})
    x, y, w, h = BOX
    calls = [
        (hurt, 0, 0, x, 0.9),
        (hurt, 0, 1, x, 0.8),
        (hurt, 1, 0, x, 0.99),
        (sound, 0, 0, x, 0.1),
    ]
    names = ("study_uid", "slice_idx", "n", "x", "score")
    boxes = pd.DataFrame(calls, columns=names).assign(member="a", y=y, width=w, height=h)
    [row] = detection(boxes, slices, studies).to_dict("records")
    assert (row["boxed_slices"], row["sound_slices"]) == (1, 1)  # an unboxed slice does not count
    assert row["iou"] == row["precision_30"] == row["precision_50"] == 1.0
    boxes.loc[3, "score"] = 0.95
    [row] = detection(boxes, slices, studies).to_dict("records")
    assert row["precision_50"] == 0.5
    boxes["x"] = x + w / 2  # a third of both
    [row] = detection(boxes, slices, studies).to_dict("records")
    assert (row["precision_30"], row["precision_50"]) == (0.5, 0.0)
    assert row["iou"] == pytest.approx(1 / 3)
    assert overlaps(np.zeros((1, 4)), np.ones((1, 4))).tolist() == [0.0]


def test_a_mirrored_slice_gives_the_boxes_mirrored(small):
    net = build_net(small, task_of(small).heads, pretrained=False).eval()
    stack = torch.randint(0, 255, (2, 1, 1, 32, 32), dtype=torch.uint8)
    said = net(stack)
    back = mirrored_outputs(net(mirrored(stack, small)), small)
    twice = mirrored_outputs(mirrored_outputs(said, small), small)
    assert all(torch.equal(twice[name], said[name]) for name in said)
    assert back["extent"].shape == said["extent"].shape


def test_what_a_box_member_cannot_be_is_refused(config, small, tmp_path):
    def checked(**changes):
        member = small.model_copy(update=changes)
        check_config(config.model_copy(update={"members": {"finds": member}}))

    checked()
    with pytest.raises(ConfigError, match=r"members\.finds\.backbone.*no feature map"):
        checked(backbone="vit_tiny_patch16_224", size_px=224)


def test_the_out_of_fold_run_collects_boxes_and_their_keys_know_them(tmp_path):
    from run_folder import tiny_config, write_run

    from cspine_kit.core.tables import read_table

    paths, config = write_run(tmp_path, 6), tiny_config()
    small = {name: getattr(config.members["a"], name) for name in ("size_px", "field_mm", "epochs")}
    small |= {"backbone": "tiny_cnn", "in_chans": 1, "slices_per_study": 3, "slice_step_mm": 6.0}
    finds = config.boxes.model_copy(update=small)
    config = config.model_copy(update={"members": {"a": config.members["a"], "finds": finds}})
    run_oof(config, paths)
    boxes = read_table(paths.table("oof_boxes"), "oof_boxes")
    assert set(boxes["member"]) == {"finds"} and boxes["study_uid"].nunique() == 6
    assert pd.read_csv(paths.root / "boxes.csv")["boxed_slices"].tolist() == [0]
    inputs = open_inputs(paths)
    before = {name: FoldChain(config, paths, inputs, 0).model_key(name) for name in config.members}
    uid = inputs.studies_of(0, training=True)[0]
    inputs.slices[uid].loc[:, "box_x"] = 3.0
    inputs.__dict__.pop("boxes")
    after = FoldChain(config, paths, inputs, 0)
    assert before["a"] == after.model_key("a")
    assert before["finds"] != after.model_key("finds")


def test_the_network_comes_back_from_disk(small, tmp_path):
    net = build_net(small, task_of(small).heads, pretrained=False).eval()
    save_model(net, tmp_path)
    stack = torch.randint(0, 255, (1, 1, 1, 32, 32), dtype=torch.uint8)
    stored = load_model(tmp_path)(stack)
    assert torch.allclose(stored["center"], net(stack)["center"], atol=0.05)

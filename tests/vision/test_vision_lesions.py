"""What boxes teach members that find none: labels of slices, and a map of lesions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from run_folder import tiny_config, write_run

from cspine_kit.core.anatomy import OVERALL, TARGETS
from cspine_kit.core.config import parse_config, read_config
from cspine_kit.core.config.changes import apply_changes
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.tables import BOX_COLUMNS, MASK_COLUMNS, read_table, write_table
from cspine_kit.vision.inputs.augment import augment_batch
from cspine_kit.vision.inputs.dataset import StackDataset
from cspine_kit.vision.inputs.tables import open_inputs
from cspine_kit.vision.nets.backbone import check_backbone
from cspine_kit.vision.nets.kinds import build_net
from cspine_kit.vision.oof.chain import FoldChain
from cspine_kit.vision.oof.run import run_oof
from cspine_kit.vision.tasks.kinds import task_of
from cspine_kit.vision.tasks.task import Lesson
from cspine_kit.vision.training.losses import batch_weights, loss_of

PATH = Path(__file__).resolve().parents[2] / "configs" / "hard-gpu.yaml"
SMALL = {"backbone": "tiny_cnn", "in_chans": 1, "field_mm": 38.4, "size_px": 32}
SMALL |= {"slices_per_level": 5, "slice_step_mm": 2.0, "hidden": 8, "others_share": 1.0}
BOX = (50.0, 60.0, 12.0, 8.0)
"""x, y, width, height in pixels of 0.6 mm of the native frame."""
KINDS = ("slices", "levels", "study", "volume")


@pytest.fixture(name="member")
def _member(config):
    """`member(kind, **changes)`: a small one that does not augment."""

    def make(kind, **changes):
        own = getattr(config, "model" if kind == "slices" else kind)
        still = own.augment.model_copy(update=dict.fromkeys(type(own.augment).model_fields, 0.0))
        tiny = SMALL | ({"backbone": "tiny_3d"} if kind == "volume" else {})
        known = {k: v for k, v in (tiny | changes).items() if k in type(own).model_fields}
        return own.model_copy(update={"augment": still, **known})

    return make


def lesson(volume, broken, boxed):
    """Slice 5 to 9 shows C1, 10 to 14 C2, ..., their middles most; some slices have the box."""
    label = pd.Series({t: float(t in broken or (t == OVERALL and bool(broken))) for t in TARGETS})
    slices = pd.DataFrame({"z_mm": volume.z_mm, "study_uid": volume.study_uid})
    slices["slice_idx"] = at = np.arange(len(slices))
    for k, column in enumerate(MASK_COLUMNS):
        area = 1.0 - np.abs((at - 5) % 5 - 2) * 0.3
        slices[column] = np.where((at - 5) // 5 == k, area, 0.0)
    for column, value in zip(BOX_COLUMNS, BOX, strict=True):
        slices[column] = np.where(np.isin(at, boxed), value, np.nan)
    return Lesson(slices, label)


def taught(own, volume, levels, broken, boxed):
    """A view with targets, and its patches by native slice."""
    task = task_of(own)
    view = task.view(volume, levels)
    view.targets = task.targets(view, lesson(volume, broken, boxed))
    return view, {int(idx): k for k, idx in enumerate(view.slice_idx)}


def test_slices_learn_as_much_of_a_fracture_as_they_show(member, levels, make_volume):
    hard = taught(member("slices"), make_volume(0), levels, {"C2"}, [])[0]
    assert "label" not in hard.targets
    view, at = taught(
        member("slices", slice_labels="visible"), make_volume(0), levels, {"C2"}, [11]
    )
    label = view.targets["label"]
    shown = [0.4, 0.7, 1.0, 0.7, 0.4]
    assert label[[at[k] for k in range(10, 15)], 1].tolist() == pytest.approx(shown)
    label[[at[k] for k in range(10, 15)], 1] = 0.0
    assert label.max() == 0.0
    assert np.array_equal(view.targets["fracture"], hard.targets["fracture"])


def test_boxes_sharpen_labels_and_gaps_between_them_teach_nothing(member, levels, make_volume):
    own = member("slices", slice_labels="boxes")
    view, at = taught(own, make_volume(0), levels, {"C2", "C4"}, [11, 12])
    label = view.targets["label"]
    second = label[[at[k] for k in range(10, 15)], 1]
    assert np.isnan(second).tolist() == [True, False, False, True, True]
    assert second[1:3].tolist() == [1.0, 1.0]
    fourth = label[[at[k] for k in range(20, 25)], 3]
    assert fourth.tolist() == pytest.approx([0.4, 0.7, 1.0, 0.7, 0.4]), "a level without a box"
    assert label[at[30], 1] == 0.0, "a slice that does not show it"
    [drawn] = task_of(own).draw([view], np.random.default_rng(0))
    assert {at[11], at[12]} <= set(drawn.tolist())
    # What is unknown has no part in the loss, and the rest of the slice has.
    batch = {n: torch.from_numpy(v[[at[10]]]) for n, v in view.targets.items()}
    said = {"fracture": torch.zeros(1, 7), "visible": torch.zeros(1, 7)}
    assert float(batch_weights(task_of(own), batch)["fracture"]) == 0.0
    batch = {n: torch.from_numpy(v[[at[11]]]) for n, v in view.targets.items()}
    loss, weight = task_of(own).losses(said, batch)["fracture"]
    assert float(weight) == 1.0 and float(loss) == pytest.approx(2 * np.log(2), rel=1e-5)


@pytest.mark.parametrize("kind", ["levels", "study"])
def test_stacks_of_a_vertebra_have_labels_of_their_own(member, levels, make_volume, kind):
    own = member(kind, slice_labels="boxes")
    view, _ = taught(own, make_volume(0), levels, {"C2", "C4"}, [11, 12])
    label = view.targets["label"].reshape(7, 5)
    native = view.slice_idx.reshape(7, 5)
    assert label[1][np.isin(native[1], [11, 12])].tolist() == [1.0, 1.0]
    assert np.isnan(label[1][~np.isin(native[1], [11, 12])]).all()
    assert label[3].max() == 1.0 and label[[0, 2, 4, 5, 6]].max() == 0.0
    plain = taught(member(kind), make_volume(0), levels, {"C2", "C4"}, [11, 12])[0]
    assert np.array_equal(plain.targets["fracture"], view.targets["fracture"])
    batch = {n: torch.from_numpy(v) for n, v in view.targets.items()}
    usual = {n: torch.from_numpy(v) for n, v in plain.targets.items()}
    weights = [float(batch_weights(task_of(own), b)["slice"]) for b in (batch, usual)]
    assert weights[0] == weights[1] - 3.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_of_lesions_is_drawn_learned_and_gone_in_prediction(
    member, levels, make_volume, kind
):
    torch.manual_seed(0)
    own = member(kind, lesion_loss=1.0)
    view, _ = taught(own, make_volume(0), levels, {"C2"}, [11, 12])
    data = StackDataset([view], own)
    samples = [data[k] for k in range(len(data))]
    batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    assert "boxes" not in batch
    native = torch.from_numpy(view.slice_idx.reshape(len(view), view.per_unit))
    boxed = torch.isin(native, torch.tensor([11, 12]))
    # Of C2's slices without a box nothing is known; of all others that there is nothing.
    unknown = torch.isin(native, torch.tensor([10, 13, 14]))
    assert torch.equal(batch["lesions_weight"], 1.0 - unknown.float())
    assert torch.equal(batch["lesions"].amax(dim=(2, 3)) > 0, boxed)
    drawn = batch["lesions"][boxed][0]
    # 35.7 to 40.5 mm down and 29.7 to 36.9 mm across; the field of 38.4 mm begins at 18.8.
    rows, cols = (torch.where(drawn.any(dim=k))[0] for k in (1, 0))
    edges = [int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1]
    assert np.array(edges) * 1.2 + 18.8 == pytest.approx([35.7, 40.5, 29.7, 36.9], abs=1.2)
    task = task_of(own)
    net = build_net(own, task.outputs, pretrained=False).train()
    outputs = net(batch["stack"])
    assert outputs["lesions"].shape[:2] == (len(view), view.per_unit)
    loss, weight = task.losses(outputs, batch)["lesions"]
    assert float(weight) == float(batch["lesions_weight"].sum()) and float(loss.detach()) > 0
    loss_of(task.losses(outputs, batch), batch_weights(task, batch)).backward()
    assert net.heads["lesions"].weight.grad.abs().sum() > 0
    said = net.eval()(batch["stack"])
    assert "lesions" not in said and "lesions" not in task.losses(said, batch)
    assert task.reads_boxes and not task_of(member(kind)).reads_boxes
    assert "lesions" not in build_net(member(kind), task.outputs, pretrained=False).heads


def test_the_map_moves_with_the_stack(member, levels, make_volume):
    own = member("slices", lesion_loss=1.0)
    moving = own.augment.model_copy(update={"flip_x": 0.5, "rotate_deg": 20.0, "shift_mm": 3.0})
    own = own.model_copy(update={"augment": moving})
    volume = make_volume(0)
    volume.voxels.array[:] = 0
    volume.voxels.array[:, 30:34, 25:31] = 255  # 64 pixels show 128 native ones
    view, at = taught(own, volume, levels, {"C2"}, [11])
    data = StackDataset([view], own)
    batch = {n: torch.stack([v] * 8) for n, v in data[at[11]].items()}
    after = augment_batch(batch, own, torch.Generator().manual_seed(2))
    bright, marked = after["stack"][:, :, 0] > 128, after["lesions"] > 0.5
    assert (bright & marked).sum() / (bright | marked).sum() > 0.6
    assert not torch.equal(after["lesions"], batch["lesions"].float())


def test_what_nobody_knows_of_single_slices_is_refused(member):
    raw = read_config(PATH)

    def parsed(**changes):
        return parse_config(
            apply_changes(raw, {f"members.{k}": v for k, v in changes.items()}), PATH
        )

    both = parsed(**{"*.lesion_loss": 1.0, "*.slice_labels": "boxes"})
    assert {m.lesion_loss for m in both.members.values()} == {1.0}
    with pytest.raises(ConfigError, match=r"lesion_loss: .* plane is 'sagittal'"):
        parsed(**{"each.lesion_loss": 1.0, "each.plane": "sagittal"})
    with pytest.raises(
        ConfigError, match=r"slice_labels: .* plane is 'coronal'.*slice_labels: study"
    ):
        parsed(**{"axial.slice_labels": "visible", "axial.plane": "coronal"})
    with pytest.raises(ConfigError, match="one_output speaks of none"):
        parsed(**{"axial.slice_labels": "visible", "axial.one_output": True})
    with pytest.raises(ConfigError, match="does nothing for kind 'boxes'"):
        parsed(**{"boxed.slice_labels": "boxes"})
    vit = member("levels", lesion_loss=1.0, backbone="vit_tiny_patch16_224", size_px=224)
    with pytest.raises(ConfigError, match=r"a\.lesion_loss: .* has no feature map"):
        check_backbone(vit.model_copy(update={"pretrained": False}), "a")


def test_the_out_of_fold_run_learns_from_boxes_and_its_keys_know_them(tmp_path):
    paths, config = write_run(tmp_path, 6), tiny_config()
    slices = pd.read_parquet(paths.table("slices"))
    boxed = (slices["study_uid"] == "1.2.1") & slices["slice_idx"].isin([4])
    for column, value in zip(BOX_COLUMNS, (10.0, 10.0, 8.0, 8.0), strict=True):
        slices.loc[boxed, column] = value
    write_table(slices, paths.table("slices"), "slices", "boxed")
    first = config.members["a"].model_copy(update={"backbone": "tiny_cnn"})
    keys = {"slice_labels": "boxes", "lesion_loss": 1.0, "cutmix": 1.0, "levels_input": True}
    taught = first.model_copy(update=keys)
    names = ("size_px", "field_mm", "in_chans", "stack_step_mm", "slice_step_mm", "pretrained")
    kept = {name: getattr(first, name) for name in (*names, "epochs", "backbone")}
    kept |= {name: keys[name] for name in ("slice_labels", "lesion_loss", "cutmix")}
    each = config.levels.model_copy(update=kept | {"slices_per_level": 3, "hidden": 8})
    members = {"plain": first, "taught": taught, "each": each}
    config = config.model_copy(update={"members": members})
    run_oof(config, paths)
    rows = read_table(paths.table("oof_slices"), "oof_slices")
    assert rows.groupby("member")["study_uid"].nunique().to_dict() == dict.fromkeys(members, 6)
    for name in ("taught", "each"):
        history = pd.read_csv(paths.model(name, 1) / "history.csv")
        assert history["loss"].notna().all()
    inputs = open_inputs(paths)
    before = {name: FoldChain(config, paths, inputs, 1).model_key(name) for name in members}
    inputs.slices["1.2.1"].loc[:, "box_x"] = 3.0
    inputs.__dict__.pop("boxes")
    after = FoldChain(config, paths, inputs, 1)
    changed = {name for name in members if before[name] != after.model_key(name)}
    assert changed == {"taught", "each"}
